"""The length of padded sequences, a latent that the data say."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import FLDDError
from ..spec import Spec
from .base import MOST_EXAMPLES, Latent, PointPosterior

__all__ = ["LengthLatent"]


class LengthLatent(Latent):
    """The length n of a padded sequence: -log p(x) <= -log p(n) + NELBO(x|n).

    PAD itself is given with n and costs nothing, so networks need not be told more than where PAD is. Samples draw n
    first. p(n) is the smoothed frequency of the lengths of up to 50,000 training examples, which :meth:`fit` counts.

    Args:
        spec: K, with PAD, and a shape of ``(length,)``.

    Attributes:
        log_prior: log p(n), ``(length + 1,)``; the same for all n of 1 and more before they are counted.

    Raises:
        FLDDError: If the shape is not that of a sequence, or there is no PAD; later, if PAD stands before a token or
            alone.
    """

    name = "length"
    log_prior: Tensor

    def __init__(self, spec: Spec) -> None:
        super().__init__(spec)
        if len(spec.shape) != 1 or spec.pad is None:
            raise FLDDError("a LengthLatent needs padded sequences, shape (length,): set data.padded to true.")
        self._pad: int = spec.pad
        self.register_buffer("log_prior", self._smoothed(torch.zeros(spec.num_dims + 1)).float())

    @property
    def num_examples(self) -> int:
        return MOST_EXAMPLES

    def lengths(self, x: Tensor) -> Tensor:
        """Tokens of each example that are not PAD, ``(B,)`` for ``(B, length)``."""
        return torch.ne(x, self._pad).sum(1)

    def posterior(self, x: Tensor, batch: Any = None) -> PointPosterior:
        n = self.lengths(x)
        return PointPosterior(n[:, None], self.log_prior[n])

    def check(self, x: Tensor, batch: Any) -> None:
        """Raise FLDDError if PAD stands before a token, or an example is nothing but PAD."""
        live = torch.ne(x, self._pad)
        if bool((live[:, 1:] & ~live[:, :-1]).any()):
            raise FLDDError("PAD stands before a token: pad examples at their end only.")
        if not bool(live[:, 0].all()):
            raise FLDDError("an example has no token but PAD: leave it out.")

    def sample(self, num_samples: int, generator: torch.Generator) -> Tensor:
        p = self.log_prior.exp().to(generator.device)
        return torch.multinomial(p, num_samples, True, generator=generator).unsqueeze(1)

    def sample_given(self, x: Tensor, is_given: Tensor, generator: torch.Generator) -> Tensor:
        """Lengths ``(B, 1)`` that what is given leaves possible, by their frequency.

        Raises:
            FLDDError: If a token is given behind a PAD.
        """
        place = 1 + torch.arange(self.spec.num_dims, device=x.device)
        is_pad = x == self._pad
        least = (place * (is_given & ~is_pad)).amax(1, keepdim=True)  # up to the last token
        most = torch.where(is_given & is_pad, place - 1, self.spec.num_dims).amin(1, keepdim=True)
        n = torch.arange(self.spec.num_dims + 1, device=x.device)
        p = self.log_prior.to(x.device).exp() * ((n >= least) & (n <= most))  # (B, length + 1)
        if not bool((p.sum(1) > 0).all()):
            raise FLDDError("a token is given behind a PAD, or nothing but PAD: PAD stands at the end only.")
        return torch.multinomial(p.to(generator.device), 1, True, generator=generator)

    def padding(self, c: Tensor) -> Tensor:
        return torch.arange(self.spec.num_dims, device=c.device) >= c

    def fit(self, x: Tensor, seed: int = 0) -> dict[str, float]:
        counts = self.lengths(x).bincount(minlength=self.spec.num_dims + 1)
        self.log_prior.copy_(self._smoothed(counts))
        self.is_fitted.fill_(True)
        return {"mean": float(self.lengths(x).double().mean())}

    def summary(self) -> str:
        mean = float((self.log_prior.exp() * torch.arange(self.spec.num_dims + 1, device=self.log_prior.device)).sum())
        return f"Lengths have been counted: {mean:.1f} tokens in the mean"

    def _smoothed(self, counts: Tensor) -> Tensor:
        """Log frequencies in float64, one added to the count of each length but 0."""
        smoothed = counts.double() + 1
        smoothed[0] = 0
        return (smoothed / smoothed.sum()).log()
