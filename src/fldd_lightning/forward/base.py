"""The forward (noising) process: marginals q(z_t|x) with exact boundaries, and its posterior."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..categorical import check_states, log_one_hot, without_state
from ..coupling import MaximumCoupling
from ..errors import FLDDError
from ..problem import Problem
from ..transition import Posterior, Transition

__all__ = ["ForwardProcess"]

_SKIP_FLOOR = 1e-2  # probability the reverse skip spreads over all states, so that its logits are finite


class ForwardProcess(nn.Module, ABC):
    """Base class of all noising processes (FLDD eq. 8, 9).

    A subclass gives :meth:`interior_log_marginals` and :meth:`log_prior`. This class owns the
    boundaries u(x, 0) = onehot(x) and u(x, T) = prior, which therefore hold exactly, and couples
    neighbouring marginals by the maximum coupling unless :meth:`couple` is overridden.

    Args:
        problem: K, shape and T.
        num_states: S; K, or K + 1 where the last state is MASK.

    Attributes:
        mask_only: Whether a coordinate is either its data value or MASK, so that the reverse
            process may carry unmasked coordinates over unchanged.
        learned: Whether the process has parameters; those need T of at least 2.

    Raises:
        FLDDError: If a learned process is asked for with T = 1.
    """

    mask_only: bool = False
    learned: bool = False

    def __init__(self, problem: Problem, num_states: int) -> None:
        super().__init__()
        if self.learned and problem.num_steps < 2:
            raise FLDDError(
                f"{type(self).__name__} is learned, but with num_steps=1 there is no step between data and "
                "noise to learn. Use num_steps of 2 or more."
            )
        self.problem = problem
        self.num_states = num_states

    @property
    def has_mask(self) -> bool:
        """Whether the last state is MASK, which is not a data value."""
        return self.num_states == self.problem.num_classes + 1

    def configuration(self) -> str:
        """What a checkpoint has to agree on: the class, and options that are not among its weights."""
        return type(self).__name__

    @abstractmethod
    def interior_log_marginals(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """Log marginals strictly between data and noise (eq. 9).

        Args:
            x: Data ``(B, *shape)``.
            t: M steps per example ``(B, M)``, in 1..T-1.
            condition: Labels ``(B,)``, codes ``(B, m)`` or None.

        Returns:
            log u_t, ``(B, M, *shape, S)``, normalised over S.
        """

    @abstractmethod
    def log_prior(self) -> Tensor:
        """Log of the prior of one coordinate at t = T, ``(S,)``; the same for every coordinate."""

    @abstractmethod
    def reverse_skip(self, state: Tensor, t: Tensor) -> Tensor:
        """Logits the reverse network starts from: the base process's posterior, x unknown.

        Args:
            state: Weights over states ``(B, *shape, S)``, one-hot or relaxed.
            t: Steps ``(B,)``, in 1..T.

        Returns:
            Logits ``(B, *shape, S)``, linear in ``state``.
        """

    def log_marginals(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """Log marginals at any steps, boundaries included.

        Args:
            x: Data ``(B, *shape)``.
            t: Steps ``(B, M)``, in 0..T.
            condition: Labels ``(B,)``, codes ``(B, m)`` or None.

        Returns:
            log u_t, ``(B, M, *shape, S)`` in float32 or better; ``-inf`` where exactly 0. Coordinates
            at PAD stay there, and no other coordinate gets there.

        Raises:
            FLDDError: If ``x`` is not integers 0..K-1 of the right shape.
        """
        problem = self.problem
        check_states(x, problem.num_classes, problem.shape)
        at_data = log_one_hot(x, self.num_states).unsqueeze(1)  # (B, 1, *shape, S)
        log_prior = self.log_prior().to(at_data)
        log_u = self._between(x, t, at_data, log_prior, self.interior_log_marginals, condition)
        if problem.pad is not None:
            is_pad = (x == problem.pad).unsqueeze(1).unsqueeze(-1)  # (B, 1, *shape, 1)
            log_u = torch.where(is_pad, at_data, without_state(log_u, problem.pad))
        return log_u

    def couple(self, x: Tensor, t: Tensor, log_u_s: Tensor, log_u_t: Tensor) -> Posterior:
        """The posterior q(z_s|z_t, x); the maximum coupling of the two marginals (eq. 10, 11)."""
        return MaximumCoupling.of(log_u_s, log_u_t)

    def kept(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """Probability that z_t still is x, ``(B, M, *shape)``, for steps ``(B, M)`` in 0..T."""
        log_u = self.log_marginals(x, t, condition)
        index = x.unsqueeze(1).unsqueeze(-1).expand(*log_u.shape[:-1], 1)
        return log_u.gather(-1, index).squeeze(-1).exp()

    def _between(
        self,
        x: Tensor,
        t: Tensor,
        at_data: Tensor,
        log_prior: Tensor,
        interior: Callable[[Tensor, Tensor, Tensor | None], Tensor],
        condition: Tensor | None,
    ) -> Tensor:
        """``at_data`` at t = 0, ``log_prior`` at T, ``interior`` between, for steps ``(B, M)``."""
        num_steps = self.problem.num_steps
        column = t.reshape(*t.shape, *[1] * x.dim())  # (B, M, 1.., 1)
        log_u = torch.where(column == 0, at_data, log_prior)
        if num_steps > 1:
            between = interior(x, t.clamp(1, num_steps - 1), condition)
            log_u = torch.where((column > 0) & (column < num_steps), between, log_u)
        return log_u

    def transition(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Transition:
        """All there is to know about the step from t to t-1.

        Args:
            x: Data ``(B, *shape)``.
            t: Steps ``(B,)``, in 1..T.
            condition: Labels ``(B,)``, codes ``(B, m)`` or None.
        """
        return self.dense_transition(x, t, condition)

    def dense_transition(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Transition:
        """The same with a number for every state, which :meth:`transition` may do without."""
        log_u = self.log_marginals(x, torch.stack([t - 1, t], 1), condition)
        log_u_s, log_u_t = log_u.unbind(1)
        return Transition(x, t, log_u_s, log_u_t, self.couple(x, t, log_u_s, log_u_t), condition)


def floored(p: Tensor, num_states: int) -> Tensor:
    """Probabilities of a reverse skip, none of them zero."""
    return (1 - _SKIP_FLOOR) * p + _SKIP_FLOOR / num_states


def kept_logits(stay: Tensor, num_states: int) -> tuple[Tensor, Tensor]:
    """Logits of the present state and of any other one when it is kept with probability ``stay``."""
    other = (1 - stay) / max(num_states - 1, 1)
    return floored(stay, num_states).log(), floored(other, num_states).log()
