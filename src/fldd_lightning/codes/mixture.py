"""A code of the whole example: a mixture of products, fitted by expectation maximisation."""

from __future__ import annotations

from functools import cached_property
from math import log

import torch
from torch import Tensor

from ..categorical import sample_from_uniform
from ..problem import Problem
from .base import CodePosterior, hold_out
from .tables import CHUNK, count, count_all, log_likelihood, normalised
from .tabular import TableCode, affordable, sizes_to_try, started_from

__all__ = ["MixtureCode"]

_ITERATIONS = 25
_LOOK_UPS = 2**33  # in a round of fitting, at most


class MixturePosterior(CodePosterior):
    """q(c|x) of a mixture.

    Args:
        given: log p(x|c), ``(B, C)``.
        log_prior: log p(c), ``(C,)``.
    """

    def __init__(self, given: Tensor, log_prior: Tensor) -> None:
        self.given, self.log_joint = given, given + log_prior

    @cached_property
    def _nll(self) -> Tensor:
        return -self.log_joint.logsumexp(-1)

    @cached_property
    def log_q(self) -> Tensor:
        """Log q(c|x), ``(B, C)``."""
        return self.log_joint.log_softmax(-1)

    def draw(self, uniform: Tensor) -> Tensor:
        return sample_from_uniform(self.log_q, uniform[:, 0]).unsqueeze(1)

    def likely(self) -> Tensor:
        return self.log_q.argmax(-1, keepdim=True)

    def kl(self, code: Tensor | None = None) -> Tensor:
        expected = (self.log_joint.softmax(-1) * self.given).sum(-1)
        return (expected + self._nll).clamp_min(0)

    def nll(self, code: Tensor | None = None) -> Tensor:
        return self._nll


class MixtureCode(TableCode):
    """One number c of the example, with a table p(c); both networks see it as they see a label.

    :meth:`fit` tries mixtures of 1, 4, 16, ... components up to ``size`` and keeps the one that is most likely to have
    made examples held out of its training. Where no mixture is better than a product of marginals all examples
    have the same code, which costs nothing. So it is before fitting. Coordinates at PAD do not count.

    Args:
        problem: K and shape.
        size: C, the most components there may be.
        smoothing: Examples' worth of the data's marginals that every component is blended with.

    Attributes:
        log_prior: log p(c), ``(C,)``; ``-inf`` for codes not in use.

    Raises:
        FLDDError: As for :class:`~fldd_lightning.codes.TableCode`.
    """

    log_prior: Tensor

    def __init__(self, problem: Problem, size: int = 256, smoothing: float = 1.0) -> None:
        super().__init__(problem, size, 1, smoothing)
        log_prior = torch.full((size,), float("-inf"))
        log_prior[0] = 0.0
        self.register_buffer("log_prior", log_prior)

    @property
    def num_examples(self) -> int:
        return affordable(self.problem.num_dims * self.size, _LOOK_UPS)

    @property
    def num_used(self) -> int:
        return int(self.log_prior.isfinite().sum())

    def posterior(self, x: Tensor) -> MixturePosterior:
        return _posterior(x, self.log_prior, self.log_conditional)

    def log_conditional_of(self, code: Tensor) -> Tensor:
        return self.log_conditional.index_select(-1, code[:, 0]).movedim(-1, 0)

    def sample(self, num_samples: int, generator: torch.Generator) -> Tensor:
        p = self.log_prior.exp().to(generator.device)
        return torch.multinomial(p, num_samples, True, generator=generator).unsqueeze(1)

    @torch.no_grad()
    def fit(self, x: Tensor, seed: int = 0) -> dict[str, float]:
        held, kept = hold_out(x, seed)
        sizes = sizes_to_try(self.most_values(len(x), len(kept)), first=0)
        counts = count_all(kept, self.problem)
        marginals = counts / counts.sum(-2, keepdim=True)
        fits = [self._maximise(kept, size, marginals) for size in sizes]
        nll = [float(_posterior(held, *each).nll().cpu().double().mean()) for each in fits]
        chosen = nll.index(min(nll))
        log_prior, log_conditional = fits[chosen]
        self.log_prior.fill_(float("-inf"))[: len(log_prior)] = log_prior
        self.log_conditional.zero_()[..., : len(log_prior)] = log_conditional
        self.is_fitted.fill_(True)
        return {"codes": self.num_used, "nll": nll[chosen], "nll_marginals": nll[0]}

    def _maximise(self, x: Tensor, size: int, marginals: Tensor) -> tuple[Tensor, Tensor]:
        """Log p(c) and log p(x_i|c) after some rounds; components start from the first examples of x."""
        num_classes, pad = self.problem.num_classes, self.problem.pad
        if size == 1:
            return torch.zeros(1, device=x.device), normalised(marginals, pad)
        log_conditional = started_from(x[:size], marginals, self.problem)
        log_prior = torch.full((size,), -log(size), device=x.device)
        for _ in range(_ITERATIONS):
            parts = torch.split(x, CHUNK)
            r = torch.cat([_posterior(part, log_prior, log_conditional).log_joint.softmax(-1) for part in parts])
            log_conditional = normalised(count(x, r, num_classes, pad) + self.smoothing * marginals, pad)
            log_prior = r.mean(0).log()
        return log_prior, log_conditional


def _posterior(x: Tensor, log_prior: Tensor, log_conditional: Tensor) -> MixturePosterior:
    return MixturePosterior(log_likelihood(x, log_conditional), log_prior)
