"""The Fréchet distance between two sets of features, real statistics kept."""

from __future__ import annotations

from typing import Any

import torch
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

    Real features outlive ``reset``; :meth:`real_statistics` takes them out, to be kept on disk.

    Args:
        num_features: F.
        kwargs: Passed on to torchmetrics.
    """

    _REAL = ("real_features_sum", "real_features_cov_sum", "real_features_num_samples")

    def __init__(self, num_features: int, **kwargs: Any) -> None:
        super().__init__(feature=_Given(num_features), reset_real_features=False, **kwargs)
        self.num_features = num_features
        self.orig_dtype = torch.float32  # of the result; set by update, which a process without a batch does not call

    def real_statistics(self) -> dict[str, Tensor]:
        """Sums over the real features seen so far, by all processes, on the CPU."""
        with self.sync_context(should_unsync=True):
            return {name: getattr(self, name).detach().cpu().clone() for name in self._REAL}

    def load_real_statistics(self, statistics: dict[str, Tensor]) -> None:
        """Take over what :meth:`real_statistics` gave; on one process only, as processes are summed."""
        for name in self._REAL:
            setattr(self, name, statistics[name].to(getattr(self, name)))
