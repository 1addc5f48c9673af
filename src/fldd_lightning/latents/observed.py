"""Latents that the data say: labels, and the lengths of padded sequences. Their posterior is a point."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..categorical import check_states
from ..errors import FLDDError
from ..ranges import AT_LEAST_TWO, check_numbers
from ..spec import Seen, Spec
from .base import MOST_EXAMPLES, Latent, PointPosterior

__all__ = ["LabelLatent", "LengthLatent"]


class LabelLatent(Latent):
    """A label y that comes with every example: -log p(x, y) <= NELBO(x|y) - log p(y).

    Both networks see the label. Its frequencies p(y) are learned beside them, and samples draw y from them. The
    bound of x given y is the whole bound less ``kl_label``.

    Args:
        spec: K and shape.
        num_labels: How many labels there are, ``0..num_labels-1``.
        key: What the batch calls them.

    Raises:
        FLDDError: If there are fewer than two labels; later, if a batch has none, or others.
    """

    name = "label"

    def __init__(self, spec: Spec, num_labels: int, key: str = "label") -> None:
        check_numbers(locals(), num_labels=AT_LEAST_TWO)
        super().__init__(spec)
        self.num_labels, self.key = num_labels, key
        self.seen = Seen(self.name, num_values=num_labels)
        self.logits = nn.Parameter(torch.zeros(num_labels))

    def posterior(self, x: Tensor, batch: Any = None) -> PointPosterior:
        if not isinstance(batch, dict) or self.key not in batch:
            raise FLDDError(
                f"the data have no '{self.key}': use a data set with labels, or a model without a LabelLatent."
            )
        label: Tensor = batch[self.key].long()
        return PointPosterior(label[:, None], self.logits.log_softmax(0)[label])

    def check(self, x: Tensor, batch: Any) -> None:
        """Raise FLDDError unless the batch's labels are integers ``0..num_labels-1``."""
        if isinstance(batch, dict) and self.key in batch:
            check_states(batch[self.key][:, None], self.num_labels, (1,), self.key)

    def sample(self, num_samples: int, generator: torch.Generator) -> Tensor:
        p = self.logits.detach().softmax(0).to(generator.device)
        return torch.multinomial(p, num_samples, True, generator=generator).unsqueeze(1)

    def configuration(self) -> str:
        return f"{type(self).__name__}(num_labels={self.num_labels})"


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
