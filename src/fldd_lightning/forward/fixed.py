"""Conventional fixed processes: absorbing, uniform (maximum coupling) and uniform Markov (D3PM).

All use the linear schedule alpha_t = 1 - t/T: a coordinate still is its data value at step t with
probability alpha_t (up to the uniform share), and pure noise at T.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..categorical import entropy, one_hot, without_state
from ..problem import Problem
from ..transition import Posterior
from .base import ForwardProcess, kept_logits
from .mask import MaskProcess

__all__ = ["AbsorbingProcess", "D3PMProcess", "UniformProcess"]


class AbsorbingProcess(MaskProcess):
    """Masked diffusion: a coordinate turns to MASK and stays there (Austin et al., 2021).

    u_t = alpha_t onehot(x) + (1 - alpha_t) onehot(MASK). With the maximum coupling its posterior
    is exactly masked diffusion's: a masked coordinate stays masked with probability s/t.
    """

    odds: Tensor

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        steps = torch.arange(problem.num_steps + 1).clamp_min(1)
        odds = (steps - 1).log().reshape(-1, *[1] * len(problem.shape))  # (T + 1, 1..)
        self.register_buffer("odds", odds, persistent=False)

    def interior_log_kept_masked(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        alpha = _alpha(t, self.problem.num_steps, x.dim())  # (B, M, 1.., 1)
        return torch.cat([alpha, 1 - alpha], -1).log()

    def log_stay_odds(self) -> Tensor:
        return self.odds


class UniformProcess(ForwardProcess):
    """Uniform noise with the maximum coupling.

    u_t = alpha_t onehot(x) + (1 - alpha_t) / K, over K - 1 classes if one of them is PAD. The coupling
    moves as little mass as it can.
    """

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem, problem.num_classes)

    def interior_log_marginals(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        alpha = _alpha(t, self.problem.num_steps, x.dim())
        noise = self.log_prior().to(x.device).exp()
        return (alpha * one_hot(x, self.num_states).unsqueeze(1) + (1 - alpha) * noise).log()

    def log_prior(self) -> Tensor:
        flat = torch.zeros(self.num_states)
        pad = self.problem.pad
        return flat.log_softmax(-1) if pad is None else without_state(flat, pad)

    def reverse_skip(self, state: Tensor, t: Tensor) -> Tensor:
        # Averaged over x, mass 1/T leaves noise for data at every step; most coordinates stay.
        stay = torch.full_like(t, 1.0 - 1.0 / self.problem.num_steps, dtype=state.dtype)
        kept, other = kept_logits(stay.reshape(-1, *[1] * (state.dim() - 1)), self.num_states)
        return other + state * (kept - other)


class D3PMProcess(UniformProcess):
    """Uniform noise with the Markov posterior of D3PM (Austin et al., 2021, eq. 3).

    q(z_s|z_t, x) ∝ q(z_t|z_s) q(z_s|x), with q(z_t|z_s) keeping a state with probability
    beta = alpha_t / alpha_s and drawing it anew otherwise.
    """

    def couple(self, x: Tensor, t: Tensor, log_u_s: Tensor, log_u_t: Tensor) -> Posterior:
        num_steps = self.problem.num_steps
        keep = ((num_steps - t) / (num_steps - t + 1)).reshape(-1, *[1] * x.dim())
        return _MarkovPosterior(x, log_u_s, keep.to(log_u_s), self.num_states - int(self.problem.padded))


@dataclass(frozen=True)
class _MarkovPosterior:
    x: Tensor  # (B, *shape)
    log_u_s: Tensor  # (B, *shape, S)
    keep: Tensor  # beta, (B, 1.., 1)
    num_live: int  # states that are not PAD

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
        other = entropy(self.posterior((self.x + 1) % self.num_live).log()).unsqueeze(-1)
        return torch.where(one_hot(self.x, self.log_u_s.shape[-1]).bool(), same, other)


def _alpha(t: Tensor, num_steps: int, trailing: int) -> Tensor:
    return (1 - t / num_steps).reshape(*t.shape, *[1] * trailing)
