"""What is being modelled: K, the shape, PAD and T, and what networks see beside the state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor

from .errors import FLDDError
from .ranges import AT_LEAST_TWO, COUNT, Range, check_numbers

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
        may_be_absent: Whether networks may see that nothing is said. The last value of whole numbers stands for it; of
            real numbers all 0, and the last of them is 1 where something is said.

    Raises:
        FLDDError: If it is neither of the two, or both.
    """

    name: str
    num_values: int = 0
    num_parts: int = 1
    num_reals: int = 0
    may_be_absent: bool = False

    def __post_init__(self) -> None:
        if (self.num_values > 0) == (self.num_reals > 0) or self.num_parts < 1:
            raise FLDDError(f"{self.name}: networks see whole numbers (num_values) or real ones (num_reals).")

    @property
    def size(self) -> int:
        """Numbers of an example."""
        return self.num_reals or self.num_parts

    def absent(self, c: Tensor) -> Tensor:
        """What networks see where nothing is said, for latents ``(B, m)``; raises unless that may be."""
        if not self.may_be_absent:
            raise FLDDError(f"networks always see '{self.name}'; it cannot be absent.")
        return torch.zeros_like(c) if self.num_reals else torch.full_like(c, self.num_values - 1)


_STEPS = Range(1, 2**16, is_whole=True)  # processes have numbers for each, networks are told which


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
        budgets: The numbers of steps that one training serves, where it serves several. Submodules then see the largest
            of them as T: the grid of times that all of them go over.
        num_values: How many values each of the D coordinates has, ``0..n-1``, in the order of ``x.flatten()``; None
            where all have K. No coordinate ever takes a value that it does not have, at no step of either process.
        condition_sizes: What comes with every example, by the name that batches have for it: of labels how many there
            are, of vectors how many numbers they have. Latents that are not told their size look here.
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
    num_values: tuple[int, ...] | None = None
    condition_sizes: Mapping[str, int] = field(default_factory=dict, hash=False)
    budgets: tuple[int, ...] = ()
    num_dims: int = field(init=False, repr=False)
    pad: int | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_numbers(
            {"num_classes": self.num_classes, "num_steps": self.num_steps}, num_classes=AT_LEAST_TWO, num_steps=_STEPS
        )
        for name in ("num_classes", "num_steps"):
            object.__setattr__(self, name, int(getattr(self, name)))  # data may say them in numpy's integers
        if not self.shape or any(n not in COUNT for n in self.shape):
            raise FLDDError(
                f"shape is {tuple(self.shape)}, but it must be whole numbers of 1 or more. For scalar data use (1,)."
            )
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
        object.__setattr__(self, "num_dims", prod(self.shape))
        object.__setattr__(self, "pad", self.num_classes - 1 if self.padded else None)
        if self.padded and self.num_classes < 3:
            raise FLDDError(f"num_classes is {self.num_classes} with PAD among them; 2 others are the least.")
        if any(n not in COUNT for n in self.budgets):
            raise FLDDError(f"budgets are numbers of steps, whole and each at least 1, not {list(self.budgets)}.")
        object.__setattr__(self, "budgets", tuple(sorted({int(n) for n in self.budgets})))
        if self.num_values is not None:
            self._check_values(tuple(self.num_values))
        most = max((each.num_parts for each in self.seen), default=1)
        if most > self.num_dims:
            raise FLDDError(f"a latent has {most} parts, but {self.num_dims} coordinates have {self.num_dims} at most.")

    @property
    def grid(self) -> int:
        """The times that steps go over, apart from 0."""
        return max(self.budgets, default=self.num_steps)

    def _check_values(self, num_values: tuple[int, ...]) -> None:
        if any(n not in COUNT for n in num_values):
            raise FLDDError(f"num_values is {num_values}, but it must be whole numbers of 1 or more.")
        object.__setattr__(self, "num_values", tuple(int(n) for n in num_values))
        if len(num_values) != self.num_dims or max(num_values) != self.num_classes:
            raise FLDDError(
                f"num_values must say of each of {self.num_dims} coordinates how many values it has, from 1 to "
                f"num_classes, which is the largest of them: {self.num_classes}. It has {len(num_values)} numbers from "
                f"{min(num_values, default=0)} to {max(num_values, default=0)}."
            )
        if self.padded:
            raise FLDDError("num_values and PAD do not go together: leave one of them out.")

    def check_num_values(self, num_values: Sequence[int]) -> None:
        """Raise FLDDError unless these are the numbers of values of the D coordinates."""
        if tuple(num_values) != (self.num_values or (self.num_classes,) * self.num_dims):
            raise FLDDError(
                "the columns of the data have other numbers of values than the model was made for. From Python, make "
                "it with num_values=data.num_values; a checkpoint is for data with the columns of its training."
            )

    def allowed(self, num_states: int) -> Tensor | None:
        """Which states coordinates may take, ``(*shape, num_states)`` of bool; None where all may take all.

        States from K on, such as MASK, are no values, and every coordinate may take them.
        """
        if self.num_values is None:
            return None
        state = torch.arange(num_states)
        return (
            (state < torch.tensor(self.num_values)[:, None])
            .logical_or(state >= self.num_classes)
            .view(*self.shape, num_states)
        )

    def part_of(self, num_parts: int) -> list[int]:
        """The part 0..m-1 that every one of the D coordinates belongs to; neighbours, as equal as can be."""
        return [i * num_parts // self.num_dims for i in range(self.num_dims)]
