"""Mask schedules with an order: which coordinates are hidden when, by hand or learned from the data."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from ..errors import FLDDError
from ..networks.base import Backbone, check_backbone
from ..problem import Problem
from ..states import SparseStates
from .fixed import AbsorbingProcess
from .mask import MaskProcess

__all__ = ["LearnedMaskProcess", "StaggeredProcess"]


class StaggeredProcess(MaskProcess):
    """Masked diffusion that reveals coordinates together which lie far apart.

    Neighbours in a text or an image depend on each other, and a factorised step cannot draw them together.
    A coordinate at position i has a rank r in [0, 1), the fractional part of <a, i> with the a of the
    additive sequence of Roberts (2018), so that all coordinates of a rank below any p are spread evenly. At
    the step from t to s = t - 1 a masked coordinate stays masked with the log odds

        log(t - 1) + contrast (T r - (T - t + 1)),

    the second term kept within -4 to 4: the smaller r the sooner it is revealed. T = 4 in one dimension is
    roughly every fourth coordinate, then those halfway between, then the rest.

    Args:
        problem: K, shape and T.
        contrast: How sharply ranks are told apart; 0 is the absorbing process.

    Raises:
        FLDDError: If the contrast is negative.
    """

    odds: Tensor

    def __init__(self, problem: Problem, contrast: float = 4.0) -> None:
        super().__init__(problem)
        if contrast < 0:
            raise FLDDError(f"contrast is {contrast}, but it must not be negative; 0 is the absorbing process.")
        num_steps = problem.num_steps
        place = num_steps * spread_ranks(problem.shape)  # (*shape)
        t = torch.arange(num_steps + 1).reshape(-1, *[1] * place.dim())
        earliness = (contrast * (place - (num_steps - t + 1))).clamp(-4, 4)  # (T + 1, *shape)
        self.register_buffer("odds", AbsorbingProcess(problem).log_stay_odds() + earliness, persistent=False)

    def log_stay_odds(self) -> Tensor:
        return self.odds

    def interior_log_kept_masked(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        return log_kept_masked(self.odds[2:].movedim(0, -1).unsqueeze(0), t)


class LearnedMaskProcess(MaskProcess):
    """A learned, data-aware mask schedule over the order of :class:`StaggeredProcess`.

    The log odds that a coordinate masked at t is masked at s = t - 1 are base + order + network(x), so
    that gamma is monotone in t, gamma_T = 1 exactly and a masked coordinate never returns. With ``order``
    and the network's last layer at zero the process is its base.

    ``order`` is a table per step and coordinate that all examples share. Networks that are equivariant to
    shifts, such as a Transformer with rotary positions, cannot tell a coordinate by its place, and every
    network learns an order more slowly than a table does. The reverse process starts from the posterior of
    base + order, so that changing the order costs nothing on the way.

    Args:
        problem: K, shape and T.
        network: Makes the backbone from ``(problem, num_inputs, num_outputs)``; its outputs are
            log odds of each coordinate for t = 2..T.
        contrast: Of the base; 0 starts from the absorbing process.
    """

    learned = True
    _order_scale = 10.0  # of the table, which Adam thereby moves ten times as fast as a weight

    def __init__(
        self, problem: Problem, network: Callable[[Problem, int, int], Backbone], contrast: float = 4.0
    ) -> None:
        super().__init__(problem)
        self.base = StaggeredProcess(problem, contrast)
        self.network = check_backbone(network(problem, problem.num_classes, problem.num_steps - 1))
        self.order = nn.Parameter(torch.zeros(problem.num_steps + 1, *problem.shape))

    def log_stay_odds(self) -> Tensor:
        return self.base.log_stay_odds() + self._order_scale * self.order

    def interior_log_kept_masked(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        whole = SparseStates.hard(x, self.problem.num_classes)
        residual = self.network(whole, torch.zeros_like(t[:, 0]), condition).float()  # (B, *shape, T - 1)
        return log_kept_masked(residual + self.log_stay_odds()[2:].movedim(0, -1), t)


def log_kept_masked(log_odds: Tensor, t: Tensor) -> Tensor:
    """Log of 1 - gamma_t and gamma_t, where gamma_s = gamma_t p(masked at s | masked at t) and gamma_T = 1.

    Args:
        log_odds: Of staying masked at the steps from t = 2..T, ``(B or 1, *shape, T - 1)``.
        t: M steps per example ``(B, M)``, in 1..T-1.

    Returns:
        ``(B, M, *shape, 2)``; finite wherever the odds are.
    """
    log_gamma = logsigmoid(log_odds).flip(-1).cumsum(-1).flip(-1)  # of t = 1..T-1
    before = torch.cat([log_gamma[..., 1:], torch.zeros_like(log_gamma[..., :1])], -1)  # of t = 2..T
    log_kept = (before + logsigmoid(-log_odds)).flip(-1).logcumsumexp(-1).flip(-1)
    both = torch.stack([log_kept, log_gamma], -1)  # (B or 1, *shape, T - 1, 2)
    dims = both.shape[1:-2]
    index = (t - 1).reshape(*t.shape, *[1] * len(dims), 1, 1).expand(*t.shape, *dims, 1, 2)
    return both.unsqueeze(1).expand(*t.shape, *both.shape[1:]).gather(-2, index).squeeze(-2)


def spread_ranks(shape: tuple[int, ...]) -> Tensor:
    """A rank in [0, 1) for every coordinate, such that neighbouring ranks lie far apart; float32, ``shape``.

    The additive sequence of M. Roberts, "The unreasonable effectiveness of quasirandom sequences" (2018):
    the fractional part of sum_k i_k g^-k, with g the root of g^(d + 1) = g + 1 (the golden ratio for d = 1).
    """
    g = 2.0
    for _ in range(64):
        g = (1 + g) ** (1 / (len(shape) + 1))
    total = torch.zeros(shape, dtype=torch.float64)
    for k, size in enumerate(shape):
        total += torch.arange(size, dtype=torch.float64).reshape(-1, *[1] * (len(shape) - 1 - k)) * g ** -(k + 1)
    return total.frac().float()
