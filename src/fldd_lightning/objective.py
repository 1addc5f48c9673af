"""The negative evidence lower bound (NELBO) of FLDD and its terms (eq. 5).

-log p(x) <= sum_{t=1..T} E_{q(z_t|x)} KL(q(z_s|z_t, x) || p(z_s|z_t)) + L_rec + L_prior

With u(x, 0) = onehot(x) and u(x, T) = prior exactly, z_0 is x and z_T is the prior: the
reconstruction and the prior term are exactly zero for every process whose boundaries hold; tests
compute them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .reverse import ReverseProcess
from .transition import Transition

__all__ = [
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


def step_kl(step: Transition, reverse: ReverseProcess, z_t: Tensor) -> Tensor:
    """An unbiased estimate of E_{z_t} KL(q(z_s|z_t, x) || p(z_s|z_t)) from one draw of z_t (eq. 5).

    Args:
        step: The forward transition.
        reverse: The reverse process.
        z_t: Integer states ``(B, *shape)``, drawn from the step.

    Returns:
        Nats per example, ``(B,)``; summed over coordinates.
    """
    return step.kl(reverse, step.weights(z_t).unsqueeze(0))[0]
