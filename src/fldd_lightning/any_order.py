"""Masked diffusion in any order: the bound of infinitely many steps, for denoisers that do not see the step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .bound import draw_latents, is_free, step_terms
from .forward import AbsorbingProcess, ForwardProcess, MaskedStep
from .latents.base import Latent
from .reverse import MaskedReverse, Reverse

__all__ = ["any_order_nelbo", "exactly_masked", "has_any_order"]


def exactly_masked(step: MaskedStep, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """States with exactly n of the D coordinates masked, n uniform in 1..D.

    Coordinates at PAD and those that are given do not count.

    Args:
        step: Any step of the examples x.
        uniform: Float64 numbers in [0, 1), ``(B, 1 + D)``: one for n, D for which are masked.

    Returns:
        States ``(B, *shape)`` and D/n, ``(B,)`` (Hoogeboom et al., 2022, eq. 3).
    """
    x, free = step.x, is_free(step).to(uniform.device)  # which has float64
    dims = free.flatten(1).sum(1)  # (B,)
    n = (1 + (uniform[:, 0] * dims).long()).minimum(dims)
    place = uniform[:, 1:].masked_fill(~free.flatten(1), 2.0).argsort(1).argsort(1)  # (B, D)
    is_masked = (place < n[:, None]).view(x.shape)
    return x.masked_fill(is_masked.to(x.device), step.mask), (dims / n.clamp_min(1)).to(x.device)


def has_any_order(process: ForwardProcess, reverse: Reverse) -> bool:
    """Whether this is masked diffusion whose denoiser does not see the step: one training then serves every T."""
    is_masked = type(process) is AbsorbingProcess and isinstance(reverse, MaskedReverse)
    return is_masked and reverse.time_independent


def any_order_nelbo(
    process: ForwardProcess, reverse: Reverse, latents: Sequence[Latent], x: Tensor, batch: Any, uniform: Tensor
) -> Tensor:
    """One draw of the bound of T = infinity of masked diffusion, which is that of any order.

    -log p(x) <= sum_latents KL + E_n E_{z: n masks} D/n sum_{masked i} -log p(x^i|z), n uniform in 1..D (Uria et al.,
    2014; Hoogeboom et al., 2022, eq. 3). Valid where :func:`has_any_order` is true.

    Args:
        process: The forward process.
        reverse: The reverse process.
        latents: The latents.
        x: Data ``(B, *shape)``.
        batch: What the data loader gave, for latents that are observed.
        uniform: Float64 numbers in [0, 1), ``(B, 1 + D + n)``: for the number of masks, where they are, and n of
            :func:`num_uniforms` for the latents.

    Returns:
        Nats per example, ``(B,)``.
    """
    masks = uniform[:, : 1 + process.spec.num_dims]
    drawn = draw_latents(latents, [each.posterior(x, batch) for each in latents], uniform[:, masks.shape[1] :])
    step = process.step(x, torch.ones(len(x), dtype=torch.long, device=x.device), drawn.condition)
    assert isinstance(step, MaskedStep)
    z, weight = exactly_masked(step, masks)
    # at t = 1 every masked coordinate turns to x, so that its KL is -log p(x|z)
    return step_terms(step, reverse, z.unsqueeze(0)).kl[0] * weight + sum(drawn.kl().values(), 0.0)
