"""What is being modelled: K, the shape, PAD and T, and what networks see beside the state."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod

from .errors import FLDDError

__all__ = ["MOST_NUMBERS", "Seen", "Spec"]

MOST_NUMBERS = 2**26  # of one table or layer, 256 MiB: it goes with every checkpoint


@dataclass(frozen=True)
class Seen:
    """What networks see of one latent: whole numbers, or real numbers.

    Attributes:
        name: The latent's.
        num_values: How many values each whole number takes, ``0..num_values-1``; 0 for real numbers.
        num_parts: How many parts of an example have a whole number of their own; 1 for one number of the whole.
        num_reals: How many real numbers; 0 for whole ones.

    Raises:
        FLDDError: If it is neither of the two, or both.
    """

    name: str
    num_values: int = 0
    num_parts: int = 1
    num_reals: int = 0

    def __post_init__(self) -> None:
        if (self.num_values > 0) == (self.num_reals > 0) or self.num_parts < 1:
            raise FLDDError(f"{self.name}: networks see whole numbers (num_values) or real ones (num_reals).")

    @property
    def size(self) -> int:
        """Numbers of an example."""
        return self.num_reals or self.num_parts


@dataclass(frozen=True)
class Spec:
    """K, the shape, PAD and T, written once by the data and the config, and handed to every submodule.

    Attributes:
        num_classes: K, the number of values a coordinate of the data takes (``0..K-1``).
        shape: Shape of one example, without the batch; D is its product.
        num_steps: T, the number of denoising steps, fixed at training time.
        padded: Whether the last class, K-1, is PAD. Coordinates at PAD do not belong to an example. Where they
            are is given to both processes. They stay PAD at every step, cost nothing, and no other
            coordinate ever takes that value.
        seen: What networks see beside the state: one entry for every latent that they see.
        num_dims: D, the number of coordinates of one example.
        pad: The class PAD, or None if there is none.

    Raises:
        FLDDError: If a number is out of its range.
    """

    num_classes: int
    shape: tuple[int, ...]
    num_steps: int
    padded: bool = False
    seen: tuple[Seen, ...] = ()
    num_dims: int = field(init=False, repr=False)
    pad: int | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("num_classes", "num_steps"):
            object.__setattr__(self, name, int(getattr(self, name)))  # data may say them in numpy's integers
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
        object.__setattr__(self, "num_dims", prod(self.shape))
        object.__setattr__(self, "pad", self.num_classes - 1 if self.padded else None)
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
        most = max((each.num_parts for each in self.seen), default=1)
        if most > self.num_dims:
            raise FLDDError(f"a latent has {most} parts, but {self.num_dims} coordinates have {self.num_dims} at most.")

    def part_of(self, num_parts: int) -> list[int]:
        """The part 0..m-1 that every one of the D coordinates belongs to; neighbours, as equal as can be."""
        return [i * num_parts // self.num_dims for i in range(self.num_dims)]
