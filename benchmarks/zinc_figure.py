"""The learning curves of ``zinc.py``: bound on validation data against optimiser steps, one panel a T."""

from __future__ import annotations

from pathlib import Path

from common import read_rows

__all__ = ["draw"]

_COLOURS = {"masked": "#777777", "paper": "#d62728", "ours": "#2a6fb0", "one stage": "#4f9d69"}


def draw(csv_path: Path) -> None:
    """Write the figure beside the CSV.

    Args:
        csv_path: The CSV of ``zinc.py``.
    """
    from matplotlib.figure import Figure

    rows = [row for row in read_rows(csv_path) if row["decoding"] == "ancestral" and row["seed"] == "0"]
    numbers = sorted({int(row["num_steps"]) for row in rows})
    figure = Figure(figsize=(3.6 * len(numbers), 3.6), layout="constrained")
    axes = figure.subplots(1, len(numbers), squeeze=False, sharey=True)[0]
    for axis, num_steps in zip(axes, numbers, strict=True):
        for row in rows:
            if int(row["num_steps"]) == num_steps:
                points = [each.split("=") for each in row["curve"].split()]
                share = [int(step) / int(row["steps"]) for step, _ in points]
                # masked diffusion is trained once, and validated at the smallest T
                if row["method"] != "masked" or num_steps == numbers[0]:
                    nelbo = [float(value) for _, value in points]
                    axis.plot(share, nelbo, color=_COLOURS[row["method"]], label=row["method"])
                axis.plot([1], [float(row["nelbo"])], "o", color=_COLOURS[row["method"]])
        axis.set_title(f"T = {num_steps}")
        axis.set_xlabel("share of training")
    axes[0].set_ylabel("bound, nats (less is better)")
    axes[0].legend(fontsize=8)
    figure.savefig(csv_path.with_suffix(".png"), dpi=130)
