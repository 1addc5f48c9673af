"""How gradients reach the forward process: the interface of all estimators.

The training objective of one step is E_{z_t ~ u_t}[KL(z_t)], the divergence of the reverse process from
the posterior at a draw. Its gradient has two parts (eq. 13): through KL, and through the
distribution of z_t, which depends on phi. An estimator turns one step into a loss with that gradient.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..bound import Noise, StepTerms
from ..forward import ForwardProcess, Step
from ..reverse import Reverse
from ..spec import Spec

__all__ = ["GradientEstimator", "StepLoss"]


@dataclass(frozen=True)
class StepLoss:
    """What an estimator returns.

    Attributes:
        surrogate: ``(B,)``. Its gradient is the estimate; its value means nothing.
        kl: ``(B,)``, detached: KL of the step in nats per example, or None where the estimator's
            objective is no bound (a relaxation) and must not be reported as one.
        auxiliary: ``(B,)``, nats per example, mean over draws: the auxiliary loss of
            :class:`~fldd_lightning.bound.StepTerms`. None where there is none, or where it would reach the
            forward process through relaxed states.
    """

    surrogate: Tensor
    kl: Tensor | None
    auxiliary: Tensor | None = None


def without_others(estimator: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Replace the running means of another estimator or other steps, which a checkpoint may hold, by one's own."""
    own = estimator.state_dict(prefix=prefix)
    others = [name for name in state_dict if name.startswith(prefix)]
    if own.keys() != set(others) or any(own[name].shape != state_dict[name].shape for name in others):
        for name in others:
            del state_dict[name]
        state_dict.update(own)


class GradientEstimator(nn.Module, ABC):
    """Base class; a new estimator is one subclass with one method.

    Args:
        spec: K, shape and T.

    Attributes:
        has_kl: Whether every :class:`StepLoss` has a KL.
    """

    has_kl: bool = True

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.spec = spec
        self.register_load_state_dict_pre_hook(without_others)  # type: ignore[no-untyped-call]

    def start_anew(self, spec: Spec) -> None:
        """Forget running means, which start at NaN, and keep those of the steps of another spec from now on."""
        before = self.spec.num_steps + 1
        for module in (each for each in self.modules() if isinstance(each, GradientEstimator)):
            module.spec = spec
            for name, buffer in module.named_buffers(recurse=False):
                if buffer.dim() and buffer.shape[-1] == before:
                    setattr(module, name, buffer.new_full((*buffer.shape[:-1], spec.num_steps + 1), float("nan")))

    def check(self, process: ForwardProcess, reverse: Reverse) -> None:
        """Raise FLDDError if the estimate would be wrong for these two; called when a model is built."""

    def phase(self, global_step: int) -> int:
        """A number that changes whenever the estimator draws other noise from a step on; 0 if it never does."""
        return 0

    @abstractmethod
    def loss(self, step: Step, terms: Callable[[Tensor], StepTerms], generator: Noise, global_step: int) -> StepLoss:
        """Estimate the gradient of one step's KL for both parameter sets.

        Args:
            step: The forward transition, with gradients to phi.
            terms: The step's KL at n draws of z_t, integers ``(n, B, *shape)`` or weights ``(n, B, *shape, S)``; see
                :func:`~fldd_lightning.bound.step_terms`. Each call is one pass of the denoiser.
            generator: Source of the noise in z_t. Draw by :func:`~fldd_lightning.bound.states_drawn` and
                :func:`~fldd_lightning.bound.uniform`: then several processes draw what one would, and the step can
                be compiled.
            global_step: Optimiser steps so far, for schedules.
        """
