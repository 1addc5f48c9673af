"""The NELBO accumulated over a data set, exactly reduced across processes."""

from __future__ import annotations

from math import log
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

__all__ = ["NELBOMetric"]


class NELBOMetric(Metric):
    """Mean NELBO and its terms over examples, accumulated in float64.

    Args:
        num_steps: T.
        num_dims: D, for bits per dimension.
        term_names: Names of further terms added to the bound.
        kwargs: Passed to :class:`torchmetrics.Metric`.
    """

    full_state_update = False
    kl_sum: Tensor
    terms_sum: Tensor
    square_sum: Tensor
    count: Tensor

    def __init__(self, num_steps: int, num_dims: int, term_names: tuple[str, ...] = (), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_dims, self.term_names = num_dims, term_names
        dtype = torch.float64
        self.add_state("kl_sum", torch.zeros(num_steps, dtype=dtype), dist_reduce_fx="sum")
        self.add_state("terms_sum", torch.zeros(len(term_names), dtype=dtype), dist_reduce_fx="sum")
        self.add_state("square_sum", torch.zeros((), dtype=dtype), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, kl: Tensor, terms: dict[str, Tensor]) -> None:
        """Add a batch: KL of every step ``(B, T)`` and further terms ``(B,)``, nats per example."""
        # Out of place: a state may have been made in inference mode.
        self.kl_sum = self.kl_sum + kl.sum(0).to(self.kl_sum)
        nelbo = kl.sum(1).to(self.kl_sum)
        if self.term_names:
            values = torch.stack([terms[name].to(nelbo) for name in self.term_names])  # (n, B)
            self.terms_sum, nelbo = self.terms_sum + values.sum(1), nelbo + values.sum(0)
        self.square_sum = self.square_sum + nelbo.square().sum()
        self.count = self.count + len(kl)

    def compute(self) -> dict[str, Tensor]:
        """``nelbo`` (nats per example) and its standard error ``nelbo_se``, ``bpd``, ``kl_t{t}`` and every term.

        The standard error is that of the mean over these examples. It is NaN of a single one.
        """
        kl, terms = self.kl_sum / self.count, self.terms_sum / self.count
        nelbo = kl.sum() + terms.sum()
        variance = (self.square_sum / self.count - nelbo.square()).clamp_min(0) / (self.count - 1)
        values = {"nelbo": nelbo, "nelbo_se": variance.sqrt(), "bpd": nelbo / (self.num_dims * log(2))}
        values.update({f"kl_t{t}": value for t, value in enumerate(kl, start=1)})
        values.update(dict(zip(self.term_names, terms, strict=True)))
        return values
