"""Processes that turn coordinates to MASK and do nothing else: two numbers a coordinate, whatever K is."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from ..categorical import check_states, log_one_hot
from ..coupling import MaximumCoupling
from ..problem import Problem
from ..transition import SparseTransition
from .base import ForwardProcess

__all__ = ["MaskProcess"]


class MaskProcess(ForwardProcess):
    """u_t = (1 - gamma_t) onehot(x) + gamma_t onehot(MASK), gamma monotone in t.

    A subclass gives :meth:`interior_log_kept_masked`. Marginals, coupling and KL are computed over the two
    states x and MASK alone, which gives the same numbers as all K + 1 of them.
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
            condition: Labels ``(B,)`` or None.

        Returns:
            ``(B, M, *shape, 2)``; a constant gamma may have 1 for a dimension.
        """

    def interior_log_marginals(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        log_two = self.interior_log_kept_masked(x, t, condition)
        kept = log_one_hot(x, self.problem.num_classes).unsqueeze(1) + log_two[..., :1]
        return torch.cat([kept, log_two[..., 1:].expand(*kept.shape[:-1], 1)], -1)  # (B, M, *shape, K + 1)

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
