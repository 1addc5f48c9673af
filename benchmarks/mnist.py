"""Process x T x seeds on binarised MNIST: NELBO and sample quality at the same number of denoiser passes.

    python benchmarks/mnist.py --path FOLDER_WITH_IDX_FILES --sizes 8 16 --seeds 0 1 2
    python benchmarks/mnist.py --report benchmarks/results/mnist.csv

Sample quality is the Fréchet distance between 10,000 samples and the test images in the 64
features of the classifier that ``fldd-lightning features`` trains on the same images, seed 0 (this is
not FID). MLPs of width 32 x size. One thread a run.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from collections import defaultdict
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from common import append_row, machine, mean_and_range, one_thread, train_and_test
from lightning.pytorch import seed_everything
from torch import Tensor

from fldd_lightning import ImageFLDD
from fldd_lightning.cli.features import train_classifier
from fldd_lightning.data import MNISTDataModule
from fldd_lightning.estimators import RLOO, Reinforce
from fldd_lightning.forward import (
    AbsorbingProcess,
    D3PMProcess,
    LearnedMaskProcess,
    ResidualAbsorbingProcess,
    ResidualUniformProcess,
    UniformProcess,
)
from fldd_lightning.metrics import ClassifierFeatures, FrechetDistance
from fldd_lightning.networks import MLP

PASSES = 4 * 128  # denoiser passes per training step
PROCESSES: dict[str, Any] = {
    "learned": LearnedMaskProcess,
    "learned general": ResidualAbsorbingProcess,
    "absorbing": AbsorbingProcess,
    "learned uniform": ResidualUniformProcess,
    "uniform": UniformProcess,
    "D3PM": D3PMProcess,
}
FIELDS = ("size", "process", "num_steps", "seed", "steps", "nelbo", "frechet", "shares", "seconds", "torch", "machine")


def frechet(extractor: ClassifierFeatures, samples: Tensor, real: Tensor) -> float:
    """Fréchet distance of binary images ``(N, H, W)`` in the classifier's features."""
    metric = FrechetDistance(64)
    for images, is_real in ((samples, False), (real, True)):
        for part in images.split(1000):
            metric.update(extractor(part.unsqueeze(1).float()), real=is_real)
    return float(metric.compute())


def run(data_path: str, size: int, process: str, num_steps: int, seed: int, steps: int) -> dict[str, object]:
    """Train and test one model; returns a row of the table."""
    seed_everything(seed, verbose=False)
    network = partial(MLP, width=32 * size, embedding=4)
    is_learned = process.startswith("learned")
    factory = partial(PROCESSES[process], network=network) if is_learned else PROCESSES[process]
    samples = 2 if is_learned else 1
    data = MNISTDataModule(data_path, size=size, batch_size=PASSES // samples, seed=seed)
    estimator = RLOO if is_learned else Reinforce
    model = ImageFLDD(2, (size, size), factory, network, estimator, num_steps=num_steps)
    logged, seconds = train_and_test(model, data, steps)
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/classifier.pt"
        train_classifier(MNISTDataModule(data_path, size=size), path)
        extractor = ClassifierFeatures(path)
    distance = frechet(extractor, model.sample(10_000, 0, batch_size=1_000), data.splits["test"].x)
    kl = [max(0.0, logged[f"test/kl_t{t}"]) for t in range(1, num_steps + 1)]
    shares = " ".join(f"{value / sum(kl):.2f}" for value in kl)
    values = (size, process, num_steps, seed, steps, f"{logged['test/nelbo']:.4f}", f"{distance:.4f}", shares)
    return dict(zip(FIELDS, (*values, round(seconds), torch.__version__, machine()), strict=True))


def table(path: Path) -> str:
    """Markdown: one row per size, process and T."""
    groups: dict[tuple[int, str, int], list[dict[str, str]]] = defaultdict(list)
    with path.open() as file:
        for row in csv.DictReader(file):
            groups[int(row["size"]), row["process"], int(row["num_steps"])].append(row)
    lines = ["| size | process | T | seeds | test/nelbo, nats (range) | Fréchet (range) | seconds |"]
    lines.append("| --- " * 7 + "|")
    for (size, process, num_steps), rows in sorted(groups.items(), key=lambda item: (item[0][0], item[0][2])):
        cells = [mean_and_range([float(row[key]) for row in rows]) for key in ("nelbo", "frechet")]
        seconds = mean(float(row["seconds"]) for row in rows)
        lines.append(f"| {size} | {process} | {num_steps} | {len(rows)} | {cells[0]} | {cells[1]} | {seconds:.0f} |")
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", help="folder with the idx files")
    parser.add_argument("--sizes", nargs="+", type=int, default=[8, 16])
    parser.add_argument(
        "--models",
        nargs="+",
        default=["learned:2", "learned:4", "absorbing:4", "absorbing:16", "absorbing:64"],
        help=f"process:T, the process being one of {', '.join(PROCESSES)}",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=6_000, help="optimiser steps")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/mnist.csv"))
    parser.add_argument("--report", type=Path, help="print and write the table of this CSV and run nothing")
    arguments = parser.parse_args()
    if arguments.report is not None:
        text = table(arguments.report)
        arguments.report.with_suffix(".md").write_text(text + "\n")
        print(text)
        return
    one_thread()
    for seed in arguments.seeds:
        for size in arguments.sizes:
            for name in arguments.models:
                process, _, num_steps = name.rpartition(":")
                row = run(arguments.path, size, process, int(num_steps), seed, arguments.steps)
                append_row(arguments.output, row)
                print({key: row[key] for key in FIELDS[:9]}, flush=True)


if __name__ == "__main__":
    main()
