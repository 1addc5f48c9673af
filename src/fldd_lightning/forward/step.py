"""What one step of the forward process is: its times, how z_t is drawn given x, and where z_s, s < t, then is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from ..categorical import gumbel_of, log_one_hot, sample_from_uniform, sum_dims

__all__ = ["DenseStep", "Posterior", "Step", "Timesteps", "even_times"]


class Posterior(Protocol):
    """q(z_s|z_t, x), factorised over coordinates: what the reverse process has to match."""

    def posterior(self, z_t: Tensor) -> Tensor:
        """Probabilities ``(B, *shape, S)`` of z_s for integer states ``(B, *shape)``."""

    def relaxed_posterior(self, w: Tensor) -> Tensor:
        """The same for weights over states ``(B, *shape, S)``; linear in ``w``."""

    def entropy(self) -> Tensor:
        """Its entropy per coordinate in nats for every state z_t could be in, ``(B, *shape, S)``."""


@dataclass(frozen=True)
class Step(ABC):
    """One step of the forward process for a batch, between a time t and a time s before it.

    States z_t are integers ``(B, *shape)``, or *weights* over states ``(B, *shape, S)`` where they are relaxed.

    Attributes:
        x: Data ``(B, *shape)``.
        t: Step per example, ``(B,)``; the time t itself unless a model serves several numbers of steps.
        condition: What networks see beside the state, one tensor for every entry of ``spec.seen``.
        pad: The class PAD, or None.
        given: Coordinates that are given to both processes, ``(B, *shape)`` of bool: never noised, at no cost. None
            where none is; see :meth:`with_given`.
    """

    x: Tensor
    t: Tensor
    condition: tuple[Tensor, ...]
    pad: int | None
    given: Tensor | None = field(default=None, kw_only=True)

    @abstractmethod
    def with_given(self, given: Tensor) -> Step:
        """This step with some coordinates given, ``(B, *shape)`` of bool: they are at x in z_t."""

    @property
    @abstractmethod
    def learns(self) -> bool:
        """Whether gradients to the forward process are wanted."""

    @abstractmethod
    def draw_from_uniform(self, uniform: Tensor) -> Tensor:
        """States z_t ~ q(z_t|x), integers ``(B, *shape)``, from as many float64 numbers in [0, 1).

        Equal numbers give equal states. Estimators draw by :func:`~fldd_lightning.bound.states_drawn`.
        """

    @property
    @abstractmethod
    def noise_shape(self) -> torch.Size:
        """The shape of the numbers that :meth:`draw_relaxed` takes."""

    @abstractmethod
    def draw_relaxed(self, uniform: Tensor, temperature: float) -> Tensor:
        """Weights softmax((log u_t + Gumbel) / temperature), ``(B, *shape, S)``, with gradients (eq. 14)."""

    @abstractmethod
    def log_prob(self, z_t: Tensor) -> Tensor:
        """Log q(z_t|x) of drawn states, ``(B,)`` (eq. 9)."""


@dataclass(frozen=True)
class DenseStep(Step):
    """A step of any process: a number for every state.

    Attributes:
        log_u_s: log q(z_s|x), ``(B, *shape, S)``.
        log_u_t: log q(z_t|x), ``(B, *shape, S)``.
        posterior: q(z_s|z_t, x).
    """

    log_u_s: Tensor
    log_u_t: Tensor
    posterior: Posterior

    @property
    def learns(self) -> bool:
        return self.log_u_t.requires_grad

    def with_given(self, given: Tensor) -> DenseStep:
        at_data = log_one_hot(self.x, self.log_u_t.shape[-1], self.log_u_t.dtype)
        log_u_s, log_u_t = (torch.where(given.unsqueeze(-1), at_data, each) for each in (self.log_u_s, self.log_u_t))
        return replace(self, log_u_s=log_u_s, log_u_t=log_u_t, given=given)

    def draw_from_uniform(self, uniform: Tensor) -> Tensor:
        return sample_from_uniform(self.log_u_t, uniform)

    @property
    def noise_shape(self) -> torch.Size:
        return self.log_u_t.shape

    def draw_relaxed(self, uniform: Tensor, temperature: float) -> Tensor:
        gumbel = gumbel_of(uniform).to(self.log_u_t)
        return ((self.log_u_t + gumbel) / temperature).softmax(-1)

    def log_prob(self, z_t: Tensor) -> Tensor:
        return sum_dims(self.log_u_t.gather(-1, z_t.unsqueeze(-1)).squeeze(-1))


class Timesteps(nn.Module):
    """The steps of a process, each from a time t of its grid 0..T to an earlier time s.

    A model of one number of steps has T of them, from t to t - 1. A model that is trained for several has those of
    each: steps 1..N are those of the N that it is evaluated and sampled with, and the others' come after them.

    Args:
        grid: T.
        num_steps: N.
        further: The other numbers of steps, each at most T.

    Attributes:
        numbers: N, then the others.
        total: Steps of all of them together, n.
        are_times: Whether T is the one number of steps, and above 1: then step t leaves the time t for t - 1.
        t: The time every step leaves, ``(n + 1,)``; 0 for step 0, which is the data.
        s: The time it goes to, ``(n + 1,)``.
        size: Of how many steps it is one, ``(n + 1,)``.
        which: The place of that in ``numbers``, ``(n + 1,)``.
        passing: The step that passes each of the times 2..T, one number of steps after the other.
        counts: The same as ``numbers``, on the device.
        first: The first step of each of them.
    """

    t: Tensor
    s: Tensor
    size: Tensor
    which: Tensor
    passing: Tensor
    counts: Tensor
    first: Tensor

    def __init__(self, grid: int, num_steps: int, further: Sequence[int] = ()) -> None:
        super().__init__()
        self.numbers = (num_steps, *further)
        self.total = sum(self.numbers)
        self.are_times = self.numbers == (grid,) and grid > 1
        sizes = torch.tensor(self.numbers)
        times = [even_times(grid, number) for number in self.numbers]
        passing = torch.arange(1, self.total + 1).repeat_interleave(torch.cat([each.diff() for each in times]))
        columns = {
            "t": torch.cat([each[1:] for each in times]),
            "s": torch.cat([each[:-1] for each in times]),
            "size": sizes.repeat_interleave(sizes),
            "which": torch.arange(len(sizes)).repeat_interleave(sizes),
        }
        for name, column in columns.items():  # no part of a checkpoint, but on the device of the process
            self.register_buffer(name, torch.cat([torch.zeros(1, dtype=torch.long), column]), persistent=False)
        self.register_buffer("passing", passing.view(len(sizes), grid)[:, 1:].flatten(), persistent=False)
        self.register_buffer("counts", sizes, persistent=False)
        self.register_buffer("first", 1 + sizes.cumsum(0) - sizes, persistent=False)


def even_times(grid: int, num_steps: int) -> Tensor:
    """Times 0 = t_0 < ... < t_N = T of N steps, as evenly spaced as a grid of T allows: ``(N + 1,)``."""
    return (2 * torch.arange(num_steps + 1) * grid + num_steps) // (2 * num_steps)  # rounded
