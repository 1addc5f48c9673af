"""A learned, data-aware mask schedule: which coordinates are hidden when depends on the data."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..networks.base import Backbone, check_backbone
from ..problem import Problem
from ..states import SparseStates
from .fixed import AbsorbingProcess
from .mask import MaskProcess

__all__ = ["LearnedMaskProcess"]


class LearnedMaskProcess(MaskProcess):
    """u_t = (1 - gamma_t) onehot(x) + gamma_t onehot(MASK), gamma monotone in t per coordinate.

    gamma_t = sum_{tau <= t} softmax_tau(order + network(x)): increments over t that sum to one, so
    that gamma_T = 1 exactly and a masked coordinate never returns. With ``order`` and the network's last
    layer at zero the increments are all 1/T and the process is the fixed absorbing one.

    ``order`` is a table of logits per coordinate and step that all examples share. Networks that are
    equivariant to shifts (a Transformer with rotary positions, a U-Net) cannot tell a coordinate by its
    place, and every network learns such an order more slowly than a table does. The reverse process
    starts from the order's own posterior, so that learning an order costs nothing in between.

    Args:
        problem: K, shape and T.
        network: Makes the backbone from ``(problem, num_inputs, num_outputs)``; its outputs are
            the T increments of each coordinate.
    """

    learned = True
    _order_scale = 10.0  # of the table, which Adam thereby moves ten times as fast as a weight

    def __init__(self, problem: Problem, network: Callable[[Problem, int, int], Backbone]) -> None:
        super().__init__(problem)
        self.base = AbsorbingProcess(problem)
        self.network = check_backbone(network(problem, problem.num_classes, problem.num_steps))
        self.order = nn.Parameter(torch.zeros(*problem.shape, problem.num_steps))

    def interior_log_kept_masked(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        whole = SparseStates.hard(x, self.problem.num_classes)
        logits = self.network(whole, torch.zeros_like(t[:, 0]), condition).float() + self._log_order()
        increments = logits.log_softmax(-1)  # (B, *shape, T)
        log_masked = increments.logcumsumexp(-1)  # (B, *shape, T): log gamma_1..log gamma_T
        log_kept = increments.flip(-1).logcumsumexp(-1).flip(-1)  # log (1 - gamma_0)..log (1 - gamma_{T-1})
        index = t.reshape(*t.shape, *[1] * x.dim()).expand(*t.shape, *x.shape[1:], 1)  # (B, M, *shape, 1)
        log_gamma = log_masked.unsqueeze(1).expand(-1, t.shape[1], *[-1] * x.dim()).gather(-1, index - 1)
        log_alpha = log_kept.unsqueeze(1).expand(-1, t.shape[1], *[-1] * x.dim()).gather(-1, index)
        return torch.cat([log_alpha, log_gamma], -1)

    def log_stay_odds(self) -> Tensor:
        increments = self._log_order().log_softmax(-1).movedim(-1, 0)  # (T, *shape): of t = 1..T
        odds = increments.logcumsumexp(0)[:-1] - increments[1:]  # of t = 2..T
        return torch.cat([torch.full_like(increments[:1], float("-inf")).expand(2, *self.order.shape[:-1]), odds])

    def _log_order(self) -> Tensor:
        return self._order_scale * self.order
