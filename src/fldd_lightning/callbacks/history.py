"""Metrics of a run over its steps, in a bounded number of points."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..ranges import COUNT, check_numbers

__all__ = ["Curve", "History"]

_PENDING = 50  # steps between two transfers from the device


class Curve:
    """One metric over steps.

    After ``2 * num_points`` points neighbours are joined, and from then on every point is a mean over twice as many
    values: a long run has as many points as a short one, and less noise.

    Args:
        num_points: Points that are always kept.
    """

    def __init__(self, num_points: int = 300) -> None:
        check_numbers(locals(), num_points=COUNT)
        self.num_points, self.length = num_points, 1
        self.points: list[tuple[float, float]] = []
        self._block: list[tuple[float, float]] = []

    def add(self, step: float, value: float) -> None:
        """Take in a value at a step."""
        self._block.append((step, value))
        if len(self._block) < self.length:
            return
        self.points.append(_mean(self._block))
        self._block = []
        if len(self.points) >= 2 * self.num_points:
            self.points = [_mean(self.points[i : i + 2]) for i in range(0, len(self.points), 2)]
            self.length *= 2

    @property
    def all_points(self) -> list[tuple[float, float]]:
        """Pairs of step and value, those of a block that is not full yet included."""
        return [*self.points, *([_mean(self._block)] if self._block else [])]


class History:
    """Curves by the name of their metric.

    Values may lie on a device: they are fetched together every so many steps, as each transfer waits for it.
    """

    def __init__(self) -> None:
        self.curves: dict[str, Curve] = {}
        self._pending: list[tuple[str, int, Tensor]] = []
        self._waiting = 0

    def add(self, step: int, values: Mapping[str, Tensor]) -> None:
        """Take in values at a step."""
        self._pending += [(name, step, value.detach().float().reshape(())) for name, value in values.items()]
        self._waiting += 1
        if self._waiting >= _PENDING:
            self._fetch()

    def lowest(self, name: str) -> tuple[int, float] | None:
        """Step and value where a metric was lowest; None if it was never seen."""
        points = self.points(name)
        if not points:
            return None
        step, value = min(points, key=lambda point: point[1])
        return round(step), value

    def points(self, name: str) -> list[tuple[float, float]]:
        """Pairs of step and value of one metric; none if it was never seen."""
        self._fetch()
        return self.curves[name].all_points if name in self.curves else []

    def last(self, name: str) -> float | None:
        """The last value of a metric, or None."""
        points = self.points(name)
        return points[-1][1] if points else None

    def names(self) -> list[str]:
        """Of all metrics."""
        self._fetch()
        return sorted(self.curves)

    def state(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        self._fetch()
        return {
            name: {"length": curve.length, "points": [list(point) for point in curve.all_points]}
            for name, curve in self.curves.items()
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state` gave."""
        self.curves, self._pending, self._waiting = {}, [], 0
        for name, saved in state.items():
            curve = self.curves[str(name)] = Curve()
            curve.length = max(1, int(saved["length"]))
            curve.points = [(float(step), float(value)) for step, value in saved["points"]]

    def _fetch(self) -> None:
        self._waiting = 0
        if not self._pending:
            return
        numbers = torch.stack([value.to(self._pending[-1][2].device) for _, _, value in self._pending]).tolist()
        for (name, step, _), number in zip(self._pending, numbers):
            self.curves.setdefault(name, Curve()).add(step, number)
        self._pending = []


def _mean(points: list[tuple[float, float]]) -> tuple[float, float]:
    return sum(step for step, _ in points) / len(points), sum(value for _, value in points) / len(points)
