"""Metrics of text: the bound per token and per character; judgement, entropy and variety of samples."""

from __future__ import annotations

from math import log
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from ..categorical import entropy

if TYPE_CHECKING:
    from .judges import Judgement

__all__ = ["GeneratedText", "TokenBound"]


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


class GeneratedText(Metric):
    """What a judge says of texts, with the numbers without which that means nothing.

    Args:
        judge: The judge's name.
        pad: The token PAD, or None.
        max_n: Distinct n-grams are counted for n = 1..max_n.
        kwargs: Passed to :class:`torchmetrics.Metric`.
    """

    full_state_update = False
    nats: Tensor
    judged: Tensor
    unknown: Tensor
    characters: Tensor
    features: list[Tensor]
    rows: list[Tensor]

    def __init__(self, judge: str, pad: int | None, max_n: int = 4, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.judge, self.pad, self.max_n = judge, pad, max_n
        self.add_state("nats", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        for name in ("judged", "unknown", "characters"):
            self.add_state(name, torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("rows", [], dist_reduce_fx="cat")
        self.add_state("features", [], dist_reduce_fx="cat")

    def update(self, x: Tensor, judgement: Judgement, features: Tensor) -> None:
        """Add examples ``(B, length)``, what the judge says of them, and features ``(B, F)`` of them.

        Every process must add something, if only ``(0, length)`` and ``(0, F)``.
        """
        self.rows.append(x.long())
        self.features.append(features)
        self.nats = self.nats + judgement.nats.sum().to(self.nats)
        self.judged = self.judged + judgement.tokens.sum().to(self.judged)
        self.unknown = self.unknown + judgement.unknown.sum().to(self.unknown)
        self.characters = self.characters + judgement.characters.sum().to(self.characters)

    def compute(self) -> dict[str, Tensor]:
        """``gen_{ppl,bits}_{judge}``, ``entropy``, ``distinct_{n}``; ``unknown`` (a share), ``features``."""
        x = dim_zero_cat(self.rows)  # (N, length)
        nats = self.nats.double()
        values = {
            f"gen_ppl_{self.judge}": (nats / self.judged).exp(),
            f"gen_bits_{self.judge}": nats / self.characters / log(2),
            "unknown": self.unknown / self.judged.clamp_min(1),
            "entropy": self._entropy(x),
            "features": dim_zero_cat(self.features),
        }
        return values | self._distinct(x)

    def _entropy(self, x: Tensor) -> Tensor:
        """Mean over examples of the entropy of their token frequencies, in nats."""
        values = []
        for row in x:
            counts = torch.unique(row if self.pad is None else row[row != self.pad], return_counts=True)[1].double()
            values.append(entropy((counts / counts.sum()).log()))
        return torch.stack(values).mean()

    def _distinct(self, x: Tensor) -> dict[str, Tensor]:
        """Share of the n-grams of all examples that differ from each other."""
        values = {}
        live = torch.ones_like(x, dtype=torch.bool) if self.pad is None else x != self.pad
        grams, size = x, int(x.max()) + 1
        for n in range(1, self.max_n + 1):
            if n > 1:  # n-grams as pairs of a numbered (n-1)-gram and a token
                grams = grams[:, :-1] * size + x[:, n - 1 :]
            whole = live.unfold(1, n, 1).all(-1) if x.shape[1] >= n else live[:, :0]
            if not bool(whole.any()):
                break
            grams = torch.unique(grams, return_inverse=True)[1]
            number = torch.unique(grams[whole]).numel()
            values[f"distinct_{n}"] = torch.tensor(number / int(whole.sum()), device=x.device)
        return values
