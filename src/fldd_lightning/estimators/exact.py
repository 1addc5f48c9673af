"""Masked diffusion trained on the bound of infinitely many steps, with exactly n masks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..any_order import exactly_masked, has_any_order
from ..bound import Noise, StepTerms, permutation, uniform
from ..errors import FLDDError
from ..forward import ForwardProcess, MaskedStep, Step
from ..reverse import Reverse
from .base import GradientEstimator, StepLoss

__all__ = ["ExactMasks"]


class ExactMasks(GradientEstimator):
    """The strongest way we know to train masked diffusion, for processes that learn nothing.

    Of D coordinates exactly n are masked, n uniform in 1..D, and their cross-entropy counts D/n:

        -log p(x) <= E_n E_{z: n masks} D/n sum_{masked i} -log p(x^i|z),

    the bound of T = infinity, as of any order (Uria et al., 2014; Hoogeboom et al., 2022, eq. 3). Its gradient varies
    less than that of a step of T, in which the number of masks is random. The denoiser cannot be told a step that
    was not drawn, so it must be time-independent.

    ``train/nelbo`` is this bound. ``train/kl_t*`` are equal parts of it.
    """

    def check(self, process: ForwardProcess, reverse: Reverse) -> None:
        if not has_any_order(process, reverse):
            raise FLDDError(
                "ExactMasks needs AbsorbingProcess and a reverse process with time_independent: true, because the step "
                "is not drawn. Use Reinforce with others."
            )

    def loss(self, step: Step, terms: Callable[[Tensor], StepTerms], generator: Noise, global_step: int) -> StepLoss:
        assert isinstance(step, MaskedStep)
        offset, each = uniform((), generator), uniform((len(step.x), self.spec.num_dims), generator)
        place, batch = permutation(len(step.x), generator)
        strata = (place + offset) / batch  # of n / D
        z, weight = exactly_masked(step, torch.cat([strata[:, None], each], 1))
        # in its step a masked coordinate costs -log p(x|z) (t - s) / t
        bound = terms(z.unsqueeze(0)).kl[0] / step.usual * weight
        per_step = bound / self.spec.num_steps
        return StepLoss(per_step, per_step.detach())
