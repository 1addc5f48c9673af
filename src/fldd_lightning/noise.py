"""Random numbers of a batch that several processes share: together they draw what one process would."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["SharedGenerator", "permutation", "summed_over_processes", "uniform"]


class SharedGenerator(torch.Generator):
    """A generator of the noise of one training step, with the same seed in every process.

    Example j of process r is example j W + r of the whole batch, as samplers deal them out to W processes.
    :func:`uniform` draws the noise of the whole batch and takes the rows of this process. So what W processes learn
    does not depend on W, as long as the whole batch has the same size.

    Attributes:
        world: W.
        rank: r, this process.
    """

    world: int = 1
    rank: int = 0


def uniform(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Float64 numbers in [0, 1), on the device of the generator.

    Args:
        shape: Its first entry is the batch of this process. ``()`` is one number, the same in all processes.
        generator: Of a :class:`SharedGenerator` they are rows of the noise of the whole batch.
    """
    world, rank = _share(generator)
    size = (shape[0] * world, *shape[1:]) if shape else ()
    drawn = torch.rand(size, dtype=torch.float64, device=generator.device, generator=generator)
    return drawn[rank::world] if shape else drawn


def permutation(batch: int, generator: torch.Generator) -> tuple[Tensor, int]:
    """Places of this process's examples in a random order of the whole batch, ``(batch,)``, and its size."""
    world, rank = _share(generator)
    order = torch.randperm(batch * world, device=generator.device, generator=generator)
    return order[rank::world], batch * world


def summed_over_processes(values: Tensor) -> Tensor:
    """The sum of what all processes have; every process has to ask."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        values = values.clone()
        torch.distributed.all_reduce(values)
    return values


def _share(generator: torch.Generator) -> tuple[int, int]:
    return (generator.world, generator.rank) if isinstance(generator, SharedGenerator) else (1, 0)
