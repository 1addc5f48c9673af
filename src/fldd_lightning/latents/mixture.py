"""A latent of the whole example: a mixture of products, fitted by expectation maximisation."""

from __future__ import annotations

from math import log
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..spec import Spec
from .base import LatentPosterior, hold_out
from .tables import CHUNK, count, marginals_of, normalised
from .tabular import TableLatent, affordable, sizes_to_try, started_from

__all__ = ["MixtureLatent", "MixturePosterior", "log_likelihood"]

_ITERATIONS = 25
_NEGLIGIBLE = 1e-30  # posterior probabilities below are 0: products of denormal numbers are slow
_LOOK_UPS = 2**33  # in a round of fitting, at most


class MixturePosterior(LatentPosterior):
    """q(c|x) of a mixture.

    Args:
        x: Data ``(B, *shape)``.
        log_prior: log p(c), ``(C,)``.
        log_conditional: log p(x_i|c), ``(*shape, K, C)``.
        weights: 1 for coordinates that are given and 0 for others, ``(B, *shape)``; all are given if None.
    """

    def __init__(self, x: Tensor, log_prior: Tensor, log_conditional: Tensor, weights: Tensor | None = None) -> None:
        self.x, self.log_conditional = x, log_conditional
        self.given = log_likelihood(x, log_conditional, weights)  # (B, C)
        self.log_joint = self.given + log_prior
        self.log_q = self.log_joint.log_softmax(-1)  # log q(c|x), (B, C)
        self._q = self.log_q.exp()

    @property
    def _nll(self) -> Tensor:
        return -self.log_joint.logsumexp(-1)

    def draw(self, uniform: Tensor) -> Tensor:
        cumulative = self._q.detach().to(uniform).cumsum(-1)  # (B, C), in float64
        c = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True).clamp_max(cumulative.shape[1] - 1)
        return c.to(self.log_q.device)

    def log_prob(self, c: Tensor) -> Tensor:
        return self.log_q.gather(-1, c).squeeze(-1)

    def said(self, c: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        given = log_likelihood(self.x, self.log_conditional.detach(), weights)  # (B, C)
        return given.gather(-1, c).squeeze(-1), (self._q * given).sum(-1)

    def likely(self) -> Tensor:
        return self.log_q.argmax(-1, keepdim=True)

    def kl(self, c: Tensor | None = None) -> Tensor:
        expected = (self._q * self.given).sum(-1)
        return (expected + self._nll).clamp_min(0)

    def nll(self, c: Tensor | None = None) -> Tensor:
        return self._nll


class MixtureLatent(TableLatent):
    """One number c of the example, with a table p(c); both networks see it as they see a label.

    :meth:`fit` tries mixtures of 1, 4, 16, ... components up to ``size`` and keeps the one that is most likely to have
    made examples held out of its training. Where no mixture is better than a product of marginals all examples
    have the same c, which costs nothing. So it is before fitting. Coordinates at PAD do not count.

    Args:
        spec: K and shape.
        size: C, the most components there may be.
        smoothing: Examples' worth of the data's marginals that every component is blended with.

    Attributes:
        log_prior: log p(c), ``(C,)``; ``-inf`` for values not in use.

    Raises:
        FLDDError: As for :class:`~fldd_lightning.latents.TableLatent`.
    """

    name = "mixture"
    log_prior: Tensor

    def __init__(self, spec: Spec, size: int = 256, smoothing: float = 1.0) -> None:
        super().__init__(spec, size, 1, smoothing)
        log_prior = torch.full((size,), float("-inf"))
        log_prior[0] = 0.0
        self.register_buffer("log_prior", log_prior)

    @property
    def num_examples(self) -> int:
        return affordable(self.spec.num_dims * self.size, _LOOK_UPS)

    @property
    def num_used(self) -> int:
        return int(self.log_prior.isfinite().sum())

    def posterior(self, x: Tensor, batch: Any = None) -> MixturePosterior:
        return MixturePosterior(x, self.log_prior, self.log_conditional)

    def posterior_given(self, x: Tensor, is_given: Tensor) -> MixturePosterior:
        return MixturePosterior(x, self.log_prior, self.log_conditional, is_given)

    def log_conditional_of(self, c: Tensor) -> Tensor:
        return self.log_conditional.index_select(-1, c[:, 0]).movedim(-1, 0)

    def sample(self, num_samples: int, generator: torch.Generator) -> Tensor:
        p = self.log_prior.exp().to(generator.device)
        return torch.multinomial(p, num_samples, True, generator=generator).unsqueeze(1)

    @torch.no_grad()
    def fit(self, x: Tensor, seed: int = 0) -> dict[str, float]:
        held, kept = hold_out(x, seed)
        sizes = sizes_to_try(self.most_values(len(x), len(kept)), first=0)
        marginals = marginals_of(kept, self.spec)
        fits = [self._maximise(kept, size, marginals) for size in sizes]
        nll = [float(MixturePosterior(held, *each).nll().cpu().double().mean()) for each in fits]
        chosen = nll.index(min(nll))
        log_prior, log_conditional = fits[chosen]
        self.log_prior.fill_(float("-inf"))[: len(log_prior)] = log_prior
        self.log_conditional.zero_()[..., : len(log_prior)] = log_conditional
        self.is_fitted.fill_(True)
        return {"values": self.num_used, "nll": nll[chosen], "nll_marginals": nll[0]}

    def _maximise(self, x: Tensor, size: int, marginals: Tensor) -> tuple[Tensor, Tensor]:
        """Log p(c) and log p(x_i|c) after some rounds; components start from the first examples of x."""
        num_classes, pad = self.spec.num_classes, self.spec.pad
        if size == 1:
            return torch.zeros(1, device=x.device), normalised(marginals, pad)
        log_conditional = started_from(x[:size], marginals, self.spec)
        log_prior = torch.full((size,), -log(size), device=x.device)
        for _ in range(_ITERATIONS):
            parts = torch.split(x, CHUNK)
            r = torch.cat([MixturePosterior(part, log_prior, log_conditional).log_joint.softmax(-1) for part in parts])
            r = F.threshold(r, _NEGLIGIBLE, 0.0)
            log_conditional = normalised(count(x, r, num_classes, pad) + self.smoothing * marginals, pad)
            log_prior = r.mean(0).log()
        return log_prior, log_conditional


def log_likelihood(x: Tensor, log_conditional: Tensor, weights: Tensor | None = None) -> Tensor:
    """Log p(x|c), ``(B, C)``, of ``(B, *shape)`` under ``(*shape, K, C)``; PAD has 0 there.

    With weights ``(B, *shape)`` of the coordinates it is their weighted sum.
    """
    device = torch.device("cpu") if x.device.type == "mps" else x.device  # MPS has no embedding_bag
    flat = x.flatten(1).to(device)  # (B, D)
    first = log_conditional.shape[-2] * torch.arange(flat.shape[1], device=device)
    table = log_conditional.flatten(0, -2).to(device)  # (D * K, C)
    each = None if weights is None else weights.flatten(1).to(table)  # (B, D)
    if each is not None:
        flat = flat.where(each != 0, 0)  # a value that every coordinate has: 0 times -inf is no number
    return F.embedding_bag(flat + first, table, mode="sum", per_sample_weights=each).to(x.device)
