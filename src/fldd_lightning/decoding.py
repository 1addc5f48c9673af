"""How a masked reverse process is sampled: ancestrally, or with the number of revealed coordinates held fixed.

Temperature and top-p go with each of them.

Ancestral sampling follows the bound: each masked coordinate is revealed with its own probability. In masked diffusion
this makes the number that is revealed at a step random, which costs quality when steps are few. The two other ways
reveal a fixed number. They draw from another distribution than the one that the bound is of.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from copy import copy
from math import inf
from typing import Any

import torch
from torch import Tensor

from .categorical import gumbel_of, one_hot, sample_from_uniform
from .compiled import Compiled
from .errors import FLDDError
from .forward import AbsorbingProcess, ForwardProcess
from .ranges import NOT_NEGATIVE, POSITIVE, UP_TO_ONE, check_kinds, check_numbers
from .reverse import MaskedReverse, Reverse

__all__ = ["Ancestral", "ConfidentFirst", "Decoding", "ExactlyN", "GreedyEnd"]


class Decoding(ABC):
    """Base class: one step of sampling, with temperature and top-p.

    They change the values that coordinates turn to, and not whether a coordinate turns: a schedule stays what it is. In
    the last step, after which nothing turns, they change all values. The bound is that of temperature and top-p 1.

    Args:
        temperature: What log-probabilities are divided by. Below 1 samples are likelier and less diverse.
        top_p: Only the likeliest values are drawn that together have this probability; never fewer than one (nucleus
            sampling; Holtzman et al., 2020).
        compile: Whether torch.compile makes one graph of a step. The first batch takes half a minute longer.

    Attributes:
        num_uniforms: Uniform numbers that a step takes for each coordinate.

    Raises:
        FLDDError: If the temperature is not positive, or top_p not in (0, 1].
    """

    temperature: float = 1.0
    top_p: float = 1.0
    compile: bool = False
    num_uniforms = 1
    _compiled: Compiled | None = None

    @property
    def passes(self) -> int:
        """Passes of the denoiser that a step takes."""
        return 1

    def __init__(self, temperature: float = 1.0, top_p: float = 1.0, compile: bool = False) -> None:
        check_numbers(locals(), temperature=POSITIVE, top_p=UP_TO_ONE)
        check_kinds(locals(), compile=bool)
        self.temperature, self.top_p, self.compile = temperature, top_p, compile

    def __getstate__(self) -> dict[str, Any]:
        """Copies make graphs of their own."""
        return {name: value for name, value in vars(self).items() if name != "_compiled"}

    def configuration(self) -> str:
        """The class and what its samples depend on, for what is recorded of them."""
        controls = {name: value for name, value in self.__getstate__().items() if name != "compile"}
        return f"{type(self).__name__}({', '.join(f'{name}={value}' for name, value in sorted(controls.items()))})"

    def at(self, temperature: float) -> Decoding:
        """A copy with another temperature."""
        other = copy(self)
        Decoding.__init__(other, temperature, self.top_p, self.compile)
        return other

    def sharpened(self, log_p: Tensor) -> Tensor:
        """Log-probabilities ``(..., S)``, normalised, at this temperature and cut to the likeliest values."""
        if self.temperature != 1:
            log_p = (log_p / self.temperature).log_softmax(-1)
        if self.top_p < 1:
            ordered, place = log_p.sort(-1, descending=True)
            p = ordered.exp()
            is_kept = p.cumsum(-1) - p < self.top_p  # what stands before it does not suffice
            is_kept = torch.zeros_like(is_kept).scatter(-1, place, is_kept)
            log_p = log_p.masked_fill(~is_kept, -inf).log_softmax(-1)
        return log_p

    @abstractmethod
    def check(self, process: ForwardProcess, reverse: Reverse) -> None:
        """Raise FLDDError if a model cannot be sampled this way."""

    def draw(
        self, reverse: Reverse, z_t: Tensor, step: int, generator: torch.Generator, condition: tuple[Tensor, ...]
    ) -> Tensor:
        """Draw z_s.

        Args:
            reverse: The reverse process.
            z_t: Integers ``(B, *shape)``.
            step: t.
            generator: Source of the noise.
            condition: What networks see beside the state.

        Returns:
            Integers ``(B, *shape)``.

        Raises:
            FLDDError: If it is to be compiled, and cannot be.
        """
        shape = (self.num_uniforms, *z_t.shape)
        uniform = torch.rand(shape, dtype=torch.float64, device=generator.device, generator=generator)
        t = torch.full((len(z_t),), step, device=z_t.device)
        draw: Callable[..., Tensor] = self.draw_from_uniform
        if self.compile:
            self._compiled = draw = self._compiled or Compiled(draw, "decoding.compile")
        return draw(reverse, z_t, t, uniform, condition, step == 1)

    @abstractmethod
    def draw_from_uniform(
        self, reverse: Reverse, z_t: Tensor, t: Tensor, uniform: Tensor, condition: tuple[Tensor, ...], is_last: bool
    ) -> Tensor:
        """Draw z_s, integers ``(B, *shape)``.

        Args:
            reverse: The reverse process.
            z_t: Integers ``(B, *shape)``.
            t: Steps ``(B,)``, all of them equal.
            uniform: Float64 numbers in [0, 1), ``(num_uniforms, B, *shape)``.
            condition: What networks see beside the state.
            is_last: Whether t is 1.
        """


class Ancestral(Decoding):
    """z_s ~ p(z_s|z_t): what the bound is of. For every model.

    Args:
        temperature: As for :class:`Decoding`.
        top_p: As for :class:`Decoding`.
        compile: As for :class:`Decoding`.
    """

    def check(self, process: ForwardProcess, reverse: Reverse) -> None:
        """Every model can be."""

    def draw_from_uniform(
        self, reverse: Reverse, z_t: Tensor, t: Tensor, uniform: Tensor, condition: tuple[Tensor, ...], is_last: bool
    ) -> Tensor:
        if self.temperature == self.top_p == 1:
            return reverse.draw_from_uniform(z_t, t, uniform[0], condition)
        log_v = reverse.log_prob(z_t, t, condition)  # (B, *shape, S)
        log_v = self.sharpened(log_v) if is_last else self._sharpened_turns(log_v, z_t)
        return sample_from_uniform(log_v, uniform[0])

    def _sharpened_turns(self, log_v: Tensor, z_t: Tensor) -> Tensor:
        """``log_v`` with the values that a coordinate turns to sharpened; it stays as often as before."""
        is_here = one_hot(z_t, log_v.shape[-1]).bool()
        others = log_v.masked_fill(is_here, -inf)
        log_turns = others.logsumexp(-1, keepdim=True)  # log of the probability that it turns
        never = log_turns == -inf
        turned = log_turns + self.sharpened(torch.where(never, log_v, others - log_turns))
        return torch.where(is_here | never, log_v, turned)


class GreedyEnd(Ancestral):
    """As :class:`Ancestral`, but the last step takes the likeliest value of each coordinate. For every model.

    Work on few-step samples often does so. It removes noise of single coordinates, and some of the diversity.

    Args:
        temperature: As for :class:`Decoding`, of the steps before the last.
        top_p: As for :class:`Decoding`, of the steps before the last.
        compile: As for :class:`Decoding`.
    """

    def draw_from_uniform(
        self, reverse: Reverse, z_t: Tensor, t: Tensor, uniform: Tensor, condition: tuple[Tensor, ...], is_last: bool
    ) -> Tensor:
        if is_last:
            return reverse.log_prob(z_t, t, condition).argmax(-1)
        return super().draw_from_uniform(reverse, z_t, t, uniform, condition, is_last)


class ExactlyN(Decoding):
    """The same number of coordinates at each step, chosen at random: of n masked ones round(n s/t) stay.

    For masked diffusion.

    Args:
        temperature: As for :class:`Decoding`.
        top_p: As for :class:`Decoding`.
        compile: As for :class:`Decoding`.

    Raises:
        FLDDError: Where a model is not masked diffusion (:class:`AbsorbingProcess`), or as for :class:`Decoding`.
    """

    num_uniforms = 2

    def check(self, process: ForwardProcess, reverse: Reverse) -> None:
        if type(process) is not AbsorbingProcess or not isinstance(reverse, MaskedReverse):
            raise FLDDError(
                f"{type(self).__name__} needs masked diffusion (AbsorbingProcess), not {type(process).__name__}. Other "
                "processes choose themselves what is revealed: use Ancestral."
            )

    def draw_from_uniform(
        self, reverse: Reverse, z_t: Tensor, t: Tensor, uniform: Tensor, condition: tuple[Tensor, ...], is_last: bool
    ) -> Tensor:
        mask = reverse.num_states - 1
        is_masked = (z_t == mask).flatten(1)  # (B, D)
        of_values, of_places = uniform.flatten(2)  # (B, D)
        log_v = reverse.log_prob(z_t, t, condition).flatten(1, -2)  # (B, D, S)
        log_p = self.sharpened(log_v[..., :mask].log_softmax(-1))  # of the values, were all of them revealed
        drawn = sample_from_uniform(log_p, of_values)
        at_drawn = log_p.gather(-1, drawn.unsqueeze(-1)).squeeze(-1)
        score = self.scores(at_drawn, t / reverse.num_steps, gumbel_of(of_places))
        score = score.masked_fill(~is_masked.to(score.device), -torch.inf)  # on a device that has float64
        place = score.argsort(1, descending=True).argsort(1).to(z_t.device)
        masked = is_masked.sum(1)
        revealed = masked - (masked * (t - 1) / t).round().long()
        return torch.where(is_masked & (place < revealed[:, None]), drawn, z_t.flatten(1)).view(z_t.shape)

    def scores(self, log_p: Tensor, time: Tensor, noise: Tensor) -> Tensor:
        """Which coordinates are revealed first: those of the highest score.

        Args:
            log_p: Log p of the value drawn for each coordinate, ``(B, D)``.
            time: t/T, ``(B,)``.
            noise: Standard Gumbel noise in float64, ``(B, D)``.

        Returns:
            ``(B, D)``.
        """
        return noise


class ConfidentFirst(ExactlyN):
    """As :class:`ExactlyN`, but those first whose drawn value is likeliest (MaskGIT; Chang et al., 2022).

    Args:
        noise: Weight of Gumbel noise on the log-probabilities that say which come first. It falls from this at t = T to
            0 at t = 0, and keeps samples diverse.
        temperature: As for :class:`Decoding`.
        top_p: As for :class:`Decoding`.
        compile: As for :class:`Decoding`.

    Raises:
        FLDDError: If the noise is negative, or as for :class:`ExactlyN`.
    """

    def __init__(self, noise: float = 1.0, temperature: float = 1.0, top_p: float = 1.0, compile: bool = False) -> None:
        check_numbers(locals(), noise=NOT_NEGATIVE)
        super().__init__(temperature, top_p, compile)
        self.noise = noise

    def scores(self, log_p: Tensor, time: Tensor, noise: Tensor) -> Tensor:
        return log_p.to(noise) + self.noise * time[:, None].to(noise) * noise
