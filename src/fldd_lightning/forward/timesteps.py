"""Which times a step of the two processes goes between: neighbours on a grid, or farther apart for fewer steps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["Timesteps", "even_times"]


class Timesteps(nn.Module):
    """The steps of a process, each from a time t of its grid 0..T to an earlier time s.

    A model of one number of steps has T of them, from t to t - 1. A model that is trained for several has those of
    each: steps 1..N are those of the N that it is evaluated and sampled with, and the others' come after them.

    Args:
        grid: T.
        num_steps: N.
        further: The other numbers of steps, each at most T.

    Attributes:
        num_steps: N.
        numbers: N, then the others.
        t: The time every step leaves, ``(n + 1,)``; 0 for step 0, which is the data.
        s: The time it goes to, ``(n + 1,)``.
        which: The place in ``numbers`` of what it is a step of, ``(n + 1,)``.
    """

    t: Tensor
    s: Tensor
    which: Tensor
    sizes: Tensor
    starts: Tensor
    passing: Tensor

    def __init__(self, grid: int, num_steps: int, further: Sequence[int] = ()) -> None:
        super().__init__()
        self.num_steps, self.numbers = num_steps, (num_steps, *further)
        sizes = torch.tensor(self.numbers)
        times, starts = [even_times(grid, size) for size in self.numbers], sizes.cumsum(0) - sizes
        nothing = torch.zeros(1, dtype=torch.long)
        # the step that passes each of the times 1..T, of each number of steps
        passing = [
            start + torch.arange(1, len(each)).repeat_interleave(each.diff())
            for start, each in zip(starts, times, strict=True)
        ]
        columns = {
            "t": torch.cat([nothing, *(each[1:] for each in times)]),
            "s": torch.cat([nothing, *(each[:-1] for each in times)]),
            "which": torch.cat([nothing, torch.arange(len(sizes)).repeat_interleave(sizes)]),
            "sizes": sizes,
            "starts": starts,
            "passing": torch.cat([each[1:] for each in passing]),
        }
        for name, column in columns.items():
            self.register_buffer(name, column, persistent=False)  # moves with the process

    def __len__(self) -> int:
        """Steps of all numbers of steps together, n."""
        return len(self.t) - 1

    def of(self, step: Tensor) -> tuple[Tensor, Tensor]:
        """The times t and s of steps, in the shape of ``step``."""
        return self.t[step], self.s[step]

    def size(self, step: Tensor) -> Tensor:
        """Of how many steps each is one, in the shape of ``step``."""
        return self.sizes[self.which[step]]

    def summed(self, values: Tensor) -> Tensor:
        """The sum over the times that a step passes, s + 1..t, for every step: ``(n + 1, ...)``; 0 of step 0.

        Args:
            values: Of the times 2..T, ``(T - 1, ...)``; at time 1 it is 0.
        """
        everywhere = values.repeat(len(self.sizes), *[1] * (values.dim() - 1))
        return values.new_zeros(len(self) + 1, *values.shape[1:]).index_add(0, self.passing, everywhere)

    def draw(self, batch: int, generator: torch.Generator) -> Tensor:
        """Draw one step for each example: a number of steps, all equally likely, and one of its steps.

        Example i falls into stratum (i + u) / B of [0, 1) with one uniform u for the batch, in random order. So numbers
        of steps, and the steps of each, are spread evenly.

        Args:
            batch: B.
            generator: Source of randomness; its device is that of the result.

        Returns:
            Integer steps ``(B,)``, in 1..n.
        """
        device = generator.device
        offset = torch.rand((), dtype=torch.float64, device=device, generator=generator)
        place = (torch.arange(batch, device=device) + offset) / batch * len(self.sizes)  # (B,)
        which = place.long().clamp_max(len(self.sizes) - 1)
        sizes, starts = self.sizes.to(device)[which], self.starts.to(device)[which]
        step = 1 + starts + ((place - which) * sizes).long().minimum(sizes - 1)
        return step[torch.randperm(batch, device=device, generator=generator)]


def even_times(grid: int, num_steps: int) -> Tensor:
    """Times 0 = t_0 < ... < t_N = T of N steps, as evenly spaced as a grid of T allows: ``(N + 1,)``."""
    return (2 * torch.arange(num_steps + 1) * grid + num_steps) // (2 * num_steps)  # rounded
