"""Processes that turn coordinates to MASK and do nothing else: two numbers a coordinate, whatever K is."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from ..categorical import check_states, log_one_hot, one_hot
from ..coupling import MaximumCoupling
from ..problem import Problem
from ..transition import SparseTransition
from .base import ForwardProcess, floored, kept_logits

__all__ = ["MaskProcess"]


class MaskProcess(ForwardProcess):
    """u_t = (1 - gamma_t) onehot(x) + gamma_t onehot(MASK), gamma monotone in t.

    A subclass gives :meth:`interior_log_kept_masked` and :meth:`log_stay_odds`. Marginals, coupling and KL
    are computed over the two states x and MASK alone, which gives the same numbers as all K + 1 of them.
    """

    mask_only = True

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem, problem.num_classes + 1)

    @abstractmethod
    def interior_log_kept_masked(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """Log of 1 - gamma_t and of gamma_t.

        Args:
            x: Data ``(B, *shape)``.
            t: M steps per example ``(B, M)``, in 1..T-1.
            condition: Labels ``(B,)``, codes ``(B, m)`` or None.

        Returns:
            ``(B, M, *shape, 2)``; a constant gamma may have 1 for a dimension.
        """

    @abstractmethod
    def log_stay_odds(self) -> Tensor:
        """Where the reverse process starts from: log odds that a coordinate masked at t is masked at s = t-1.

        gamma_s / (gamma_t - gamma_s), of a schedule gamma that does not depend on x (eq. 10).

        Returns:
            ``(T + 1, *shape)``, for t = 0..T; ``-inf`` at 0 and 1. Dimensions of ``shape`` may be 1.
        """

    def interior_log_marginals(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        log_two = self.interior_log_kept_masked(x, t, condition)
        kept = log_one_hot(x, self.problem.num_classes).unsqueeze(1) + log_two[..., :1]
        return torch.cat([kept, log_two[..., 1:].expand(*kept.shape[:-1], 1)], -1)  # (B, M, *shape, K + 1)

    def reverse_skip(self, state: Tensor, t: Tensor) -> Tensor:
        num_states = self.num_states
        stay = self.log_stay_odds()[t].sigmoid().unsqueeze(-1).to(state)  # (B, *shape or 1.., 1)
        mask = one_hot(torch.tensor(num_states - 1, device=state.device), num_states, state.dtype)
        masked = floored(stay * mask + (1 - stay) * (1 - mask) / self.problem.num_classes, num_states).log()
        kept, other = kept_logits(torch.ones_like(stay), num_states)
        is_masked = state[..., -1:]
        return is_masked * masked + (1 - is_masked) * other + state * (1 - mask) * (kept - other)

    def log_prior(self) -> Tensor:
        return log_one_hot(torch.tensor(self.num_states - 1), self.num_states)

    def kept(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        return self._log_kept_masked(x, t, condition)[..., 0].exp()

    def transition(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> SparseTransition:
        check_states(x, self.problem.num_classes, self.problem.shape)
        log_u_s, log_u_t = self._log_kept_masked(x, torch.stack([t - 1, t], 1), condition).unbind(1)  # (B, *shape, 2)
        support = torch.stack([x, torch.full_like(x, self.num_states - 1)], -1)
        coupling = MaximumCoupling.of(log_u_s, log_u_t)
        return SparseTransition(
            x, t, log_u_s, log_u_t, coupling, condition, support=support, num_states=self.num_states
        )

    def _log_kept_masked(self, x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        """Log of 1 - gamma_t and of gamma_t at any steps ``(B, M)``, ``(B, M, *shape, 2)``; PAD is kept."""
        kept, masked = log_one_hot(torch.arange(2, device=x.device), 2)
        log_u = self._between(x, t, kept, masked, self.interior_log_kept_masked, condition)
        if self.problem.pad is not None:
            log_u = torch.where((x == self.problem.pad).unsqueeze(1).unsqueeze(-1), kept, log_u)
        return log_u.expand(*t.shape, *x.shape[1:], 2)
