"""Processes whose coordinates may take any value: uniform noise, D3PM, and learned residuals over a fixed base.

The fixed ones use the linear schedule alpha_t = 1 - t/T: a coordinate still is its data value at step t with
probability alpha_t (up to the uniform share), and is pure noise at T.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import log

import torch
from torch import Tensor

from ..categorical import entropy, float32_or_better, one_hot, without_state
from ..factory import build
from ..networks.base import Backbone
from ..ranges import BETWEEN, check_numbers
from ..spec import Spec
from .base import ForwardProcess, kept_logits
from .masked import AbsorbingProcess, per_example
from .step import Posterior

__all__ = [
    "D3PMProcess",
    "ResidualAbsorbingProcess",
    "ResidualProcess",
    "ResidualUniformProcess",
    "UniformProcess",
]

_ALMOST = 1 - 1e-7  # the most a probability counts for in log(1 - p)
_LEAST = -1e4  # in place of -inf: sums of exponentials then have gradients


class UniformProcess(ForwardProcess):
    """Uniform noise with the maximum coupling.

    u_t = alpha_t onehot(x) + (1 - alpha_t) / K. The noise is over K - 1 classes if one of them is PAD, and over the
    values that a coordinate has if they are fewer. The coupling moves as little mass as it can.
    """

    def __init__(self, spec: Spec) -> None:
        super().__init__(spec, spec.num_classes)

    def interior_log_marginals(self, x: Tensor, t: Tensor, condition: tuple[Tensor, ...] = ()) -> Tensor:
        alpha = (1 - t.to(self.dtype) / self.spec.num_steps).reshape(*t.shape, *[1] * x.dim())  # (B, M, 1.., 1)
        noise = self.log_priors().to(x.device).exp()
        return (alpha * one_hot(x, self.num_states, self.dtype).unsqueeze(1) + (1 - alpha) * noise).log()

    def log_prior(self) -> Tensor:
        flat = torch.zeros(self.num_states, dtype=self.dtype, device=self._one.device)
        pad = self.spec.pad
        return flat.log_softmax(-1) if pad is None else without_state(flat, pad)

    def posterior_logits(self, state: Tensor, t: Tensor, s: Tensor) -> Tensor:
        # Averaged over x, mass (t - s)/T leaves noise for data; with many steps most coordinates stay.
        stay = 1 - (t - s).to(state.dtype) / self.spec.num_steps
        kept, other = kept_logits(stay.reshape(-1, *[1] * (state.dim() - 1)), self.num_states)
        return other + state * (kept - other)

    def posterior_under(self, log_p: Tensor, z_t: Tensor, t: Tensor) -> Tensor:
        # A state that is x stays. Any other stays with probability u_s / u_t = s / t, or moves to x.
        time, before = (_per_example(each[t], log_p) for each in (self.timesteps.t, self.timesteps.s))
        stay, log_p = before / time, log_p.clamp_min(_LEAST)
        log_at = log_p.gather(-1, z_t.unsqueeze(-1))  # (B, *shape, 1), log p(x = z_t)
        kept = torch.logaddexp(log_at, stay.log() + _log_not(log_at))
        moved = torch.log1p(-stay) + log_p + self._log_live(log_p)
        return torch.where(one_hot(z_t, self.num_states).bool(), kept, moved)

    def _log_live(self, like: Tensor) -> Tensor:
        """0 at all states that a coordinate may take, ``(S,)`` or ``(*shape, S)``; ``-inf`` at PAD and others."""
        zeros = torch.zeros(self.num_states, device=like.device, dtype=like.dtype)
        pad = self.spec.pad
        if self.allowed is not None:
            return zeros.where(self.allowed, -torch.inf)
        return (
            zeros if pad is None else zeros.masked_fill(torch.arange(len(zeros), device=like.device) == pad, -torch.inf)
        )


class D3PMProcess(UniformProcess):
    """Uniform noise with the Markov posterior of D3PM (Austin et al., 2021, eq. 3).

    q(z_s|z_t, x) ∝ q(z_t|z_s) q(z_s|x), with q(z_t|z_s) keeping a state with probability
    beta = alpha_t / alpha_s and drawing it anew otherwise.
    """

    def couple(self, x: Tensor, t: Tensor, s: Tensor, log_u_s: Tensor, log_u_t: Tensor) -> Posterior:
        return _MarkovPosterior(x, log_u_s, self._beta(t, s, log_u_s), self._num_live)

    def posterior_under(self, log_p: Tensor, z_t: Tensor, t: Tensor) -> Tensor:
        # The posterior at j is (beta [j = z_t] + nu) (alpha_s [j = x] + n) / (beta (alpha_s [z_t = x] + n) + nu).
        time, before = self.timesteps.t[t], self.timesteps.s[t]
        beta, log_p = self._beta(time, before, log_p), log_p.clamp_min(_LEAST)
        alpha = 1 - _per_example(before, log_p) / self.spec.num_steps
        n, nu = (1 - alpha) / self._num_live, (1 - beta) / self._num_live
        is_now = one_hot(z_t, self.num_states).bool()
        log_at = log_p.gather(-1, z_t.unsqueeze(-1))  # (B, *shape, 1)
        same, other = (beta * (alpha + n) + nu).log(), (beta * n + nu).log()
        by_noise = n.log() + torch.logaddexp(log_at - same, _log_not(log_at) - other)
        log_u = torch.logaddexp(alpha.log() + log_p - torch.where(is_now, same, other), by_noise)
        return torch.where(is_now, (beta + nu).log(), nu.log()) + log_u + self._log_live(log_p)

    @property
    def _num_live(self) -> Tensor:
        """How many states a coordinate may take: ``()``, or ``(*shape, 1)`` where they differ."""
        if self.allowed is None:
            return torch.tensor(self.num_states - int(self.spec.padded))
        return self.allowed.sum(-1, keepdim=True)

    def _beta(self, t: Tensor, s: Tensor, like: Tensor) -> Tensor:
        return (self.spec.num_steps - _per_example(t, like)) / (self.spec.num_steps - _per_example(s, like))


@dataclass(frozen=True)
class _MarkovPosterior:
    x: Tensor  # (B, *shape)
    log_u_s: Tensor  # (B, *shape, S)
    keep: Tensor  # beta, (B, 1.., 1)
    num_live: Tensor  # states that may be taken, () or (*shape, 1)

    def posterior(self, z_t: Tensor) -> Tensor:
        return self.relaxed_posterior(one_hot(z_t, self.log_u_s.shape[-1], self.log_u_s.dtype))

    def relaxed_posterior(self, w: Tensor) -> Tensor:
        u_s = self.log_u_s.exp()
        noise = (1 - self.keep) / self.num_live
        # q(z_s=j|z_t=k) = (beta [j=k] + noise) u_s^j / (beta u_s^k + noise): linear in w.
        per_state = w / (self.keep * u_s + noise).clamp_min(torch.finfo(u_s.dtype).tiny)
        return u_s * (self.keep * per_state + noise * per_state.sum(-1, keepdim=True))

    def entropy(self) -> Tensor:
        # By symmetry it takes two values: at z_t = x and at any other state.
        same = entropy(self.posterior(self.x).log()).unsqueeze(-1)
        other = entropy(self.posterior((self.x + 1) % self.num_live.squeeze(-1)).log()).unsqueeze(-1)
        return torch.where(one_hot(self.x, self.log_u_s.shape[-1]).bool(), same, other)


class ResidualProcess(ForwardProcess):
    """u_t = softmax(log floor(base_t) + network(x, t)): marginals that depend on the whole of x (eq. 9).

    The network's last layer starts at zero, so that the process equals its floored base, and can
    only leave it where the bound improves. The floor mixes the base with the uniform distribution
    over all S states: without it a state of probability zero could never be reached by a gradient.

    Args:
        spec: K, shape and T.
        base: The fixed process to start from.
        network: Makes the backbone from ``(spec, num_inputs, num_outputs)``.
        floor: Share of the uniform distribution in the base, in (0, 1).

    Raises:
        FLDDError: If the floor is out of range.
    """

    learned = True

    def __init__(
        self, spec: Spec, base: ForwardProcess, network: Callable[[Spec, int, int], Backbone], floor: float
    ) -> None:
        check_numbers(locals(), floor=BETWEEN)
        super().__init__(spec, base.num_states)
        self.base = base
        self.floor = floor
        self.network = build(network, Backbone, spec, spec.num_classes, base.num_states)

    def configuration(self) -> str:
        return f"{super().configuration()}(floor={self.floor}) over {self.base.configuration()}"

    def log_base(self, x: Tensor, t: Tensor) -> Tensor:
        """Log of the floored base, ``(B, M, *shape, S)``, for times ``(B, M)`` in 1..T-1."""
        log_u = self.base.interior_log_marginals(x, t)
        uniform = torch.full_like(log_u, log(self.floor / self.num_states))
        return torch.logaddexp(log_u + log(1 - self.floor), uniform)

    def interior_log_marginals(self, x: Tensor, t: Tensor, condition: tuple[Tensor, ...] = ()) -> Tensor:
        steps = t.shape[1]
        condition = tuple(c.repeat_interleave(steps, 0) for c in condition)
        residual: Tensor = self.network(x.repeat_interleave(steps, 0), t.flatten(), condition)  # (B*M, *shape, S)
        log_base = self.log_base(x, t)
        logits = log_base + float32_or_better(residual).view_as(log_base)
        pad = self.spec.pad
        return logits.log_softmax(-1) if pad is None else without_state(logits, pad)

    def log_prior(self) -> Tensor:
        return self.base.log_prior()

    def posterior_logits(self, state: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return self.base.posterior_logits(state, t, s)


class ResidualAbsorbingProcess(ResidualProcess):
    """Learned residual over the absorbing process: mass may move to MASK or to any other token."""

    def __init__(self, spec: Spec, network: Callable[[Spec, int, int], Backbone], floor: float = 1e-3) -> None:
        super().__init__(spec, AbsorbingProcess(spec), network, floor)


class ResidualUniformProcess(ResidualProcess):
    """Learned residual over the uniform process."""

    def __init__(self, spec: Spec, network: Callable[[Spec, int, int], Backbone], floor: float = 1e-3) -> None:
        super().__init__(spec, UniformProcess(spec), network, floor)


def _per_example(values: Tensor, like: Tensor) -> Tensor:
    """One number an example ``(B,)``, shaped to broadcast against ``(B, *shape, S)``."""
    return per_example(values.to(like.dtype), like)


def _log_not(log_p: Tensor) -> Tensor:
    """Log(1 - p)."""
    return torch.log1p(-log_p.exp().clamp_max(_ALMOST))
