"""Metrics of text: the bound per token and per character."""

from __future__ import annotations

from math import log
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

__all__ = ["TokenBound"]


class TokenBound(Metric):
    """The bound over all tokens and characters of a data set, accumulated in float64.

    Sums over examples are divided, not means averaged: long examples count for more.

    Args:
        kwargs: Passed to :class:`torchmetrics.Metric`.
    """

    full_state_update = False
    nats: Tensor
    tokens: Tensor
    characters: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("nats", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("tokens", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("characters", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, nelbo: Tensor, lengths: Tensor, characters: int) -> None:
        """Add a batch: bounds ``(B,)`` in nats, tokens ``(B,)``, and characters of all of it."""
        self.nats = self.nats + nelbo.sum().to(self.nats)
        self.tokens = self.tokens + lengths.sum()
        self.characters = self.characters + characters

    def compute(self) -> dict[str, Tensor]:
        """``bits_per_token``, ``ppl_bound`` and, where characters are known, ``bits_per_char``."""
        per_token = self.nats / self.tokens
        values = {"bits_per_token": per_token / log(2), "ppl_bound": per_token.exp()}
        if bool(self.characters > 0):
            values["bits_per_char"] = self.nats / self.characters / log(2)
        return {key: value.float() for key, value in values.items()}
