"""Learned processes as residuals on a fixed base: training starts at conventional diffusion."""

from __future__ import annotations

from collections.abc import Callable
from math import log

import torch
from torch import Tensor

from ..errors import FLDDError
from ..networks.base import Backbone, check_backbone
from ..problem import Problem
from ..states import SparseStates
from .base import ForwardProcess
from .fixed import AbsorbingProcess, UniformProcess

__all__ = ["ResidualAbsorbingProcess", "ResidualProcess", "ResidualUniformProcess"]


class ResidualProcess(ForwardProcess):
    """u_t = softmax(log floor(base_t) + network(x, t)): marginals that depend on the whole of x (eq. 9).

    The network's last layer starts at zero, so that the process equals its floored base, and can
    only leave it where the bound improves. The floor mixes the base with the uniform distribution
    over all S states: without it a state of probability zero could never be reached by a gradient.

    Args:
        problem: K, shape and T.
        base: The fixed process to start from.
        network: Makes the backbone from ``(problem, num_inputs, num_outputs)``.
        floor: Share of the uniform distribution in the base, in (0, 1).

    Raises:
        FLDDError: If the floor is out of range.
    """

    learned = True

    def __init__(
        self,
        problem: Problem,
        base: ForwardProcess,
        network: Callable[[Problem, int, int], Backbone],
        floor: float,
    ) -> None:
        super().__init__(problem, base.num_states)
        if not 0 < floor < 1:
            raise FLDDError(f"floor is {floor}, but it must lie strictly between 0 and 1 (1e-3 is usual).")
        self.base = base
        self.floor = floor
        self.network = check_backbone(network(problem, problem.num_classes, base.num_states))

    def configuration(self) -> str:
        return f"{super().configuration()}(floor={self.floor}) over {self.base.configuration()}"

    def log_base(self, x: Tensor, t: Tensor) -> Tensor:
        """Log of the floored base, ``(B, M, *shape, S)``, for steps ``(B, M)`` in 1..T-1."""
        log_u = self.base.interior_log_marginals(x, t)
        uniform = torch.full_like(log_u, log(self.floor / self.num_states))
        return torch.logaddexp(log_u + log(1 - self.floor), uniform)

    def interior_log_marginals(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        steps = t.shape[1]
        repeated = SparseStates.hard(x.repeat_interleave(steps, 0), self.problem.num_classes)
        if condition is not None:
            condition = condition.repeat_interleave(steps, 0)
        residual = self.network(repeated, t.flatten(), condition).float()  # (B*M, *shape, S)
        log_base = self.log_base(x, t)
        return (log_base + residual.view_as(log_base)).log_softmax(-1)

    def log_prior(self) -> Tensor:
        return self.base.log_prior()

    def reverse_skip(self, state: Tensor, t: Tensor) -> Tensor:
        return self.base.reverse_skip(state, t)


class ResidualAbsorbingProcess(ResidualProcess):
    """Learned residual over the absorbing process: mass may move to MASK or to any other token."""

    def __init__(
        self,
        problem: Problem,
        network: Callable[[Problem, int, int], Backbone],
        floor: float = 1e-3,
    ) -> None:
        super().__init__(problem, AbsorbingProcess(problem), network, floor)


class ResidualUniformProcess(ResidualProcess):
    """Learned residual over the uniform process."""

    def __init__(
        self,
        problem: Problem,
        network: Callable[[Problem, int, int], Backbone],
        floor: float = 1e-3,
    ) -> None:
        super().__init__(problem, UniformProcess(problem), network, floor)
