"""Noise: by the seed and the example alone, shared out over processes, or drawn before a compiled step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from .forward import Step

__all__ = [
    "DrawnNoise",
    "Noise",
    "SharedGenerator",
    "mixed_seed",
    "permutation",
    "states_drawn",
    "uniform",
    "uniform_of",
]


def uniform_of(index: Tensor, size: tuple[int, ...], seed: int) -> Tensor:
    """Float64 numbers in [0, 1), ``(B, *size)``, on the CPU, by each example's index and a seed alone."""
    generators = (torch.Generator().manual_seed(mixed_seed(seed, i)) for i in index.tolist())
    return torch.stack([torch.rand(size, dtype=torch.float64, generator=each) for each in generators])


def mixed_seed(seed: int, *numbers: int) -> int:
    """A seed that depends on all of several numbers, in their order."""
    for number in numbers:
        seed = (seed * 1_000_003 + number + 1) % (2**61 - 1)
    return seed


class SharedGenerator(torch.Generator):
    """A generator of the noise of one training step, with the same seed in every process.

    Example j of process r is example j W + r of the whole batch, as samplers deal them out to W processes.
    :func:`uniform` draws the noise of the whole batch and takes the rows of this process. So what W processes learn
    does not depend on W, as long as the whole batch has the same size.

    Attributes:
        world: W.
        rank: r, this process.
        requests: What was drawn so far, to be drawn again by another generator; None where nobody asks.
    """

    world: int = 1
    rank: int = 0
    requests: list[Callable[[torch.Generator], Tensor]] | None = None


class DrawnNoise:
    """Noise that was drawn beforehand, in place of a generator: torch.compile cannot draw from one.

    Args:
        drawn: What :func:`uniform` and :func:`permutation` are to return, in this order.
        device: Where it is.
        world: Number of processes.
    """

    def __init__(self, drawn: list[Tensor], device: torch.device, world: int) -> None:
        self._drawn, self._place, self.device, self.world = drawn, 0, device, world

    def next(self) -> Tensor:
        """What is to be returned next."""
        self._place += 1
        return self._drawn[self._place - 1]


Noise: TypeAlias = torch.Generator | DrawnNoise


def uniform(shape: Sequence[int], generator: Noise) -> Tensor:
    """Float64 numbers in [0, 1), on the device of the generator.

    Args:
        shape: Its first entry is the batch of this process. ``()`` is one number, the same in all processes.
        generator: Of a :class:`SharedGenerator` they are rows of the noise of the whole batch.
    """
    return _drawn(partial(_uniform, tuple(shape)), generator)


def permutation(batch: int, generator: Noise) -> tuple[Tensor, int]:
    """Places of this process's examples in a random order of the whole batch, ``(batch,)``, and its size."""
    world = generator.world if isinstance(generator, SharedGenerator | DrawnNoise) else 1
    return _drawn(partial(_permutation, batch), generator), batch * world


def states_drawn(step: Step, generator: Noise) -> Tensor:
    """States z_t ~ q(z_t|x) for the examples of this process, integers ``(B, *shape)``; what estimators draw with."""
    return step.draw_from_uniform(uniform(step.x.shape, generator))


def _drawn(request: Callable[[torch.Generator], Tensor], generator: Noise) -> Tensor:
    if isinstance(generator, DrawnNoise):
        return generator.next()
    if isinstance(generator, SharedGenerator) and generator.requests is not None:
        generator.requests.append(request)
    return request(generator)


def _uniform(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    world, rank = _share(generator)
    size = (shape[0] * world, *shape[1:]) if shape else ()
    drawn = torch.rand(size, dtype=torch.float64, device=generator.device, generator=generator)
    return drawn[rank::world] if shape else drawn


def _permutation(batch: int, generator: torch.Generator) -> Tensor:
    world, rank = _share(generator)
    return torch.randperm(batch * world, device=generator.device, generator=generator)[rank::world]


def _share(generator: torch.Generator) -> tuple[int, int]:
    return (generator.world, generator.rank) if isinstance(generator, SharedGenerator) else (1, 0)
