"""Process x T on the digits: every config of ``configs/digits*.yaml``, over seeds, through the command line.

    python benchmarks/digits.py --output benchmarks/results/digits.csv

Each run trains with the config's own budget, tests the checkpoint of the lowest ``val/nelbo`` and
appends one row to the CSV. One thread a run.
"""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from common import machine, run_missing

FOLDER = Path(__file__).parents[1] / "configs"
CONFIGS = ("digits", "digits_general", "digits_fixed", "digits_fixed_uniform")
COMMAND = [sys.executable, "-m", "fldd_lightning.cli.main"]


def run(config: str, num_steps: int, seed: int) -> dict[str, object]:
    """Train and test one configuration; returns a row of the table."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        fit = [
            "fit",
            "--config",
            str(FOLDER / f"{config}.yaml"),
            "--model.num_steps",
            str(num_steps),
            "--seed_everything",
            str(seed),
        ]
        fit += ["--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", folder]
        fit += ["--trainer.enable_progress_bar", "false"]
        start = time.monotonic()
        subprocess.run(COMMAND + fit, check=True, cwd=folder, env=environment, stdout=subprocess.DEVNULL)
        seconds = time.monotonic() - start
        best = next(Path(folder).rglob("best-*.ckpt"))
        test = ["test", "--ckpt_path", str(best), "--trainer.logger", "CSVLogger", "--trainer.logger.save_dir"]
        tested = Path(folder) / "tested"
        subprocess.run(
            [*COMMAND, *test, str(tested)], check=True, cwd=folder, env=environment, stdout=subprocess.DEVNULL
        )
        with next(tested.rglob("metrics.csv")).open() as file:
            nelbo = float(next(csv.DictReader(file))["test/nelbo"])
    row = {"config": config, "num_steps": num_steps, "seed": seed, "nelbo": nelbo, "seconds": round(seconds)}
    return {**row, "torch": torch.__version__, "machine": machine()}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", nargs="+", default=CONFIGS, choices=CONFIGS)
    parser.add_argument("--steps", nargs="+", type=int, default=[2, 4, 8], help="T")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/digits.csv"))
    arguments = parser.parse_args()
    keys = (
        {"config": config, "num_steps": num_steps, "seed": seed}
        for seed in arguments.seeds
        for num_steps in arguments.steps
        for config in arguments.configs
    )
    run_missing(arguments.output, keys, run)


if __name__ == "__main__":
    main()
