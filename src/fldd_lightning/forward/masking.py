"""A learned, data-aware mask schedule: which coordinates are hidden when depends on the data."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..networks.base import Backbone, check_backbone
from ..problem import Problem
from ..states import SparseStates
from .fixed import AbsorbingProcess
from .mask import MaskProcess

__all__ = ["LearnedMaskProcess"]


class LearnedMaskProcess(MaskProcess):
    """u_t = (1 - gamma_t) onehot(x) + gamma_t onehot(MASK), gamma monotone in t per coordinate.

    gamma_t = sum_{tau <= t} softmax_tau(network(x)): increments over t that sum to one, so that
    gamma_T = 1 exactly and a masked coordinate never returns. With the network's last layer at
    zero the increments are all 1/T and the process is the fixed absorbing one.

    Args:
        problem: K, shape and T.
        network: Makes the backbone from ``(problem, num_inputs, num_outputs)``; its outputs are
            the T increments of each coordinate.
    """

    learned = True

    def __init__(self, problem: Problem, network: Callable[[Problem, int, int], Backbone]) -> None:
        super().__init__(problem)
        self.base = AbsorbingProcess(problem)
        self.network = check_backbone(network(problem, problem.num_classes, problem.num_steps))

    def interior_log_kept_masked(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        whole = SparseStates.hard(x, self.problem.num_classes)
        increments = self.network(whole, torch.zeros_like(t[:, 0]), condition).float().log_softmax(-1)
        log_masked = increments.logcumsumexp(-1)  # (B, *shape, T): log gamma_1..log gamma_T
        log_kept = increments.flip(-1).logcumsumexp(-1).flip(-1)  # log (1 - gamma_0)..log (1 - gamma_{T-1})
        index = t.reshape(*t.shape, *[1] * x.dim()).expand(*t.shape, *x.shape[1:], 1)  # (B, M, *shape, 1)
        log_gamma = log_masked.unsqueeze(1).expand(-1, t.shape[1], *[-1] * x.dim()).gather(-1, index - 1)
        log_alpha = log_kept.unsqueeze(1).expand(-1, t.shape[1], *[-1] * x.dim()).gather(-1, index)
        return torch.cat([log_alpha, log_gamma], -1)

    def reverse_skip(self, state: Tensor, t: Tensor) -> Tensor:
        return self.base.reverse_skip(state, t)
