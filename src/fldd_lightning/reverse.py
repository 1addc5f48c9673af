"""The reverse process p(z_s|z_t), s < t: factorised over coordinates, given by the denoiser (FLDD eq. 7).

Three classes, by what the denoiser predicts:

- :class:`MaskedReverse`, for processes that only mask: the values of masked coordinates, and which of them stay.
- :class:`DirectReverse`, for all others: z_s itself.
- :class:`PredictingReverse`, for fixed ones: x, which is put through the process's own posterior.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from math import inf
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .categorical import float32_or_better, log_one_hot, only_states, sample_from_uniform
from .errors import FLDDError
from .factory import build
from .forward.base import ForwardProcess
from .forward.masked import MaskProcess
from .latents.base import Latent
from .networks.base import Backbone, as_weights
from .spec import Seen, Spec

__all__ = ["DirectReverse", "MaskedReverse", "PredictingReverse", "Reverse"]

_CHUNK = 2**22  # logits worked on at once: 16 MiB in float32


class Reverse(nn.Module, ABC):
    """Base class: p(z_s|z_t) = prod_i Cat(z_s^i; v^i(z_t, t)). Coordinates at PAD stay there; none gets there.

    No coordinate gets to a value that it does not have: its logits are ``-inf``.

    Args:
        spec: K, shape and T.
        process: The forward process; only its schedule that all examples share, or its base, is used.
        denoiser: Makes the backbone from ``(spec, num_inputs, num_outputs)``.
        num_outputs: Logits that the denoiser gives for each coordinate.
        time_independent: Whether the denoiser does not see the step.

    Attributes:
        num_steps: Steps that make a sample of noise.
    """

    num_steps: int
    allowed: Tensor | None

    def __init__(
        self,
        spec: Spec,
        process: ForwardProcess,
        denoiser: Callable[[Spec, int, int], Backbone],
        num_outputs: int,
        time_independent: bool = False,
    ) -> None:
        super().__init__()
        self.register_buffer("allowed", spec.allowed(num_outputs), persistent=False)
        self.num_states, self.num_classes, self.pad = process.num_states, spec.num_classes, spec.pad
        self.time_independent, self.seen = time_independent, spec.seen
        self.follow(process)
        self.tells_s = bool(spec.budgets) and not time_independent  # where t says it, too, there is no need
        seen = replace(spec, num_steps=1) if time_independent else spec  # one table of weights then serves every T
        if self.tells_s:
            seen = replace(spec, seen=(*spec.seen, Seen("s", num_values=spec.num_steps)))
        self.network = build(denoiser, Backbone, seen, process.num_states, num_outputs)

    def follow(self, process: ForwardProcess) -> None:
        """Take the steps and the schedule of a process from now on: another one, or the same in other steps."""
        self.num_steps = process.num_steps
        self._timesteps = (process.timesteps,)  # held elsewhere: a tuple, so that it is no module of this one

    def configuration(self) -> str:
        """What a checkpoint has to agree on."""
        options = "time_independent=True" if self.time_independent else ""
        return f"{type(self).__name__}({options}) of {type(self.network).__name__}"

    def _times_of(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """The times t and s of steps ``(B,)``."""
        (steps,) = self._timesteps
        return steps.t[t], steps.s[t]

    def logits(self, state: Tensor, t: Tensor, condition: tuple[Tensor, ...] = ()) -> Tensor:
        """What the denoiser says, ``(B, *shape, num_outputs)``, of states or weights over them.

        ``-inf`` at values that a coordinate does not have.
        """
        time, before = self._times_of(t)
        if self.tells_s:
            condition = (*condition, before.unsqueeze(-1))
        out: Tensor = self.network(state, torch.zeros_like(t) if self.time_independent else time, condition)
        return out if self.allowed is None else out.masked_fill(~self.allowed, -inf)

    @abstractmethod
    def log_prob(self, state: Tensor, t: Tensor, condition: tuple[Tensor, ...] = ()) -> Tensor:
        """Log p(z_s|z_t) (eq. 7).

        Args:
            state: Integer states ``(B, *shape)``, or weights over states ``(B, *shape, S)`` where they are relaxed.
            t: Steps ``(B,)``.
            condition: What networks see beside the state.

        Returns:
            log v, ``(B, *shape, S)``, float32 or better; ``-inf`` where exactly 0.
        """

    def draw_from_uniform(self, z_t: Tensor, t: Tensor, uniform: Tensor, condition: tuple[Tensor, ...] = ()) -> Tensor:
        """Draw z_s ~ p(z_s|z_t).

        Args:
            z_t: Integer states ``(B, *shape)``.
            t: Steps ``(B,)``.
            uniform: Float64 numbers in [0, 1), ``(B, *shape)``; equal numbers give equal states.
            condition: What networks see beside the state.

        Returns:
            Integer states ``(B, *shape)``.
        """
        return sample_from_uniform(self.log_prob(z_t, t, condition), uniform)

    @contextmanager
    def told(self, condition: tuple[Tensor, ...]) -> Iterator[None]:
        """Compute once what depends on these latents alone, for all states that come with this very tuple."""
        yield

    def _with_pad(self, log_v: Tensor, state: Tensor) -> Tensor:
        """``log_v`` with integer states at PAD left there."""
        if self.pad is None or state.is_floating_point():
            return log_v
        return torch.where((state == self.pad).unsqueeze(-1), log_one_hot(state, self.num_states, log_v.dtype), log_v)


class DirectReverse(Reverse):
    """The denoiser gives z_s itself, the one choice that is right for every learned process.

    Predicting x and noising it again is not: under a learned process q(x|z_t) is not factorised. Logits are added to
    those of the base process's own posterior with x unknown, so that an untrained denoiser keeps what the
    process keeps.

    Raises:
        FLDDError: If the process only masks, or a latent is trained through the logits of masked coordinates.
    """

    def __init__(
        self,
        spec: Spec,
        process: ForwardProcess,
        denoiser: Callable[[Spec, int, int], Backbone],
        latents: Sequence[Latent] = (),
        time_independent: bool = False,
    ) -> None:
        if isinstance(process, MaskProcess):
            raise FLDDError(f"{type(process).__name__} only masks: leave model.reverse out, or use MaskedReverse.")
        super().__init__(spec, process, denoiser, process.num_states, time_independent)
        _check_latents(process, latents)
        self.has_mask = process.has_mask

    def follow(self, process: ForwardProcess) -> None:
        super().follow(process)
        self._base = process.posterior_logits

    def log_prob(self, state: Tensor, t: Tensor, condition: tuple[Tensor, ...] = ()) -> Tensor:
        logits = float32_or_better(self.logits(state, t, condition))
        time, before = self._times_of(t)
        logits = logits + self._base(as_weights(state, self.num_states, logits.dtype), time, before)
        if self.has_mask:
            logits = _without_mask_at_the_end(logits, before)
        return self._with_pad(_without(logits, self.pad).log_softmax(-1), state)


class PredictingReverse(Reverse):
    """The denoiser gives p(x|z_t), which is put through a fixed process's own posterior.

    p(z_s|z_t) = E_{x ~ p(x|z_t)} q(z_s|z_t, x), exactly; see :meth:`ForwardProcess.posterior_under`.

    Raises:
        FLDDError: If the process is learned, or only masks: there :class:`MaskedReverse` does the same for less. If a
            latent is trained through the logits of masked coordinates.
    """

    allowed_states: Tensor | None

    def __init__(
        self,
        spec: Spec,
        process: ForwardProcess,
        denoiser: Callable[[Spec, int, int], Backbone],
        latents: Sequence[Latent] = (),
        time_independent: bool = False,
    ) -> None:
        if process.learned or isinstance(process, MaskProcess):
            raise FLDDError(
                f"PredictingReverse needs a fixed process that does more than mask, not {type(process).__name__}. "
                "Leave model.reverse out: for processes that only mask it is MaskedReverse, which predicts x as well."
            )
        super().__init__(spec, process, denoiser, spec.num_classes, time_independent)
        _check_latents(process, latents)
        self.register_buffer("allowed_states", spec.allowed(process.num_states), persistent=False)

    def follow(self, process: ForwardProcess) -> None:
        super().follow(process)
        self._posterior_under = process.posterior_under

    def log_prob(self, state: Tensor, t: Tensor, condition: tuple[Tensor, ...] = ()) -> Tensor:
        logits = _without(float32_or_better(self.logits(state, t, condition)), self.pad)  # (B, *shape, K)
        log_v = self._posterior_under(logits.log_softmax(-1), state, t)
        if self.allowed_states is not None:  # whatever the process makes of it
            log_v = only_states(log_v, self.allowed_states)
        return self._with_pad(log_v, state)


class MaskedReverse(Reverse):
    """The denoiser gives the values of masked coordinates, p(x^i|z_t, revealed); the others carry over.

    Whether a masked coordinate stays is decided first, with the odds of the schedule that all examples share. For a
    fixed process these are exact, and the denoiser predicts x alone. For a learned one, whose schedule may depend on x,
    the denoiser's logit for MASK corrects them; it starts at zero, so that a change of the shared order is followed
    at once. In the last step none stays.

    Where a latent says something of the values, their logits start from its log p(x_i|c). That is the best there is
    while nothing is visible, and takes two more tensors of the logits' size. Of several such latents it is the mean:
    the sum would count what they agree on twice.

    Args:
        spec: K, shape and T.
        process: The forward process; only the schedule that all examples share is used.
        denoiser: Makes the backbone from ``(spec, num_inputs, num_outputs)``.
        latents: What networks see.
        time_independent: Whether the denoiser does not see the step.

    Raises:
        FLDDError: If the process does more than mask.
    """

    def __init__(
        self,
        spec: Spec,
        process: ForwardProcess,
        denoiser: Callable[[Spec, int, int], Backbone],
        latents: Sequence[Latent] = (),
        time_independent: bool = False,
    ) -> None:
        if not isinstance(process, MaskProcess):
            raise FLDDError(f"MaskedReverse needs a process that only masks, not {type(process).__name__}.")
        num_outputs = process.num_states if process.learned else spec.num_classes
        super().__init__(spec, process, denoiser, num_outputs, time_independent)
        self.corrects = process.learned
        seen = [latent for latent in latents if latent.seen is not None]
        self._log_values = [(i, latent.log_conditional_of) for i, latent in enumerate(seen) if latent.says_values]
        self._told: tuple[tuple[Tensor, ...], Tensor | None] | None = None

    def follow(self, process: ForwardProcess) -> None:
        assert isinstance(process, MaskProcess)
        super().follow(process)
        self._shared_odds = process.shared_odds

    def log_prob(self, state: Tensor, t: Tensor, condition: tuple[Tensor, ...] = ()) -> Tensor:
        log_v = self._joint(*self._logits_odds(state, t, condition)).log_softmax(-1)
        log_v, mask = _without_mask_at_the_end(log_v, self._times_of(t)[1]), self.num_states - 1
        if state.is_floating_point():
            return log_v
        return torch.where((state == mask).unsqueeze(-1), log_v, log_one_hot(state, self.num_states, log_v.dtype))

    def log_prob_at(
        self, x: Tensor, state: Tensor, t: Tensor, condition: tuple[Tensor, ...] = ()
    ) -> tuple[Tensor, Tensor]:
        """The two factors of p(z_s|z_t) for a masked coordinate; no second tensor of the logits' size is kept.

        Args:
            x: Values asked for, ``(B, *shape)``.
            state: Integer states ``(B, *shape)``, or weights over states ``(B, *shape, S)``.
            t: Steps ``(B,)``.
            condition: What networks see beside the state.

        Returns:
            Log p(x^i|z_t, revealed), and the log odds that a masked coordinate stays: ``(B, *shape)`` both, float32 or
            better.
        """
        logits = self._logits(state, t, condition)
        values, mask = _LogProbAt.apply(logits.flatten(0, -2), x.flatten(), self.num_classes, self.pad)
        odds = self._shared_odds()[t].expand(x.shape)
        return values.view(x.shape), odds + mask.view(x.shape) if self.corrects else odds

    def draw_from_uniform(self, z_t: Tensor, t: Tensor, uniform: Tensor, condition: tuple[Tensor, ...] = ()) -> Tensor:
        logits, odds = self._logits_odds(z_t, t, condition)
        masked = z_t == self.num_states - 1
        if torch.compiler.is_compiling():  # a graph cannot have sizes that depend on values
            return torch.where(masked, sample_from_uniform(self._joint(logits, odds), uniform), z_t)
        numbers = uniform[masked.to(uniform.device)]
        parts = (torch.split(each, _rows(self.num_states)) for each in (logits[masked], odds[masked], numbers))
        drawn = [sample_from_uniform(self._joint(a, b), u) for a, b, u in zip(*parts, strict=True)]
        return z_t.masked_scatter(masked, torch.cat(drawn))

    def _logits(self, state: Tensor, t: Tensor, condition: tuple[Tensor, ...]) -> Tensor:
        """Logits of the values, then that of MASK if there is one, ``(B, *shape, K or K + 1)``."""
        logits, told = self.logits(state, t, condition), self._told
        if told is None or any(a is not b for a, b in zip(told[0], condition, strict=True)):
            said = self._said(condition)
        else:
            said = told[1]
        return logits if said is None else logits + said

    @contextmanager
    def told(self, condition: tuple[Tensor, ...]) -> Iterator[None]:
        self._told = condition, self._said(condition)
        try:
            yield
        finally:
            self._told = None

    def _said(self, condition: tuple[Tensor, ...]) -> Tensor | None:
        """What latents say of the values, and 0 for MASK, ``(B, *shape, K or K + 1)``; None where none of them does."""
        said = [log_conditional_of(condition[i]) for i, log_conditional_of in self._log_values]
        return F.pad(sum(said[1:], said[0]) / len(said), (0, int(self.corrects))) if said else None

    def _logits_odds(self, state: Tensor, t: Tensor, condition: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """The logits, and the log odds of staying, ``(B, *shape)``."""
        logits = self._logits(state, t, condition)
        odds = self._shared_odds()[t].expand(logits.shape[:-1])
        return logits, odds + logits[..., -1].to(odds.dtype) if self.corrects else odds

    def _joint(self, logits: Tensor, odds: Tensor) -> Tensor:
        """Logits of all states of a masked coordinate ``(..., S)``, in float32 or better, not normalised.

        Staying is decided first: p(MASK) = sigmoid(odds). The values share the rest, however large their logits are.
        """
        data = _without(float32_or_better(logits[..., : self.num_classes]), self.pad)
        return torch.cat([data, (data.logsumexp(-1) + odds).unsqueeze(-1)], -1)


class _LogProbAt(torch.autograd.Function):
    """Log-softmax of the first K logits at one index a row, and the last logit.

    The backward pass computes it anew, chunk by chunk, and fills one gradient.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, index: Tensor, num_classes: int, pad: int | None) -> tuple[Tensor, Tensor]:
        ctx.num_classes, ctx.pad = num_classes, pad
        norms, values = [], []
        for rows, part in _chunks(logits, num_classes, pad):
            norms.append(part.logsumexp(-1))
            values.append(part.gather(-1, index[rows, None]).squeeze(-1) - norms[-1])
        norm = torch.cat(norms)
        ctx.save_for_backward(logits, index, norm)
        return torch.cat(values), logits[:, -1].to(norm.dtype, copy=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_values: Tensor, of_last: Tensor) -> tuple[Tensor, None, None, None]:
        logits, index, norm = ctx.saved_tensors
        grad = torch.empty_like(logits)
        for rows, part in _chunks(logits, ctx.num_classes, ctx.pad):
            p = part.sub_(norm[rows, None]).exp_().mul_(-of_values[rows, None])
            p.scatter_add_(-1, index[rows, None], of_values[rows, None])
            if logits.shape[-1] > ctx.num_classes:
                p[:, -1] = of_last[rows]
            grad[rows] = p
        return grad, None, None, None


def _check_latents(process: ForwardProcess, latents: Sequence[Latent]) -> None:
    """Raise FLDDError for a latent that is trained through the logits of masked coordinates, where there are others."""
    for latent in latents:
        if latent.says_values and next(latent.parameters(), None) is not None:
            raise FLDDError(
                f"{type(latent).__name__} is trained through the logits it gives to masked coordinates, and under "
                f"{type(process).__name__} there is more than masks. Use LearnedMaskProcess, or MixtureLatent."
            )


def _without(logits: Tensor, pad: int | None) -> Tensor:
    """Logits ``(..., S)`` with ``-inf`` at PAD, if there is one."""
    if pad is None:
        return logits
    return logits.masked_fill(torch.arange(logits.shape[-1], device=logits.device) == pad, -inf)


def _without_mask_at_the_end(logits: Tensor, s: Tensor) -> Tensor:
    """Logits ``(B, *shape, S)`` with ``-inf`` at the last state, MASK, of examples that go to s = 0."""
    is_last = (s == 0).reshape(-1, *[1] * (logits.dim() - 1))  # (B, 1.., 1)
    return torch.cat([logits[..., :-1], logits[..., -1:].masked_fill(is_last, -inf)], -1)


def _rows(num_states: int) -> int:
    """How many rows of S logits make a chunk."""
    return max(1, _CHUNK // num_states)


def _chunks(logits: Tensor, num_classes: int, pad: int | None) -> Iterator[tuple[slice, Tensor]]:
    """Rows of logits, a few at a time, copied to float32 or better, with ``-inf`` at PAD and at what is no value."""
    dtype = torch.promote_types(logits.dtype, torch.float32)
    size = _rows(logits.shape[-1])
    for first in range(0, len(logits), size):
        rows = slice(first, first + size)
        part = logits[rows].to(dtype, copy=True)
        part[:, num_classes:] = -inf
        if pad is not None:
            part[:, pad] = -inf
        yield rows, part
