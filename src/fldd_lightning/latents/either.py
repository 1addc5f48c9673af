"""One of several latents, which of them being a number of its own, trained with the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from ..categorical import sample_from_uniform
from ..errors import FLDDError
from ..factory import build
from ..lazy import lazy
from ..spec import Seen, Spec
from .base import Latent, LatentPosterior
from .trained_chain import TrainedChainLatent
from .trained_mixture import TrainedMixtureLatent

__all__ = ["EitherLatent"]

_SCALE = 10.0  # of the weights, as of the tables of a mixture


class EitherPosterior(LatentPosterior):
    """q(m, c|x).

    Args:
        posteriors: q(c|x, m) of every m.
        log_weights: Log p(m), ``(n,)``.
        latent: What numbers c of each m are called as numbers of all.
    """

    def __init__(self, posteriors: Sequence[LatentPosterior], log_weights: Tensor, latent: EitherLatent) -> None:
        self.posteriors, self.log_weights, self.latent = posteriors, log_weights, latent

    @lazy
    def _log_p(self) -> Tensor:
        """Log p(x|m), ``(B, n)``; the posteriors are exact, so that no draw is needed."""
        empty = torch.zeros(0)
        return torch.stack([-each.nll(empty) for each in self.posteriors], -1)

    @lazy
    def _log_q(self) -> Tensor:
        """Log q(m|x), ``(B, n)``."""
        return (self.log_weights + self._log_p).log_softmax(-1)

    def draw(self, uniform: Tensor) -> Tensor:
        which = sample_from_uniform(self._log_q.detach(), uniform[:, 0])  # (B,)
        drawn = [
            posterior.draw(uniform[:, 1 : 1 + each.num_uniforms])
            for posterior, each in zip(self.posteriors, self.latent.latents, strict=True)
        ]
        return self.latent.as_one(which, drawn)

    def likely(self) -> Tensor:
        return self.latent.as_one(self._log_q.argmax(-1), [each.likely() for each in self.posteriors])

    def log_prob(self, c: Tensor) -> Tensor:
        which, numbers = self.latent.as_each(c)
        each = zip(self.posteriors, numbers, strict=True)
        log_q = torch.stack([posterior.log_prob(number) for posterior, number in each], -1) + self._log_q
        return log_q.gather(-1, which[:, None]).squeeze(-1)

    def said(self, c: Tensor, weights: Tensor) -> tuple[Tensor, Tensor] | None:
        which, numbers = self.latent.as_each(c)
        each = [posterior.said(number, weights) for posterior, number in zip(self.posteriors, numbers, strict=True)]
        if any(pair is None for pair in each):
            return None
        at_draw, mean = (torch.stack(values, -1) for values in zip(*each, strict=True))
        return at_draw.gather(-1, which[:, None]).squeeze(-1), (self._log_q.exp() * mean).sum(-1)

    def kl(self, c: Tensor) -> Tensor:
        given = torch.stack([each.kl(c) for each in self.posteriors], -1) + self._log_p  # E log p(x|c, m)
        return ((self._log_q.exp() * given).sum(-1) + self.nll(c)).clamp_min(0)

    def nll(self, c: Tensor) -> Tensor:
        return -(self.log_weights + self._log_p).logsumexp(-1)

    def alone(self, c: Tensor) -> Tensor:
        """Of all together, and of each by itself: else one that learns fast leaves nothing to the other."""
        return self.nll(c) - self._log_p.sum(-1)


class EitherLatent(Latent):
    """Either a number of the whole or a chain of numbers of the parts: which of them, m, is drawn first.

    p(m, c) = p(m) p(c|m), with p(m) learned. Nobody need know beforehand which of the two suits the data: the one that
    makes examples more likely is drawn, and the other costs nothing. Two latents side by side would say much twice, and
    cost the KL of both.

    Networks see one number for each part. Numbers of the second latent follow those of the first; a number of the whole
    stands at every part.

    Args:
        spec: K and a shape of ``(length,)``.
        latents: Make the latents, of one number of the whole or of one for each part. Each must be trained with the
            rest, have an exact posterior, and say something of the values.

    Attributes:
        logits: Of p(m), divided by 10, ``(n,)``.

    Raises:
        FLDDError: If a latent is of another kind, or the latents differ in their parts.
    """

    name = "either"
    says_values = True
    has_score = True
    announcement = "Starting the {name} from"
    latents: Sequence[Latent]
    ends: Tensor

    def __init__(
        self,
        spec: Spec,
        latents: Sequence[Callable[[Spec], Latent]] = (TrainedMixtureLatent, TrainedChainLatent),
    ) -> None:
        super().__init__(spec)
        modules = nn.ModuleList(build(each, Latent, spec) for each in latents)
        self.latents = modules  # type: ignore[assignment]
        for each in self.latents:
            if not (each.has_score and each.says_values and each.seen is not None and each.seen.num_values):
                raise FLDDError(
                    f"EitherLatent takes latents of whole numbers that are trained with the rest, such as "
                    f"TrainedMixtureLatent and TrainedChainLatent, not {type(each).__name__}."
                )
        self._sizes = [each.seen.num_values for each in self.latents if each.seen is not None]
        self._parts = [each.seen.num_parts for each in self.latents if each.seen is not None]
        self._most = max(self._parts, default=0)
        if len(self._sizes) < 2 or any(parts not in (1, self._most) for parts in self._parts):
            raise FLDDError("EitherLatent takes two latents or more, of one number or of as many parts as the others.")
        self.seen = Seen(self.name, num_values=sum(self._sizes), num_parts=self._most)
        self.num_uniforms = 1 + max(each.num_uniforms for each in self.latents)
        self.logits = nn.Parameter(torch.zeros(len(self._sizes)))
        self.register_buffer("ends", torch.tensor(self._sizes).cumsum(0), persistent=False)  # of the numbers of each

    @property
    def num_examples(self) -> int:
        return max(each.num_examples for each in self.latents)

    @property
    def log_weights(self) -> Tensor:
        """Log p(m), ``(n,)``."""
        return (_SCALE * self.logits).log_softmax(0)

    def as_one(self, which: Tensor, numbers: Sequence[Tensor]) -> Tensor:
        """Numbers of the latent m ``(B,)``, of those of every latent, ``(B, its parts)``, as ``(B, parts)``."""
        starts = [sum(self._sizes[:i]) for i in range(len(self._sizes))]
        each = [start + number.expand(-1, self._most) for start, number in zip(starts, numbers, strict=True)]
        return torch.stack(each, -1).gather(-1, which[:, None, None].expand(-1, self._most, 1)).squeeze(-1)

    def as_each(self, c: Tensor) -> tuple[Tensor, list[Tensor]]:
        """What :meth:`as_one` was given; of latents other than m some number or other.

        Args:
            c: Numbers ``(B, parts)``.
        """
        which = torch.bucketize(c[:, 0].contiguous(), self.ends, right=True)  # (B,)
        each = zip(self._sizes, self._parts, accumulate(self._sizes), strict=True)
        return which, [(c - (end - size)).clamp(0, size - 1)[:, :parts] for size, parts, end in each]

    def posterior(self, x: Tensor, batch: Any = None) -> EitherPosterior:
        return EitherPosterior([each.posterior(x, batch) for each in self.latents], self.log_weights, self)

    def posterior_given(self, x: Tensor, is_given: Tensor) -> EitherPosterior | None:
        each = [known for latent in self.latents if (known := latent.posterior_given(x, is_given)) is not None]
        return EitherPosterior(each, self.log_weights, self) if len(each) == len(self.latents) else None

    def log_conditional_of(self, c: Tensor) -> Tensor:
        which, numbers = self.as_each(c)
        each = zip(self.latents, numbers, strict=True)
        log_p = torch.stack([latent.log_conditional_of(number) for latent, number in each])  # (n, B, *shape, K)
        return log_p[which, torch.arange(len(which), device=c.device)]

    @torch.no_grad()
    def sample(self, num_samples: int, generator: torch.Generator) -> Tensor:
        p = self.log_weights.exp().to(generator.device)
        which = torch.multinomial(p, num_samples, True, generator=generator)
        return self.as_one(which, [each.sample(num_samples, generator) for each in self.latents])

    def fit(self, x: Tensor, seed: int = 0) -> dict[str, float]:
        """Start each of the latents; returns nothing to log."""
        for each in self.latents:
            each.fit(x[: each.num_examples], seed)
        self.is_fitted.fill_(True)
        return {}

    def anneal(self, progress: float) -> None:
        for each in self.latents:
            each.anneal(progress)
        self.weight_alone = max(each.weight_alone for each in self.latents)
        self.weight = min(each.weight for each in self.latents)

    def summary(self) -> str:
        pairs = zip(self.log_weights.detach().exp().tolist(), self.latents, strict=True)
        return ", or ".join(f"{100 * p:.0f} % {each.summary()}" for p, each in pairs)

    def configuration(self) -> str:
        return f"{type(self).__name__}({', '.join(each.configuration() for each in self.latents)})"
