"""Generative perplexity against entropy, a point for each temperature."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

__all__ = ["Point", "save_curve"]


class Point(NamedTuple):
    """What a judge says of texts.

    Attributes:
        label: What stands beside the point.
        entropy: Of the tokens within a text, in nats.
        perplexity: The judge's.
    """

    label: str
    entropy: float
    perplexity: float


def save_curve(points: Sequence[Point], real: Point, title: str, path: Path) -> None:
    """Draw the curve of samples and the point of real texts, which is what to aim at.

    Args:
        points: Of samples, in the order of their temperatures.
        real: Of real texts.
        title: Above it.
        path: Where to write the picture.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.8, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot([p.entropy for p in points], [p.perplexity for p in points], "o-", label="samples, by temperature")
    axes.plot(real.entropy, real.perplexity, "k*", markersize=10, label=real.label)
    for point in points:
        at = (point.entropy, point.perplexity)
        axes.annotate(point.label, at, xytext=(4, 4), textcoords="offset points", fontsize=7)
    axes.set(xlabel="entropy of the tokens, nats", ylabel="generative perplexity", yscale="log")
    axes.set_title(title, fontsize=7)
    axes.legend(fontsize=7)
    figure.savefig(path, dpi=150)
