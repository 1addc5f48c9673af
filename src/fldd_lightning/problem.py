"""What is being modelled: the numbers every part of a model must agree on."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from .errors import FLDDError

__all__ = ["MOST_NUMBERS", "Problem"]

MOST_NUMBERS = 2**26  # of one table or layer, 256 MiB: it goes with every checkpoint


@dataclass(frozen=True)
class Problem:
    """The numbers K, shape and T, written once and handed to every submodule.

    Attributes:
        num_classes: K, the number of values a coordinate of the data takes (``0..K-1``).
        shape: Shape of one example, without the batch; D is its product.
        num_steps: T, the number of denoising steps, fixed at training time.
        num_labels: Number of condition labels, or of values of a code; 0 for a model with neither.
        padded: Whether the last class, K-1, is PAD. Coordinates at PAD do not belong to an example: where they
            are is given to both processes, they stay PAD at every step, cost nothing, and no other
            coordinate ever takes that value.
        num_parts: m, how many parts of an example have a label of their own, as with a
            :class:`~fldd_lightning.codes.ChainCode`; 1 for labels of the whole.
        num_latents: Real numbers of an example that networks see, as with an
            :class:`~fldd_lightning.codes.AutoencoderCode`; 0 for none.

    Raises:
        FLDDError: If a number is out of its range.
    """

    num_classes: int
    shape: tuple[int, ...]
    num_steps: int
    num_labels: int = 0
    padded: bool = False
    num_parts: int = 1
    num_latents: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
        if self.num_classes < 2:
            raise FLDDError(f"num_classes is {self.num_classes}, but a discrete variable needs at least 2 classes.")
        if self.padded and self.num_classes < 3:
            raise FLDDError(f"num_classes is {self.num_classes} with PAD among them; 2 others are the least.")
        if not self.shape or min(self.shape) < 1:
            raise FLDDError(
                f"shape is {self.shape}, but an example needs at least one coordinate. For scalar data use shape (1,)."
            )
        if self.num_steps < 1:
            raise FLDDError(f"num_steps is {self.num_steps}, but T must be at least 1.")
        if min(self.num_labels, self.num_latents) < 0 or self.num_labels * self.num_latents > 0:
            raise FLDDError(
                f"num_labels is {self.num_labels} and num_latents {self.num_latents}, but neither can be negative, and "
                "one of them is 0."
            )
        if not 1 <= self.num_parts <= self.num_dims:
            raise FLDDError(
                f"num_parts is {self.num_parts}, but {self.num_dims} coordinates have 1 to {self.num_dims} parts."
            )

    @property
    def num_draws(self) -> int:
        """Uniform numbers that a draw of an example's code takes; 1 also where there is no code."""
        return max(self.num_parts, self.num_latents)

    @property
    def pad(self) -> int | None:
        """The class PAD, or None if there is none."""
        return self.num_classes - 1 if self.padded else None

    @property
    def part_of(self) -> list[int]:
        """The part 0..m-1 that every one of the D coordinates belongs to; neighbours, as equal as can be."""
        return [i * self.num_parts // self.num_dims for i in range(self.num_dims)]

    @property
    def num_dims(self) -> int:
        """D, the number of coordinates of one example."""
        return prod(self.shape)
