"""The Fréchet distance between two sets of features."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

__all__ = ["FrechetDistance"]


class _Given(nn.Module):
    """Takes features as they are."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


class FrechetDistance(FrechetInceptionDistance):
    """torchmetrics' Fréchet distance on features ``(N, F)`` that are given, in float64.

    Real features outlive ``reset``. NaN where too few examples leave a covariance whose root is not found.

    Args:
        num_features: F.
        kwargs: Passed on to torchmetrics.
    """

    def __init__(self, num_features: int, **kwargs: Any) -> None:
        super().__init__(feature=_Given(num_features), reset_real_features=False, **kwargs)
        self.num_features = num_features
        self.orig_dtype = torch.float32  # of the result; set by update, which a process without a batch does not call

    def compute(self) -> Tensor:
        try:
            return super().compute()
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # its stub leaves it out
            rank_zero_warn("the Fréchet distance is not found, and recorded as NaN: give more pictures and samples.")
            return torch.full((), float("nan"), device=self.device)
