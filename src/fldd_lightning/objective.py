"""The negative evidence lower bound (NELBO) of FLDD and its terms (eq. 5).

-log p(x) <= sum_{t=1..T} E_{q(z_t|x)} KL(q(z_s|z_t, x) || p(z_s|z_t)) + L_rec + L_prior

With u(x, 0) = onehot(x) and u(x, T) = prior exactly, z_0 is x and z_T is the prior: the
reconstruction and the prior term are exactly zero for every process whose boundaries hold, and
are computed, not assumed (:func:`prior_term`, :func:`reconstruction_term`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .categorical import entropy, one_hot, sum_dims, xlogy
from .forward.base import ForwardProcess, Transition
from .reverse import ReverseProcess

__all__ = [
    "cross_entropy",
    "expected_entropy",
    "prior_term",
    "reconstruction_term",
    "step_kl",
    "stratified_steps",
]


def stratified_steps(batch: int, num_steps: int, generator: torch.Generator) -> Tensor:
    """Draw one step per example, spread evenly over 1..T.

    Example i falls into stratum (i + u) / B of [0, 1) with one uniform u for the batch, in
    random order; every step is marginally uniform.

    Args:
        batch: B.
        num_steps: T.
        generator: Source of randomness; its device is that of the result.

    Returns:
        Integer steps ``(B,)``, in 1..T.
    """
    device = generator.device
    offset = torch.rand((), dtype=torch.float64, device=device, generator=generator)
    strata = (torch.arange(batch, device=device) + offset) / batch
    t = 1 + (strata * num_steps).long().clamp_max(num_steps - 1)
    return t[torch.randperm(batch, device=device, generator=generator)]


def cross_entropy(step: Transition, reverse: ReverseProcess, w: Tensor, log_v: Tensor) -> Tensor:
    """-sum_i sum_j q(z_s^i = j|z_t^i, x) log p(z_s^i = j|z_t): the part of the KL that needs z_t.

    It is linear in each coordinate's own weights but for the network's dependence on them. Under
    a mask-only process only masked coordinates count: the others carry over at no cost. So does PAD.

    Args:
        step: The forward transition.
        reverse: The reverse process.
        w: z_t as weights ``(B, *shape, S)``, one-hot or relaxed.
        log_v: ``reverse.network_log_prob`` at ``w``.

    Returns:
        Nats per example, ``(B,)``.
    """
    if reverse.pad is not None:
        log_v = log_v.masked_fill((step.x == reverse.pad).unsqueeze(-1), 0.0)  # finite, so that gradients are too
    if not reverse.mask_only:
        return sum_dims(-xlogy(step.posterior.relaxed_posterior(w), log_v).sum(-1))
    mask = torch.full_like(step.x, reverse.num_states - 1)
    masked_cost = -xlogy(step.posterior.posterior(mask), log_v).sum(-1)  # (B, *shape)
    return sum_dims(w[..., -1] * masked_cost)


def expected_entropy(step: Transition) -> Tensor:
    """E_{z_t} of the entropy of q(z_s|z_t, x), exactly, in nats per example ``(B,)``."""
    return sum_dims(step.posterior.expected_entropy(step.log_u_t))


def step_kl(step: Transition, reverse: ReverseProcess, z_t: Tensor) -> Tensor:
    """An unbiased estimate of E_{z_t} KL(q(z_s|z_t, x) || p(z_s|z_t)) from one draw of z_t (eq. 5).

    The cross-entropy is taken at ``z_t``, the entropy in expectation, which lowers the variance.
    A single value may therefore be negative.

    Args:
        step: The forward transition.
        reverse: The reverse process.
        z_t: Integer states ``(B, *shape)``, drawn from ``step.log_u_t``.

    Returns:
        Nats per example, ``(B,)``; summed over coordinates.
    """
    w = one_hot(z_t, reverse.num_states)
    log_v = reverse.network_log_prob(w, step.t, step.condition)
    return cross_entropy(step, reverse, w, log_v) - expected_entropy(step)


def prior_term(process: ForwardProcess, x: Tensor, condition: Tensor | None = None) -> Tensor:
    """KL(q(z_T|x) || prior) in nats per example, ``(B,)``; zero by construction."""
    t = torch.full((x.shape[0], 1), process.problem.num_steps, device=x.device)
    log_u = process.log_marginals(x, t, condition).squeeze(1)  # (B, *shape, S)
    divergence = -xlogy(log_u.exp(), process.log_prior().to(log_u)).sum(-1) - entropy(log_u)
    if process.problem.pad is not None:
        divergence = divergence.masked_fill(x == process.problem.pad, 0.0)  # given, not drawn from the prior
    return sum_dims(divergence)


def reconstruction_term(process: ForwardProcess, x: Tensor, condition: Tensor | None = None) -> Tensor:
    """-log of the probability that z_0 is x, in nats per example, ``(B,)``; zero by construction."""
    t = torch.zeros((x.shape[0], 1), dtype=torch.long, device=x.device)
    log_u = process.log_marginals(x, t, condition).squeeze(1)  # (B, *shape, S)
    return -sum_dims(log_u.gather(-1, x.unsqueeze(-1)).squeeze(-1))
