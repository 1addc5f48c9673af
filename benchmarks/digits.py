"""Process x T on the digits: every config of ``configs/digits*.yaml``, over seeds, through the command line.

    python benchmarks/digits.py --output benchmarks/results/digits.csv
    python benchmarks/digits.py --table benchmarks/results/digits.csv

Each run trains with the config's own budget, tests the checkpoint of the lowest ``val/nelbo`` and
appends one row to the CSV. One thread a run.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from statistics import mean

CONFIGS = ("digits", "digits_general", "digits_fixed", "digits_fixed_uniform")
LABELS = {
    "digits": "learned mask schedule",
    "digits_general": "learned, tokens may move, too",
    "digits_fixed": "fixed absorbing",
    "digits_fixed_uniform": "fixed uniform",
}
FIELDS = ("config", "num_steps", "seed", "nelbo", "seconds", "torch", "machine")
COMMAND = [sys.executable, "-m", "fldd_lightning.cli.main"]


def run(config: str, num_steps: int, seed: int) -> dict[str, object]:
    """Train and test one configuration; returns a row of the table."""
    import torch

    path = Path(__file__).parent.parent / "configs" / f"{config}.yaml"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        fit = ["fit", "--config", str(path), "--model.num_steps", str(num_steps), "--seed_everything", str(seed)]
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
    machine = f"{platform.machine()}, 1 thread"
    return dict(zip(FIELDS, (config, num_steps, seed, nelbo, round(seconds), torch.__version__, machine), strict=True))


def table(path: Path) -> str:
    """Markdown: test/nelbo per process and T, mean over seeds and the range."""
    values: dict[tuple[str, int], list[float]] = defaultdict(list)
    with path.open() as file:
        for row in csv.DictReader(file):
            values[row["config"], int(row["num_steps"])].append(float(row["nelbo"]))
    all_steps = sorted({steps for _, steps in values})
    lines = ["| process | config | " + " | ".join(f"T = {steps}" for steps in all_steps) + " |"]
    lines.append("| --- | --- |" + " --- |" * len(all_steps))
    for config in CONFIGS:
        cells = []
        for steps in all_steps:
            v = values[config, steps]
            cells.append(f"{mean(v):.2f} ({min(v):.2f} to {max(v):.2f}, n = {len(v)})" if v else "")
        lines.append(f"| {LABELS[config]} | `{config}.yaml` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", nargs="+", default=CONFIGS, choices=CONFIGS)
    parser.add_argument("--steps", nargs="+", type=int, default=[2, 4, 8])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/digits.csv"))
    parser.add_argument("--table", type=Path, help="print the table of this CSV and run nothing")
    arguments = parser.parse_args()
    if arguments.table is not None:
        print(table(arguments.table))
        return
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    for seed in arguments.seeds:
        for steps in arguments.steps:
            for config in arguments.configs:
                row = run(config, steps, seed)
                is_new = not arguments.output.exists()
                with arguments.output.open("a", newline="") as file:
                    writer = csv.DictWriter(file, FIELDS)
                    if is_new:
                        writer.writeheader()
                    writer.writerow(row)
                print(row, flush=True)


if __name__ == "__main__":
    main()
