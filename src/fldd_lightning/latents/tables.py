"""Counting values by coordinate, for latents of whole numbers."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..spec import Spec

__all__ = ["CHUNK", "count", "count_all", "examples_at_once", "marginals_of", "normalised"]

CHUNK, NUMBERS = 1_024, 2**24  # examples, and numbers of their one-hot vectors, worked on at once
_FEW_CLASSES = 8  # up to which a product with one-hot vectors is faster than adding up rows


def examples_at_once(numbers: int) -> int:
    """Examples worked on at once, where each takes so many numbers."""
    return max(1, min(CHUNK, NUMBERS // numbers))


def count(x: Tensor, weights: Tensor, num_classes: int, pad: int | None) -> Tensor:
    """How often every coordinate takes every value, of examples with weights ``(B, C)``: ``(*shape, K, C)``."""
    num_dims = x[0].numel()
    counts = torch.zeros(num_dims, num_classes, weights.shape[1], device=x.device)
    flat = x.flatten(1)  # (B, D)
    if num_classes > _FEW_CLASSES:
        for d in range(num_dims):
            counts[d].index_add_(0, flat[:, d], weights)
    else:
        size = examples_at_once(num_dims * num_classes)
        for part, weight in zip(torch.split(flat, size), torch.split(weights, size), strict=True):
            one_hot = F.one_hot(part, num_classes).to(weight)  # (b, D, K)
            counts += torch.einsum("bdk,bc->dkc", one_hot, weight)
    if pad is not None:
        counts[:, pad] = 0
    return counts.view(*x.shape[1:], num_classes, -1)


def count_all(x: Tensor, spec: Spec) -> Tensor:
    """How often every coordinate takes every value, plus one example's worth shared out over the values that it has.

    Returns:
        ``(*shape, K, 1)``, 0 at PAD and at values that a coordinate does not have.
    """
    counts = count(x, torch.ones(len(x), 1, device=x.device), spec.num_classes, spec.pad)
    allowed = spec.allowed(spec.num_classes)
    if allowed is None:
        counts = counts + 1 / spec.num_classes
    else:
        counts = counts + (allowed / allowed.sum(-1, keepdim=True)).unsqueeze(-1).to(x.device)
    if spec.pad is not None:
        counts[..., spec.pad, :] = 0
    return counts


def marginals_of(x: Tensor, spec: Spec) -> Tensor:
    """How frequent every value of every coordinate is, ``(*shape, K, 1)``; 0 at PAD."""
    counts = count_all(x, spec)
    return counts / counts.sum(-2, keepdim=True)


def normalised(counts: Tensor, pad: int | None) -> Tensor:
    """Logarithm of probabilities proportional to counts ``(*shape, K, C)``: finite, and 0 at PAD."""
    log_p = (counts / counts.sum(-2, keepdim=True)).clamp_min(1e-9).log()
    if pad is not None:
        log_p[..., pad, :] = 0.0
    return log_p
