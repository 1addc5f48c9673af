"""What each part of the recipe brings on the 8x8 digits: latent, order by hand, schedule learned; over seeds.

    python benchmarks/digits.py
    python benchmarks/digits.py --processes "order by hand, latent" learned --num-steps 2

Runs go through the command line, from the configs of the digits and a few options. All train equally long, and the
checkpoint of the lowest ``val/nelbo`` is tested. One thread a run.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
from common import machine, run_missing
from work import costs_untrained

from fldd_lightning import FLDD, DiscreteDataModule
from fldd_lightning.cli.train import FLDDCLI

__all__ = ["PROCESSES", "made", "main", "run"]

CONFIGS = Path(__file__).parents[1] / "configs"
LATENT, ORDER = ["--model.latents", "MixtureLatent"], ["--model.forward_process", "StaggeredProcess"]
FROM_MASKS = ["--model.forward_process.init_args.base", "AbsorbingProcess", "--model.latents", "[]"]
PROCESSES = {  # config, and further options
    "absorbing": ("digits_fixed", []),
    "absorbing, latent": ("digits_fixed", LATENT),
    "staggered": ("digits_fixed", ORDER),
    "staggered, latent": ("digits_fixed", [*ORDER, *LATENT]),
    "learned from absorbing, no latent": ("digits", FROM_MASKS),
    "learned": ("digits", []),
    "learned general": ("digits_general", []),
    "uniform": ("digits_fixed_uniform", []),
}


class _Made(FLDDCLI):
    """The command line, up to where ``fit`` begins."""

    def _run_subcommand(self, subcommand: str) -> None: ...


def fit_of(process: str, num_steps: int, seed: int) -> list[str]:
    """The ``fit`` of a row, but for how long it takes."""
    config, further = PROCESSES[process]
    fit = ["fit", "--config", str(CONFIGS / f"{config}.yaml"), *further, "--model.num_steps", str(num_steps)]
    return [*fit, "--seed_everything", str(seed)]


def made(process: str, num_steps: int, seed: int) -> tuple[FLDD, DiscreteDataModule]:
    """The model of a row before training, and its data."""
    cli = _Made(fit_of(process, num_steps, seed))
    assert isinstance(cli.datamodule, DiscreteDataModule)
    return cli.model, cli.datamodule


def run(process: str, num_steps: int, seed: int, steps: int) -> dict[str, object]:
    """Train and test one model; returns a row of the table."""
    with tempfile.TemporaryDirectory() as folder:
        fit = [*fit_of(process, num_steps, seed), "--trainer.max_steps", str(steps)]
        fit += ["--trainer.val_check_interval", str(max(1, steps // 8))]
        start = time.monotonic()
        command(*fit, folder=folder)
        seconds = time.monotonic() - start
        best = next(Path(folder).rglob("best-*.ckpt"))
        command("test", "--ckpt_path", str(best), folder=f"{folder}/tested")
        with next(Path(folder, "tested").rglob("metrics.csv")).open() as file:
            nelbo = float(next(csv.DictReader(file))["test/nelbo"])
        found = re.search(r"step=?(\d+)", best.name)
    row: dict[str, object] = {"process": process, "num_steps": num_steps, "seed": seed, "steps": steps}
    row |= {"nelbo": f"{nelbo:.4f}", "best_step": found[1] if found else "", "seconds": round(seconds)}
    row |= {"torch": torch.__version__, "machine": machine()}
    return {**row, **costs_untrained(partial(made, process, num_steps, seed), steps)}


def command(*words: str, folder: str) -> None:
    """Run ``fldd-lightning``, with its numbers in a CSV in the folder."""
    Path(folder).mkdir(exist_ok=True)
    line = [sys.executable, "-m", "fldd_lightning.cli.main", *words, "--trainer.enable_progress_bar", "false"]
    line += ["--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", folder]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(line, check=True, cwd=folder, env=environment, stdout=subprocess.DEVNULL)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", nargs="+", default=list(PROCESSES), choices=list(PROCESSES))
    parser.add_argument("--num-steps", nargs="+", type=int, default=[4], help="T")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=1_000, help="optimiser steps")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/digits.csv"))
    arguments = parser.parse_args()
    keys = (
        {"process": process, "num_steps": num_steps, "seed": seed, "steps": arguments.steps}
        for seed in arguments.seeds
        for num_steps in arguments.num_steps
        for process in arguments.processes
    )
    run_missing(arguments.output, keys, run)


if __name__ == "__main__":
    main()
