"""The forward (noising) process: marginals q(z_t|x) with exact boundaries, and its posterior."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from ..categorical import check_states, float32_or_better, log_one_hot, only_states, without_state
from ..coupling import MaximumCoupling
from ..errors import FLDDError
from ..spec import Spec
from .padding import check_interior, check_step
from .step import DenseStep, Posterior, Step, Timesteps

__all__ = ["ForwardProcess"]

_FLOOR = 1e-2  # probability that posterior_logits spreads over all states, so that logits are finite


class ForwardProcess(nn.Module, ABC):
    """Base class of all noising processes (FLDD eq. 8, 9).

    A subclass gives :meth:`interior_log_marginals`, :meth:`log_prior` and :meth:`posterior_logits`. This class owns the
    boundaries u(x, 0) = onehot(x) and u(x, T) = prior, which therefore hold exactly. It couples the
    marginals of two times by the maximum coupling unless :meth:`couple` is overridden.

    *Times* are those of the grid 0..T that the process is made for. A *step* goes from a time t to a time s before it;
    :attr:`timesteps` says which. They are neighbours, and steps the times that they leave, unless a model serves
    several numbers of steps.

    It also keeps coordinates at PAD where they are. A subclass gives PAD no probability anywhere else, neither in
    :meth:`interior_log_marginals` nor in :meth:`log_prior`; the first step checks it.

    Args:
        spec: K, shape and T.
        num_states: S; K, or K + 1 where the last state is MASK.

    Attributes:
        learned: Whether the process has parameters; those need T of at least 2.
        allowed: Which states coordinates may take, ``(*shape, S)``; None where all may take all.
        timesteps: Which times the steps go between.

    Raises:
        FLDDError: If a learned process is asked for with T = 1.
    """

    learned: bool = False
    allowed: Tensor | None
    _one: Tensor

    def __init__(self, spec: Spec, num_states: int) -> None:
        super().__init__()
        if self.learned and spec.num_steps < 2:
            raise FLDDError(
                f"{type(self).__name__} is learned, but with num_steps=1 there is no step between data and "
                "noise to learn. Use num_steps of 2 or more."
            )
        self.spec = spec
        self.num_states = num_states
        self.timesteps = Timesteps(spec.num_steps, spec.num_steps)
        self.register_buffer("allowed", spec.allowed(num_states), persistent=False)
        self._has_checked_padding = self._is_in_step = False
        self.register_buffer("_one", torch.ones(()), persistent=False)  # moves with the module, as weights do

    @property
    def dtype(self) -> torch.dtype:
        """Of the numbers it gives: float32, or float64 where the module has been put there."""
        return float32_or_better(self._one).dtype

    @property
    def num_steps(self) -> int:
        """Steps that make a sample of noise, N; T unless :meth:`walk` says otherwise."""
        return self.timesteps.numbers[0]

    def walk(self, num_steps: int, further: Sequence[int] = ()) -> None:
        """Go over the same grid in another number of steps from now on.

        Args:
            num_steps: N, at most T.
            further: Numbers of steps whose steps come after these; see ``Timesteps``.
        """
        timesteps = Timesteps(self.spec.num_steps, num_steps, further).to(self._one.device)
        for each in self.modules():  # a base as well
            if isinstance(each, ForwardProcess):
                each.timesteps = timesteps

    @property
    def has_mask(self) -> bool:
        """Whether the last state is MASK, which is not a data value."""
        return self.num_states == self.spec.num_classes + 1

    def configuration(self) -> str:
        """What a checkpoint has to agree on: the class, and options that are not among its weights."""
        return type(self).__name__

    @abstractmethod
    def interior_log_marginals(self, x: Tensor, t: Tensor, condition: tuple[Tensor, ...] = ()) -> Tensor:
        """Log marginals strictly between data and noise (eq. 9).

        Args:
            x: Data ``(B, *shape)``.
            t: M times per example ``(B, M)``, in 1..T-1.
            condition: What networks see beside the state; see ``spec.seen``.

        Returns:
            log u_t, ``(B, M, *shape, S)``, normalised over S; ``-inf`` at PAD where x is not PAD.
        """

    @abstractmethod
    def log_prior(self) -> Tensor:
        """Log of the prior of one coordinate at t = T, ``(S,)``; the same for every coordinate that has all values.

        It is ``-inf`` at PAD.
        """

    def log_priors(self) -> Tensor:
        """Log of the prior of every coordinate, given the values that it has: ``(*shape, S)``, or ``(S,)`` for all."""
        log_prior = self.log_prior()
        return log_prior if self.allowed is None else only_states(log_prior.to(self.allowed.device), self.allowed)

    def leaving(self, t: Tensor) -> Tensor | None:
        """Probability that a step reveals a coordinate, of the schedule that all examples share.

        Args:
            t: Steps ``(B,)``.

        Returns:
            ``(B, *shape)``, without a gradient; None for processes that do more than mask.
        """
        return None

    @abstractmethod
    def posterior_logits(self, state: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """The base process's own posterior q(z_s|z_t), x unknown: the logits that a denoiser may start from.

        Args:
            state: Weights over states ``(B, *shape, S)``, one-hot or relaxed.
            t: Times ``(B,)``, in 1..T.
            s: Earlier times ``(B,)``; t - 1 unless a model serves several numbers of steps.

        Returns:
            Logits ``(B, *shape, S)``, linear in ``state``.
        """

    def log_marginals(self, x: Tensor, t: Tensor, condition: tuple[Tensor, ...] = ()) -> Tensor:
        """Log marginals at any times, boundaries included.

        Args:
            x: Data ``(B, *shape)``.
            t: Times ``(B, M)``, in 0..T.
            condition: What networks see beside the state.

        Returns:
            log u_t, ``(B, M, *shape, S)`` in float32 or better; ``-inf`` where exactly 0. Coordinates
            at PAD stay there, and no other coordinate gets there. None gets to a value that it does not have.

        Raises:
            FLDDError: If ``x`` is not integers 0..K-1 of the right shape, or a subclass gives PAD away.
        """
        if not self._is_in_step:
            check_states(x, self.spec.num_classes, self.spec.shape)  # this waits for the device
        num_steps, pad = self.spec.num_steps, self.spec.pad
        at_data = log_one_hot(x, self.num_states, self.dtype).unsqueeze(1)  # (B, 1, *shape, S)
        column = t.reshape(*t.shape, *[1] * x.dim())  # (B, M, 1.., 1)
        log_u = torch.where(column == 0, at_data, self.log_priors().to(at_data))
        if num_steps > 1:
            between = self.interior_log_marginals(x, t.clamp(1, num_steps - 1), condition)
            if pad is not None and not self._has_checked_padding:
                check_interior(self, between, x, pad)
            log_u = torch.where((column > 0) & (column < num_steps), between, log_u)
        if self.allowed is not None:
            log_u = only_states(log_u, self.allowed)
        if pad is not None:
            is_pad = (x == pad).unsqueeze(1).unsqueeze(-1)  # (B, 1, *shape, 1)
            log_u = torch.where(is_pad, at_data, without_state(log_u, pad))
        return log_u

    def couple(self, x: Tensor, t: Tensor, s: Tensor, log_u_s: Tensor, log_u_t: Tensor) -> Posterior:
        """The posterior q(z_s|z_t, x) of times t and s, ``(B,)``; the maximum coupling of the marginals (eq. 10, 11).

        It is at no state that is not among ``allowed``, as the marginals are not.
        """
        return MaximumCoupling.of(log_u_s, log_u_t)

    def kept(self, x: Tensor, t: Tensor, condition: tuple[Tensor, ...] = ()) -> Tensor:
        """Probability that z_t still is x, ``(B, M, *shape)``, for times ``(B, M)`` in 0..T."""
        log_u = self.log_marginals(x, t, condition)
        index = x.unsqueeze(1).unsqueeze(-1).expand(*log_u.shape[:-1], 1)
        return log_u.gather(-1, index).squeeze(-1).exp()

    def step(self, x: Tensor, t: Tensor, condition: tuple[Tensor, ...] = ()) -> Step:
        """All there is to know about a step.

        Args:
            x: Data ``(B, *shape)``.
            t: Steps ``(B,)``.
            condition: What networks see beside the state.
        """
        return self.dense_step(x, t, condition)

    def steps(self, x: Tensor, condition: tuple[Tensor, ...] = ()) -> Iterator[Step]:
        """The steps 1..N of the same examples, for evaluation; a subclass may compute once what they share."""
        for t in range(1, self.num_steps + 1):
            yield self.step(x, torch.full((len(x),), t, device=x.device), condition)

    def dense_step(self, x: Tensor, t: Tensor, condition: tuple[Tensor, ...] = ()) -> DenseStep:
        """The same with a number for every state, which :meth:`step` may do without."""
        time, before = self.timesteps.t[t], self.timesteps.s[t]
        self._is_in_step = True  # whose data were checked when they came
        try:
            log_u_s, log_u_t = self.log_marginals(x, torch.stack([before, time], 1), condition).unbind(1)
        finally:
            self._is_in_step = False
        coupled = self.couple(x, time, before, log_u_s, log_u_t)
        step, pad = DenseStep(x, t, condition, self.spec.pad, log_u_s, log_u_t, coupled), self.spec.pad
        if pad is not None and not self._has_checked_padding:
            check_step(self, step, pad)
            self._has_checked_padding = True  # once: it waits for the device
        return step

    def posterior_under(self, log_p: Tensor, z_t: Tensor, t: Tensor) -> Tensor:
        """The mean posterior E_{x^i ~ p} q(z_s^i|z_t, x^i): a prediction of x, put through the process.

        Valid for fixed processes only. There q(z_s^i|z_t, x) depends on no more of x than x^i. Here it is the plain sum
        over x^i; a subclass may know a closed form.

        Args:
            log_p: Log p(x^i|z_t), ``(B, *shape, K)``, normalised; ``-inf`` at PAD.
            z_t: Integer states ``(B, *shape)``.
            t: Steps ``(B,)``.

        Returns:
            Log-probabilities of z_s, ``(B, *shape, S)``.

        Raises:
            FLDDError: If the process is learned: x^i alone does not say how it goes on.
        """
        if self.learned:
            raise FLDDError(
                f"{type(self).__name__} is learned, so a prediction of x cannot be put through it. Use DirectReverse, "
                "or MaskedReverse where it only masks."
            )
        total = log_one_hot(z_t, self.num_states, log_p.dtype).exp() * 0
        for value in range(self.spec.num_classes - int(self.spec.padded)):
            q = self.dense_step(torch.full_like(z_t, value), t).posterior.posterior(z_t)
            total = total + log_p[..., value, None].exp() * q
        is_possible = total > 0  # of the others, gradients would be 0 times infinity
        return total.where(is_possible, 1.0).log().where(is_possible, float("-inf"))


def floored(p: Tensor, num_states: int) -> Tensor:
    """Probabilities of :meth:`ForwardProcess.posterior_logits`, none of them zero."""
    return (1 - _FLOOR) * p + _FLOOR / num_states


def kept_logits(stay: Tensor, num_states: int) -> tuple[Tensor, Tensor]:
    """Logits of the present state and of any other one when it is kept with probability ``stay``."""
    other = (1 - stay) / max(num_states - 1, 1)
    return floored(stay, num_states).log(), floored(other, num_states).log()
