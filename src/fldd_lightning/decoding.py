"""How a masked reverse process is sampled: ancestrally, or with the number of revealed coordinates held fixed.

Ancestral sampling follows the bound: each masked coordinate is revealed with its own probability. In masked diffusion
this makes the number that is revealed at a step random, which costs quality when steps are few. The two other ways
reveal a fixed number. They draw from another distribution than the one that the bound is of.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from .categorical import gumbel_noise, sample_categorical
from .errors import FLDDError
from .forward import AbsorbingProcess, ForwardProcess
from .reverse import MaskedReverse, Reverse

__all__ = ["Ancestral", "ConfidentFirst", "Decoding", "ExactlyN", "GreedyEnd"]


class Decoding(ABC):
    """Base class: one step of sampling."""

    @abstractmethod
    def check(self, process: ForwardProcess, reverse: Reverse) -> None:
        """Raise FLDDError if a model cannot be sampled this way."""

    @abstractmethod
    def draw(
        self, reverse: Reverse, z_t: Tensor, t: Tensor, generator: torch.Generator, condition: tuple[Tensor, ...]
    ) -> Tensor:
        """Draw z_s, integers ``(B, *shape)``, for integers ``(B, *shape)`` and steps ``(B,)``, all of them equal."""


class Ancestral(Decoding):
    """z_s ~ p(z_s|z_t): what the bound is of. For every model."""

    def check(self, process: ForwardProcess, reverse: Reverse) -> None:
        """Every model can be."""

    def draw(
        self, reverse: Reverse, z_t: Tensor, t: Tensor, generator: torch.Generator, condition: tuple[Tensor, ...]
    ) -> Tensor:
        return reverse.draw(z_t, t, generator, condition)


class GreedyEnd(Ancestral):
    """As :class:`Ancestral`, but the last step takes the likeliest value of each coordinate. For every model.

    Work on few-step samples often does so. It removes noise of single coordinates, and some of the diversity.
    """

    def draw(
        self, reverse: Reverse, z_t: Tensor, t: Tensor, generator: torch.Generator, condition: tuple[Tensor, ...]
    ) -> Tensor:
        if int(t[0]) > 1:
            return super().draw(reverse, z_t, t, generator, condition)
        return reverse.log_prob(z_t, t, condition).argmax(-1)


class ExactlyN(Decoding):
    """The same number of coordinates at each step, chosen at random: of n masked ones round(n s/t) stay.

    For masked diffusion.

    Raises:
        FLDDError: Where a model is not masked diffusion (:class:`AbsorbingProcess`).
    """

    def check(self, process: ForwardProcess, reverse: Reverse) -> None:
        if type(process) is not AbsorbingProcess or not isinstance(reverse, MaskedReverse):
            raise FLDDError(
                f"{type(self).__name__} needs masked diffusion (AbsorbingProcess), not {type(process).__name__}. Other "
                "processes choose themselves what is revealed: use Ancestral."
            )

    def draw(
        self, reverse: Reverse, z_t: Tensor, t: Tensor, generator: torch.Generator, condition: tuple[Tensor, ...]
    ) -> Tensor:
        mask = reverse.num_states - 1
        is_masked = (z_t == mask).flatten(1)  # (B, D)
        log_v = reverse.log_prob(z_t, t, condition).flatten(1, -2)  # (B, D, S)
        log_p = log_v[..., :mask].log_softmax(-1)  # of the values, were all of them revealed
        drawn = sample_categorical(log_p, generator)
        score = self.scores(log_p.gather(-1, drawn.unsqueeze(-1)).squeeze(-1), t / reverse.num_steps, generator)
        score = score.masked_fill(~is_masked.to(score.device), -torch.inf)  # on a device that has float64
        place = score.argsort(1, descending=True).argsort(1).to(z_t.device)
        masked = is_masked.sum(1)
        revealed = masked - (masked * (t - 1) / t).round().long()
        return torch.where(is_masked & (place < revealed[:, None]), drawn, z_t.flatten(1)).view(z_t.shape)

    def scores(self, log_p: Tensor, time: Tensor, generator: torch.Generator) -> Tensor:
        """Which coordinates are revealed first: those of the highest score.

        Args:
            log_p: Log p of the value drawn for each coordinate, ``(B, D)``.
            time: t/T, ``(B,)``.
            generator: Source of noise.

        Returns:
            ``(B, D)``.
        """
        return gumbel_noise(log_p.shape, generator)


class ConfidentFirst(ExactlyN):
    """As :class:`ExactlyN`, but those first whose drawn value is likeliest (MaskGIT; Chang et al., 2022).

    Args:
        temperature: Weight of Gumbel noise on the log-probabilities. It falls from this at t = T to 0 at t = 0, and
            keeps samples diverse.

    Raises:
        FLDDError: If the temperature is negative, or as for :class:`ExactlyN`.
    """

    def __init__(self, temperature: float = 1.0) -> None:
        if temperature < 0:
            raise FLDDError(f"temperature is {temperature}, but it must be 0 or more.")
        self.temperature = temperature

    def scores(self, log_p: Tensor, time: Tensor, generator: torch.Generator) -> Tensor:
        noise = gumbel_noise(log_p.shape, generator)
        return log_p.to(noise) + self.temperature * time[:, None].to(noise) * noise
