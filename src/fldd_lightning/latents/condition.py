"""What comes with every example and samples can be asked for: labels and vectors."""

from __future__ import annotations

from abc import abstractmethod
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor, nn

from ..categorical import check_states
from ..errors import FLDDError
from ..ranges import AT_LEAST_TWO, BELOW_ONE, BETWEEN, COUNT, Range, check_numbers
from ..spec import Seen, Spec
from .base import Latent, PointPosterior

__all__ = ["ConditionLatent", "LabelLatent", "VectorLatent"]


class ConditionLatent(Latent):
    """Base class of latents that come with the data, and that samples can be given: y of pairs (x, y).

    Both networks see y. In training they may be kept from seeing it, for a share of the examples: y is *dropped*. One
    model is then two, p(x|y) and a p(x) that is not told y, and :class:`~fldd_lightning.Guided` takes both (Ho and
    Salimans, 2022). The loss stays a bound. Whether y is dropped is drawn by the same probability d in both processes,
    so it is a latent whose KL is 0, and

        (1 - d) NELBO(x|y) + d NELBO(x) - log p(y) >= -log p(y) [(1 - d) p(x|y) + d p(x)].

    A dropped example costs NELBO(x) - log p(y). ``train/nelbo`` is this sum. Evaluation drops nothing: ``val/nelbo``
    is the bound of the model that is told y.

    Args:
        spec: K and shape.
        key: What the batch calls y. It is the latent's name, too.
        size: How many labels there are, or how many numbers a vector has; None for what the data say.
        dropped: d, the share of the training examples whose y is dropped. Of several latents, half of that is drawn
            for all of them together, as guidance leaves all out, and half for each by itself, as samples may be given
            some of them.

    Raises:
        FLDDError: If the size is not given and the data do not say it, or the share is not in [0, 1); later, if a batch
            has no y, or one that cannot be.

    Attributes:
        size_option: What a subclass calls ``size``.
        sizes: Which it may be.
        shares: Which may be dropped.
    """

    size_option: str = "size"
    sizes: Range = COUNT
    shares: Range = BELOW_ONE

    def __init__(self, spec: Spec, key: str, size: int | None, dropped: float) -> None:
        check_numbers(locals(), dropped=self.shares)
        super().__init__(spec)
        found = spec.condition_sizes.get(key) if size is None else size
        if found is None:
            raise FLDDError(
                f"a {type(self).__name__} of '{key}' does not know its size. Use data that have '{key}', or give "
                f"{self.size_option}; from Python also condition_sizes=data.condition_sizes of the model."
            )
        check_numbers({"self": self, self.size_option: found}, **{self.size_option: self.sizes})
        self.name = self.key = key
        self.size, self.dropped = int(found), float(dropped)

    @abstractmethod
    def choose(self, values: Any) -> Tensor:
        """Latents ``(n, m)`` of values that a user chose: one value, or n of them; raises if they cannot be."""

    @abstractmethod
    def check_values(self, values: Tensor) -> None:
        """Raise FLDDError unless a batch's values can be."""

    def check(self, x: Tensor, batch: Any) -> None:
        """Raise FLDDError unless the batch has one value for every example, that can be; or none at all."""
        if not isinstance(batch, dict) or self.key not in batch:
            return
        values: Any = batch[self.key]
        if not isinstance(values, Tensor):
            raise FLDDError(f"{self.key} is a {type(values).__name__}, but in a batch it must be a tensor.")
        self.check_values(values)
        if len(values) != len(x):
            raise FLDDError(f"{self.key} has {len(values)} values, but the batch has {len(x)} examples.")

    def as_tensor(self, values: Any, what: str, **options: Any) -> Tensor:
        """Values that a user chose, of any shape; raises FLDDError if they are no ``what``."""
        try:
            return torch.as_tensor(values, **options)
        except (TypeError, ValueError, RuntimeError) as error:
            raise FLDDError(
                f"{self.key} is {shorten(repr(values), 80)}, but it must be {what}. To let it be drawn, leave it out."
            ) from error

    @abstractmethod
    def as_data(self, c: Tensor) -> Tensor:
        """Latents ``(B, m)`` as a batch has them."""

    def in_batch(self, batch: Any) -> Tensor:
        """What the batch has; raises FLDDError if there is nothing."""
        if not isinstance(batch, dict) or self.key not in batch:
            raise FLDDError(
                f"the data have no '{self.key}': use data that have it, or a model without a {type(self).__name__}."
            )
        value: Tensor = batch[self.key]
        return value

    def configuration(self) -> str:
        return f"{type(self).__name__}({self.size_option}={self.size}{', may be absent' if self.dropped else ''})"


class LabelLatent(ConditionLatent):
    """A label y that comes with every example: -log p(x, y) <= NELBO(x|y) - log p(y).

    Both networks see the label. Its frequencies p(y) are learned beside them, and samples draw y from them unless it is
    chosen. The bound of x given y is the whole bound less ``kl_{name}``.

    Args:
        spec: K and shape.
        num_labels: How many labels there are, ``0..num_labels-1``; None for what the data say.
        key: What the batch calls them. It is the latent's name, too.
        dropped: Share of the training examples whose label networks do not see; see :class:`ConditionLatent`.

    Raises:
        FLDDError: If there are fewer than two labels, or as for :class:`ConditionLatent`.
    """

    size_option = "num_labels"
    sizes = AT_LEAST_TWO

    def __init__(self, spec: Spec, num_labels: int | None = None, key: str = "label", dropped: float = 0.0) -> None:
        super().__init__(spec, key, num_labels, dropped)
        self.num_labels = self.size
        may_be_absent = self.dropped > 0
        self.seen = Seen(key, num_values=self.size + may_be_absent, may_be_absent=may_be_absent)
        self.logits = nn.Parameter(torch.zeros(self.size))

    def posterior(self, x: Tensor, batch: Any = None) -> PointPosterior:
        label = self.in_batch(batch).long()
        return PointPosterior(label[:, None], self.logits.log_softmax(0)[label])

    def sample(self, num_samples: int, generator: torch.Generator) -> Tensor:
        p = self.logits.detach().softmax(0).to(generator.device)
        return torch.multinomial(p, num_samples, True, generator=generator).unsqueeze(1)

    def choose(self, values: Any) -> Tensor:
        labels = self.as_tensor(values, f"a whole number from 0 to {self.size - 1}, or several")
        labels = labels.unsqueeze(0) if labels.dim() == 0 else labels
        self.check_values(labels.squeeze(1) if labels.dim() == 2 else labels)
        return labels.long().view(-1, 1)

    def as_data(self, c: Tensor) -> Tensor:
        return c[:, 0]

    def check_values(self, values: Tensor) -> None:
        """Raise FLDDError unless labels ``(B,)`` are integers ``0..num_labels-1``."""
        if values.is_floating_point() or not values.numel() or values.dim() != 1:
            wrong = f"has dtype {values.dtype}" if values.is_floating_point() else f"has shape {tuple(values.shape)}"
            wrong = wrong if values.numel() else "is empty"
            raise FLDDError(f"{self.key} {wrong}, but a label is a whole number from 0 to {self.size - 1}.")
        check_states(values[:, None], self.size, (1,), self.key, "labels")


class VectorLatent(ConditionLatent):
    """A vector e of real numbers that comes with every example, such as an embedding: -log p(x|e) <= NELBO(x|e).

    Both networks see it. There is no prior p(e): the bound is that of x given its vector, and ``kl_{name}`` is 0. A
    sample that is given no vector is drawn from the model that is not told one. So some have to be dropped.

    Args:
        spec: K and shape.
        size: How many numbers a vector has; None for what the data say.
        key: What the batch calls them, ``(B, size)``. It is the latent's name, too.
        dropped: Share of the training examples whose vector networks do not see; see :class:`ConditionLatent`.

    Raises:
        FLDDError: If the size is not positive or nothing is dropped, or as for :class:`ConditionLatent`.
    """

    shares = BETWEEN  # so that samples need none
    zero: Tensor

    def __init__(self, spec: Spec, size: int | None = None, key: str = "vector", dropped: float = 0.1) -> None:
        super().__init__(spec, key, size, dropped)
        self.seen = Seen(key, num_reals=self.size + 1, may_be_absent=True)  # the last says that there is one
        self.register_buffer("zero", torch.zeros(()), persistent=False)  # for the numbers of the networks

    def posterior(self, x: Tensor, batch: Any = None) -> PointPosterior:
        vector = self.in_batch(batch)
        return PointPosterior(self._with_presence(vector), torch.zeros(len(vector), device=vector.device))

    def sample(self, num_samples: int, generator: torch.Generator) -> Tensor:
        return torch.zeros(num_samples, self.size + 1, dtype=self.zero.dtype, device=generator.device)

    def choose(self, values: Any) -> Tensor:
        what = f"a vector of {self.size} numbers, or several"
        vectors = self.as_tensor(values, what, dtype=self.zero.dtype, device=self.zero.device)
        vectors = vectors.unsqueeze(0) if vectors.dim() == 1 else vectors
        self.check_values(vectors)
        return self._with_presence(vectors)

    def as_data(self, c: Tensor) -> Tensor:
        return c[:, : self.size]

    def _with_presence(self, vectors: Tensor) -> Tensor:
        numbers = vectors.to(self.zero.dtype)
        return torch.cat([numbers, torch.ones_like(numbers[:, :1])], 1)  # (B, size + 1)

    def check_values(self, values: Tensor) -> None:
        """Raise FLDDError unless vectors are finite numbers ``(B, size)``."""
        if values.dim() != 2 or values.shape[1] != self.size or not len(values):
            raise FLDDError(
                f"{self.key} has shape {tuple(values.shape)}, but the model takes vectors (number, {self.size})."
            )
        if not bool(values.isfinite().all()):
            raise FLDDError(f"{self.key} has numbers that are not finite. Replace them, or leave these examples out.")
