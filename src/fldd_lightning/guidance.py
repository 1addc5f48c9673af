"""Classifier-free guidance: samples that follow their condition more closely than the model would by itself.

A model that was trained with a share of its conditions dropped is two: p(z_s|z_t, c), which is told the condition, and
p(z_s|z_t), which is not. Both are factorised over coordinates, and so is what guidance makes of them,

    log p_w(z_s^i|z_t) = (1 + w) log p(z_s^i|z_t, c) - w log p(z_s^i|z_t) - log Z_i,

for each coordinate i by itself (Ho and Salimans, 2022, eq. 6; for discrete diffusion Nisonoff et al., 2024, and Schiff
et al., 2024). Guided steps reverse no forward process, so the bound says nothing of such samples.
"""

from __future__ import annotations

from copy import copy
from math import inf
from typing import Any

import torch
from torch import Tensor, nn

from .decoding import Ancestral, Decoding
from .errors import FLDDError
from .forward import ForwardProcess
from .ranges import NOT_NEGATIVE, check_numbers
from .reverse import Reverse
from .spec import Seen

__all__ = ["Guided", "guided"]


class Guided(Decoding):
    """Another decoding, of guided probabilities. It takes two passes of the denoiser a step.

    All conditions that the model was trained to do without are left out of the second pass.

    Args:
        weight: w, 0 or more. 0 is the decoding by itself; the more, the closer to the condition and the less diverse.
        of: The decoding; None for :class:`Ancestral`. Temperature, top-p and whether it is compiled are its own.

    Raises:
        FLDDError: If the weight is negative or not finite, or the decoding is guided itself; later, if the model drops
            no condition, or cannot be sampled by the decoding.
    """

    def __init__(self, weight: float, of: Decoding | None = None) -> None:
        check_numbers(locals(), weight=NOT_NEGATIVE)
        if isinstance(of, Guided):
            raise FLDDError("what is guided is to be guided again, and the weights would multiply. Give one weight.")
        self.weight, self.of = float(weight), of or Ancestral()
        self._followed: _GuidedReverse | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_followed": None}

    @property
    def passes(self) -> int:
        return self.of.passes * (2 if self.weight else 1)

    def configuration(self) -> str:
        return f"{type(self).__name__}(of={self.of.configuration()}, weight={self.weight})"

    def at(self, temperature: float) -> Decoding:
        other = copy(self)
        other.of = self.of.at(temperature)
        return other

    def check(self, process: ForwardProcess, reverse: Reverse) -> None:
        self.of.check(process, reverse)
        if not any(seen.may_be_absent for seen in reverse.seen):
            raise FLDDError(
                "guidance needs a model that was trained with its condition dropped for a share of the examples. Train "
                "one with dropped=0.1 of its LabelLatent or VectorLatent."
            )

    def draw(
        self, reverse: Reverse, z_t: Tensor, step: int, generator: torch.Generator, condition: tuple[Tensor, ...]
    ) -> Tensor:
        return self.of.draw(self._followed_by(reverse), z_t, step, generator, condition)

    def draw_from_uniform(
        self, reverse: Reverse, z_t: Tensor, t: Tensor, uniform: Tensor, condition: tuple[Tensor, ...], is_last: bool
    ) -> Tensor:
        return self.of.draw_from_uniform(self._followed_by(reverse), z_t, t, uniform, condition, is_last)

    def _followed_by(self, reverse: Reverse) -> Reverse:
        """The guided reverse process; while steps are compiled the same one, as graphs are of one."""
        if not self.weight:
            return reverse
        followed = self._followed
        if followed is None or followed.plain is not reverse or followed.weight != self.weight:
            followed = _GuidedReverse(reverse, self.weight)
        self._followed = followed if self.of.compile else None
        return followed


class _GuidedReverse(Reverse):
    """A reverse process with guided probabilities. It shares the networks, and has no weights of its own."""

    def __init__(self, reverse: Reverse, weight: float) -> None:
        nn.Module.__init__(self)
        self.plain, self.weight = reverse, weight
        self.num_states, self.num_classes, self.pad = reverse.num_states, reverse.num_classes, reverse.pad
        self.num_steps, self.time_independent, self.seen = reverse.num_steps, reverse.time_independent, reverse.seen

    def log_prob(self, state: Tensor, t: Tensor, condition: tuple[Tensor, ...] = ()) -> Tensor:
        told = self.plain.log_prob(state, t, condition)
        untold = self.plain.log_prob(state, t, _without(condition, self.seen))
        return guided(told, untold, self.weight)


def guided(told: Tensor, untold: Tensor, weight: float) -> Tensor:
    """Guided log-probabilities, normalised; what is impossible in either stays as it is in ``told``.

    Args:
        told: log p(z_s|z_t, c), ``(..., S)``.
        untold: log p(z_s|z_t), ``(..., S)``.
        weight: w.
    """
    is_possible = (told > -inf) & (untold > -inf)
    return (told + weight * torch.where(is_possible, told - untold, 0.0)).log_softmax(-1)


def _without(condition: tuple[Tensor, ...], seen: tuple[Seen, ...]) -> tuple[Tensor, ...]:
    """The condition with all that may be absent left out."""
    return tuple(each.absent(c) if each.may_be_absent else c for each, c in zip(seen, condition, strict=True))
