"""A hidden Markov model: its tables, passes forward and back through it, and the posterior they give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..categorical import sample_from_uniform
from ..errors import FLDDError
from ..lazy import lazy
from ..spec import Spec
from .base import LatentPosterior
from .mixture import log_likelihood

__all__ = ["Chain", "ChainPosterior", "Filtered", "filtered", "neighbours", "parts_of", "scores", "smoothed"]


@dataclass(frozen=True)
class Chain:
    """Log p(c_1) ``(C,)``, log p(c_{j+1}|c_j) ``(m - 1, C, C)`` and log p(x_i|c_j) ``(D, K, C)``."""

    first: Tensor
    following: Tensor
    conditional: Tensor

    def sample(self, num_samples: int, generator: torch.Generator) -> Tensor:
        """Draw c from the prior, ``(N, m)`` on the generator's device."""
        first, following = (each.exp().to(generator.device) for each in (self.first, self.following))
        numbers = [torch.multinomial(first, num_samples, True, generator=generator)]
        for table in following:
            numbers.append(torch.multinomial(table[numbers[-1]], 1, generator=generator).squeeze(1))
        return torch.stack(numbers, 1)


@dataclass(frozen=True)
class Filtered:
    """What a pass forward finds.

    Attributes:
        log_p: log p(x), ``(B,)``.
        past: q(c_j|x up to part j), ``(B, m, C)``.
        ratios: p(x_j|c_j) over p(x_j|x before j), which :func:`smoothed` goes back with, ``(B, m, C)``.
    """

    log_p: Tensor
    past: Tensor
    ratios: Tensor


class ChainPosterior(LatentPosterior):
    """q(c|x) of a chain.

    Args:
        x: Data ``(B, D)``.
        chain: The tables.
        lengths: How many coordinates each part has.
        weights: 1 for coordinates that are given and 0 for others, ``(B, D)``; all are given if None.
    """

    def __init__(self, x: Tensor, chain: Chain, lengths: list[int], weights: Tensor | None = None) -> None:
        self.x, self.chain, self.lengths = x, chain, lengths
        self.scores = scores(x, chain.conditional, lengths, weights)  # (B, m, C)

    @lazy
    def _forward(self) -> Filtered:
        return filtered(self.scores, self.chain)

    @lazy
    def _log_past(self) -> Tensor:
        return self._forward.past.log()

    @lazy
    def _q(self) -> Tensor:
        """q(c_j|x), ``(B, m, C)``."""
        return smoothed(self._forward, self.chain)[0]

    def draw(self, uniform: Tensor) -> Tensor:
        log_past, following = self._log_past.detach(), self.chain.following.detach()
        parts = [sample_from_uniform(log_past[:, -1], uniform[:, -1])]
        for j in range(log_past.shape[1] - 2, -1, -1):
            log_q = log_past[:, j] + following[j].T[parts[0]]  # (B, C)
            parts.insert(0, sample_from_uniform(log_q, uniform[:, j]))
        return torch.stack(parts, 1)

    def said(self, c: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        given = scores(self.x, self.chain.conditional.detach(), self.lengths, weights)  # (B, m, C)
        return given.gather(-1, c.unsqueeze(-1)).sum((1, 2)), (self._q * given).sum((1, 2))

    def likely(self) -> Tensor:
        return self._q.argmax(-1)

    def log_prob(self, c: Tensor) -> Tensor:
        given = self.scores.gather(-1, c.unsqueeze(-1)).sum((1, 2))  # log p(x|c)
        j = torch.arange(c.shape[1] - 1, device=c.device)
        prior = self.chain.first[c[:, 0]] + self.chain.following[j, c[:, :-1], c[:, 1:]].sum(1)
        return given + prior - self._forward.log_p

    def kl(self, c: Tensor | None = None) -> Tensor:
        return ((self._q * self.scores).sum((1, 2)) - self._forward.log_p).clamp_min(0)

    def nll(self, c: Tensor | None = None) -> Tensor:
        return -self._forward.log_p


def parts_of(spec: Spec, part: int) -> list[int]:
    """How many coordinates each part of a sequence has; raises FLDDError if it is none, or ``part`` is not positive."""
    if len(spec.shape) != 1:
        raise FLDDError(
            f"a chain of latents needs sequences, shape (length,), not {spec.shape}. Use a mixture for other data."
        )
    if part < 1:
        raise FLDDError(f"part is {part}, but a part has at least one coordinate.")
    lengths: list[int] = torch.tensor(spec.part_of(-(-spec.num_dims // part))).bincount().tolist()
    return lengths


def scores(x: Tensor, conditional: Tensor, lengths: list[int], weights: Tensor | None = None) -> Tensor:
    """Log p(x_part|c) of every part, ``(B, m, C)``.

    Args:
        x: Data ``(B, D)``.
        conditional: log p(x_i|c_j), ``(D, K, C)``.
        lengths: How many coordinates each part has.
        weights: Of the coordinates, ``(B, D)``; 1 if None.
    """
    each = [None] * len(lengths) if weights is None else torch.split(weights, lengths, 1)
    parts = zip(torch.split(x, lengths, 1), torch.split(conditional, lengths), each, strict=True)
    return torch.stack([log_likelihood(*part) for part in parts], 1)


def filtered(scores: Tensor, chain: Chain) -> Filtered:
    """Forward through the chain, for log p(x_part|c) ``(B, m, C)``."""
    largest = scores.amax(-1, keepdim=True)
    likelihood, following = (scores - largest).exp(), chain.following.exp()
    predicted = chain.first.exp().expand_as(likelihood[:, 0])
    past: list[Tensor] = []
    ratios, log_p = [], largest.sum((1, 2))
    with _exactly(scores):
        for j in range(scores.shape[1]):
            if j > 0:
                predicted = past[-1] @ following[j - 1]
            joint = predicted * likelihood[:, j]
            total = joint.sum(-1, keepdim=True)
            past.append(joint / total)
            ratios.append(likelihood[:, j] / total)
            log_p = log_p + total.squeeze(-1).log()
    return Filtered(log_p, torch.stack(past, 1), torch.stack(ratios, 1))


def smoothed(forward: Filtered, chain: Chain) -> tuple[Tensor, list[Tensor]]:
    """Back through the chain.

    Args:
        forward: What :func:`filtered` found.
        chain: The tables.

    Returns:
        q(c_j|x) ``(B, m, C)``; and, for :func:`neighbours`, p(x after j|c_{j+1}) over p(x after j|x up to j), m - 1
        times ``(B, C)``.
    """
    past, ratios, following = forward.past, forward.ratios, chain.following.exp()
    future = torch.ones_like(past[:, 0])  # p(x after j|c_j) over p(x after j|x up to j)
    q = [past[:, -1]]
    ahead: list[Tensor] = []
    with _exactly(past):
        for j in range(past.shape[1] - 2, -1, -1):
            ahead.insert(0, ratios[:, j + 1] * future)
            future = ahead[0] @ following[j].T
            q.insert(0, past[:, j] * future)
    posterior = torch.stack(q, 1)
    return posterior / posterior.sum(-1, keepdim=True), ahead  # the sums are 1 but for rounding


def neighbours(forward: Filtered, ahead: Sequence[Tensor], chain: Chain) -> Tensor:
    """Counts of neighbouring numbers.

    Args:
        forward: What :func:`filtered` found.
        ahead: What :func:`smoothed` found beside the posterior.
        chain: The tables.

    Returns:
        q(c_j, c_{j+1}|x) summed over x, ``(m - 1, C, C)``.
    """
    following = chain.following.exp()
    pairs = torch.empty_like(following)
    with _exactly(following):
        for j, each in enumerate(ahead):
            pairs[j] = (forward.past[:, j].T @ each) * following[j]
    return pairs


def _exactly(scores: Tensor) -> torch.autocast:
    """Products in float32, also where training is in mixed precision: a latent's KL is part of the bound."""
    return torch.autocast(scores.device.type, enabled=False)
