"""How far a model is from the best possible one, on sources whose log-probability is known."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from sources import KnownSource
from torch import Tensor
from torch.nn import functional as F

from fldd_lightning import FLDD, FLDDError

__all__ = ["KnownOptimum", "energy_distance"]


class KnownOptimum(Callback):
    """Logs the gap to the entropy of a :class:`sources.KnownSource` when testing.

    ``test/gap`` is the mean of NELBO + log p(x) over the test split, in nats per example: the
    same examples enter both, so that their own spread cancels. ``test/gap_share`` is the gap as
    a share of H, and ``test/energy_distance`` that of samples to test examples.

    Args:
        num_samples: Samples for the energy distance.
        seed: Their seed.
    """

    def __init__(self, num_samples: int = 2_000, seed: int = 0) -> None:
        self.num_samples, self.seed = num_samples, seed

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, KnownSource) or not isinstance(pl_module, FLDD):
            raise FLDDError("KnownOptimum needs data with a known log-probability; see benchmarks/sources.py.")
        x = data.splits["test"].x
        log_p = float(data.log_prob(x).mean())
        gap = float(pl_module.evaluations["test"].bound.compute()["nelbo"]) + log_p
        pl_module.log("test/gap", gap)
        pl_module.log("test/gap_share", gap / data.entropy)
        samples = pl_module.sample(self.num_samples, self.seed, batch_size=self.num_samples)
        distance = energy_distance(samples, x[: self.num_samples], data.num_classes)
        pl_module.log("test/energy_distance", distance)


def energy_distance(a: Tensor, b: Tensor, num_classes: int) -> float:
    """2 E d(a, b) - E d(a, a') - E d(b, b'), with d the share of coordinates that differ to the power 1/2.

    The Hamming distance itself would see the marginals alone. Its square root is of strictly negative type: the
    expectation is zero only for equal distributions (Székely and Rizzo, 2013). Unbiased: pairs of an example with
    itself are left out.

    Args:
        a: Integers ``(N, *shape)``.
        b: Integers ``(M, *shape)``.
        num_classes: K.
    """
    one_hots = [F.one_hot(x.flatten(1), num_classes).flatten(1).double() for x in (a, b)]
    num_dims = a[0].numel()

    def mean_distance(u: Tensor, v: Tensor, pairs: int) -> float:
        total = 0.0
        for part in torch.split(u, 256):
            total += float((1 - part @ v.T / num_dims).clamp_min(0).sqrt().sum())
        return total / pairs

    u, v = one_hots
    n, m = len(u), len(v)
    between = mean_distance(u, v, n * m)
    return 2 * between - mean_distance(u, u, n * (n - 1)) - mean_distance(v, v, m * (m - 1))
