"""The Concrete (Gumbel-softmax) relaxation, and the schedule from it to an unbiased estimator."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ..bound import Noise, StepTerms, states_drawn, uniform
from ..factory import build
from ..forward import ForwardProcess, Step
from ..ranges import COUNT, NATURAL, POSITIVE, check_numbers
from ..reverse import Reverse
from ..spec import Spec
from .base import GradientEstimator, StepLoss

__all__ = ["Concrete", "WarmUp"]


class Concrete(GradientEstimator):
    """Relaxed states w = softmax((log u_t + Gumbel) / tau) (eq. 14; Maddison et al., 2017).

    Biased, of low variance. The temperature falls exponentially. The relaxed objective is no
    bound on the likelihood, so no KL is reported.

    Args:
        spec: K, shape and T.
        start: Temperature at the first step.
        end: Temperature after ``decay_steps`` and ever after.
        decay_steps: Optimiser steps of the fall.

    Raises:
        FLDDError: If a temperature is not positive.
    """

    has_kl = False

    def __init__(self, spec: Spec, start: float = 1.0, end: float = 1e-3, decay_steps: int = 10_000) -> None:
        check_numbers(locals(), start=POSITIVE, end=POSITIVE, decay_steps=COUNT)
        super().__init__(spec)
        self.start, self.end, self.decay_steps = start, end, decay_steps

    def temperature(self, global_step: int) -> float:
        """Temperature after a number of optimiser steps."""
        progress = min(global_step / self.decay_steps, 1.0)
        return float(self.start * (self.end / self.start) ** progress)

    def loss(self, step: Step, terms: Callable[[Tensor], StepTerms], generator: Noise, global_step: int) -> StepLoss:
        if not step.learns:  # nothing to relax
            at_draw = terms(states_drawn(step, generator).unsqueeze(0))
            kl, auxiliary = (None if each is None else each[0] for each in at_draw)
            assert kl is not None
            return StepLoss(kl, kl.detach(), auxiliary)
        w = step.draw_relaxed(uniform(step.noise_shape, generator), self.temperature(global_step))
        return StepLoss(terms(w.unsqueeze(0)).kl[0], None)


class WarmUp(GradientEstimator):
    """One estimator first, another one after a number of optimiser steps (the paper's order).

    Args:
        spec: K, shape and T.
        first: Makes the estimator of the warm-up, such as :class:`Concrete`.
        then: Makes the estimator that follows, such as :class:`RLOO`.
        steps: Length of the warm-up in optimiser steps.
    """

    def __init__(
        self,
        spec: Spec,
        first: Callable[[Spec], GradientEstimator],
        then: Callable[[Spec], GradientEstimator],
        steps: int = 10_000,
    ) -> None:
        check_numbers(locals(), steps=NATURAL)
        super().__init__(spec)
        self.first = build(first, GradientEstimator, spec)
        self.then = build(then, GradientEstimator, spec)
        self.has_kl = self.first.has_kl and self.then.has_kl
        self.steps = steps

    def check(self, process: ForwardProcess, reverse: Reverse) -> None:
        self.first.check(process, reverse)
        self.then.check(process, reverse)

    def phase(self, global_step: int) -> int:
        is_first = global_step < self.steps
        return 2 * (self.first if is_first else self.then).phase(global_step) + is_first

    def loss(self, step: Step, terms: Callable[[Tensor], StepTerms], generator: Noise, global_step: int) -> StepLoss:
        active = self.first if global_step < self.steps else self.then
        return active.loss(step, terms, generator, global_step)
