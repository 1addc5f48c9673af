"""Precision, recall, density and coverage: how many samples look real, how much of the real they reach."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from ..ranges import COUNT, check_numbers

__all__ = ["Coverage"]


class Coverage(Metric):
    """k-nearest-neighbour comparison of two sets of features.

    A real example's ball reaches to its k-th nearest real neighbour. ``precision`` is the share of
    samples within some ball, ``recall`` the same with the roles exchanged (Kynkäänniemi et al., 2019);
    ``density`` is the mean number of balls a sample lies in, over k, and ``coverage`` the share of
    balls that hold a sample (Naeem et al., 2020). Real against real gives about
    1, 1, 1 and 1 - 2^-k.

    Args:
        neighbours: k.
        kwargs: Passed to :class:`torchmetrics.Metric`.
    """

    full_state_update = False
    real: list[Tensor]
    fake: list[Tensor]

    def __init__(self, neighbours: int = 5, **kwargs: Any) -> None:
        check_numbers(locals(), neighbours=COUNT)
        super().__init__(**kwargs)
        self.neighbours = neighbours
        self.add_state("real", [], dist_reduce_fx="cat")
        self.add_state("fake", [], dist_reduce_fx="cat")

    def reset(self) -> None:
        """Forget the samples; the real features stay."""
        real = list(self.real)
        super().reset()
        self.real = real

    def update(self, features: Tensor, real: bool) -> None:
        """Add features ``(N, F)``."""
        (self.real if real else self.fake).append(features.detach().float())

    def compute(self) -> dict[str, Tensor]:
        """The four shares; empty with k or fewer examples on a side."""
        if len(self.real) == 0 or len(self.fake) == 0:
            return {}
        real, fake = dim_zero_cat(self.real), dim_zero_cat(self.fake)
        if min(len(real), len(fake)) <= self.neighbours:
            return {}
        reach_real, reach_fake = self._reach(real), self._reach(fake)
        distance = torch.cdist(real, fake)  # (real, fake)
        inside = distance <= reach_real.unsqueeze(1)
        return {
            "precision": inside.any(0).float().mean(),
            "recall": (distance <= reach_fake).any(1).float().mean(),
            "density": inside.float().sum(0).mean() / self.neighbours,
            "coverage": inside.any(1).float().mean(),
        }

    def _reach(self, features: Tensor) -> Tensor:
        """Distance of each to its k-th nearest neighbour, itself left out, ``(N,)``."""
        distances = torch.cdist(features, features)
        return distances.kthvalue(self.neighbours + 1, 1).values
