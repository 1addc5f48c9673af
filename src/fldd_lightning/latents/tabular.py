"""Latents of whole numbers, with tables of what every value says of every coordinate."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from ..errors import FLDDError
from ..ranges import AT_LEAST_TWO, COUNT, POSITIVE, check_numbers
from ..spec import MOST_NUMBERS, Seen, Spec
from .base import MOST_EXAMPLES, Latent
from .tables import count, normalised

__all__ = ["TableLatent", "affordable", "check_table", "sizes_to_try", "started_from"]

_BLEND = 0.3  # of an example in the value that starts from it; the rest are the marginals
_FEWEST_EXAMPLES = 20  # for more than one value


class TableLatent(Latent):
    """Base class of latents whose numbers are 0..C-1, fitted by expectation maximisation.

    With T = 1 the best q(c|x) is the posterior of the model, and expectation maximisation ascends the bound itself.

    Args:
        spec: K and shape.
        size: C, the most values c_j may take.
        num_parts: m, how many numbers there are of an example.
        smoothing: Examples' worth of what they have in common that the tables of every value are blended with.

    Attributes:
        log_conditional: log p(x_i|c_j), ``(*shape, K, C)``, for the part j that i belongs to; 0 at PAD.

    Raises:
        FLDDError: If the size is below 2, the smoothing is not positive, or the table would be larger than 256 MiB.
    """

    says_values = True
    log_conditional: Tensor

    def __init__(self, spec: Spec, size: int, num_parts: int, smoothing: float) -> None:
        check_numbers(locals(), size=AT_LEAST_TWO, num_parts=COUNT, smoothing=POSITIVE)
        super().__init__(spec)
        check_table(spec, size)
        self.size, self.num_parts, self.smoothing = size, num_parts, smoothing
        self.seen, self.num_uniforms = Seen(self.name, num_values=size, num_parts=num_parts), num_parts
        self.register_buffer("log_conditional", torch.zeros(*spec.shape, spec.num_classes, size))

    @property
    @abstractmethod
    def num_used(self) -> int:
        """How many of the C values are in use."""

    @property
    def says_nothing(self) -> bool:
        return self.num_used == 1

    def summary(self) -> str:
        return f"{self.num_used} values in use ({self.size} at most)"

    def most_values(self, num_examples: int, num_kept: int) -> int:
        """How many values of c_j may be fitted to those kept of so many examples."""
        return min(self.size, num_kept) if num_examples >= _FEWEST_EXAMPLES else 1

    def configuration(self) -> str:
        return f"{type(self).__name__}(size={self.size})"


def check_table(spec: Spec, size: int) -> None:
    """Raise FLDDError if a table of every value of every coordinate, for ``size`` values of c, is too large."""
    if size * spec.num_dims * spec.num_classes > MOST_NUMBERS:
        raise FLDDError(
            f"a latent of size {size} for {spec.num_dims} coordinates of {spec.num_classes} classes would need "
            "a table of more than 256 MiB. Lower model.latents.size, or set model.latents to []."
        )


def affordable(operations: int, budget: int) -> int:
    """To how many examples to fit, where a round of fitting costs so many operations an example."""
    return max(1_000, min(MOST_EXAMPLES, budget // operations))


def sizes_to_try(most: int, first: int) -> list[int]:
    """4^first, 4^(first + 1), ... below ``most``, and ``most``."""
    return [*(4**k for k in range(first, most.bit_length()) if 4**k < most), most]


def started_from(examples: Tensor, marginals: Tensor, spec: Spec) -> Tensor:
    """Log p(x_i|c), ``(*shape, K, C)``, of values that start from one of ``(C, *shape)`` examples each."""
    starts = count(examples, torch.eye(len(examples), device=examples.device), spec.num_classes, spec.pad)
    return normalised(marginals + _BLEND * (starts - marginals), spec.pad)
