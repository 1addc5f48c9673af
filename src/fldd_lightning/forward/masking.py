"""Mask schedules with an order: which coordinates are hidden when, by hand or learned from the data."""

from __future__ import annotations

from collections.abc import Callable
from math import log

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from ..errors import FLDDError
from ..networks.base import Backbone, check_backbone
from ..problem import Problem
from ..states import SparseStates
from .mask import MaskProcess

__all__ = ["LearnedMaskProcess", "StaggeredProcess"]


class StaggeredProcess(MaskProcess):
    """Masked diffusion that reveals coordinates together which lie far apart.

    Neighbours in a text or an image depend on each other, and a factorised step cannot draw them together.
    Coordinates are sorted by :func:`bayer_order`, cut into T groups of equal size, and revealed a group
    at a step: for T = 4 in one dimension every fourth coordinate, those halfway between, then the rest in two
    parts.

    Args:
        problem: K, shape and T.
        slack: In (0, 1). At every step each coordinate does the opposite of what is its turn with a probability of
            about ``slack / T``. A learned process needs some, to see what another order would have brought.

    Raises:
        FLDDError: If the slack is out of range.
    """

    odds: Tensor

    def __init__(self, problem: Problem, slack: float = 0.05) -> None:
        super().__init__(problem)
        if not 0 < slack < 1:
            raise FLDDError(f"slack is {slack}, but it must lie strictly between 0 and 1 (0.05 is usual).")
        num_steps = problem.num_steps
        turn = num_steps - bayer_order(problem.shape) * num_steps // problem.num_dims  # (*shape): the t of their step
        t = torch.arange(num_steps + 1).reshape(-1, *[1] * turn.dim())
        odds = torch.where(t > turn, 1.0, -1.0) * log(num_steps / slack)  # (T + 1, *shape)
        self.slack = slack
        self.register_buffer("odds", odds.masked_fill(t < 2, float("-inf")), persistent=False)

    def configuration(self) -> str:
        return f"{super().configuration()}(slack={self.slack})"

    def log_stay_odds(self) -> Tensor:
        return self.odds

    def interior_log_kept_masked(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        return log_kept_masked(self.odds[2:].movedim(0, -1).unsqueeze(0), t)


class LearnedMaskProcess(MaskProcess):
    """A learned, data-aware mask schedule over a fixed one.

    The log odds that a coordinate masked at t is masked at s = t - 1 are base + order + network(x), so
    that gamma is monotone in t, gamma_T = 1 exactly and a masked coordinate never returns. With ``order``
    and the network's last layer at zero the process is its base.

    ``order`` is a table per step and coordinate that all examples share. Networks that are equivariant to
    shifts, such as a Transformer with rotary positions, cannot tell a coordinate by its place, and every
    network learns an order more slowly than a table does. The reverse process starts from the posterior of
    base + order, so that it follows a change of the order at once.

    Args:
        problem: K, shape and T.
        network: Makes the backbone from ``(problem, num_inputs, num_outputs)``; its outputs are
            log odds of each coordinate for t = 2..T.
        base: Makes the schedule to start from: :class:`StaggeredProcess`, or for data without neighbours
            :class:`AbsorbingProcess`.

    Raises:
        FLDDError: If the base is learned or does more than mask.
    """

    learned = True
    _order_scale = 10.0  # of the table, which Adam thereby moves ten times as fast as a weight

    def __init__(
        self,
        problem: Problem,
        network: Callable[[Problem, int, int], Backbone],
        base: Callable[[Problem], MaskProcess] = StaggeredProcess,
    ) -> None:
        super().__init__(problem)
        self.base = base(problem)
        if not isinstance(self.base, MaskProcess) or self.base.learned:
            raise FLDDError(
                f"the base is {type(self.base).__name__}, but it must be a fixed process that only masks: "
                "StaggeredProcess or AbsorbingProcess."
            )
        self.network = check_backbone(network(problem, problem.num_classes, problem.num_steps - 1))
        self.order = nn.Parameter(torch.zeros(problem.num_steps + 1, *problem.shape))

    def log_stay_odds(self) -> Tensor:
        return self.base.log_stay_odds() + self._order_scale * self.order

    def configuration(self) -> str:
        return f"{super().configuration()} over {self.base.configuration()}"

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


def bayer_order(shape: tuple[int, ...]) -> Tensor:
    """The place of every coordinate in an order in which consecutive ones lie far apart.

    In one dimension that of the van der Corput sequence: positions sorted by their bits read backwards. In two
    that of Bayer's matrix of ordered dithering (1973). In d dimensions the last bits of the d positions count
    most, and of these their parity, then the parity of all but the first, and so on.

    Returns:
        Integers 0..D-1, ``shape``, each once.
    """
    key = torch.zeros(shape, dtype=torch.float64)
    positions = torch.meshgrid(*(torch.arange(size) for size in shape), indexing="ij")
    weight = 1.0
    for bit in range(max(shape).bit_length()):
        bits = [(position >> bit) & 1 for position in positions]
        for k in range(len(shape)):
            key += weight * (sum(bits[k:]) % 2)
            weight /= 2
    return key.flatten().argsort(stable=True).argsort().view(shape)
