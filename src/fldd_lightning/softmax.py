"""Log-probabilities at a few of many states, in chunks: two tensors of the logits' size, them and their gradient."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["log_prob_at", "masked_logits", "rows_at_once"]

_CHUNK = 2**22  # logits worked on at once: 16 MiB in float32


def rows_at_once(num_states: int) -> int:
    """How many rows of S logits make a chunk."""
    return max(1, _CHUNK // num_states)


def masked_logits(logits: Tensor, log_odds: Tensor, excluded: int | None = None) -> Tensor:
    """Logits of all states of a masked coordinate, from the network's and the odds that it stays masked.

    Whether it does is decided first: p(MASK) = sigmoid(logit of MASK + log odds). The data values share the
    rest by a softmax over their own logits, however large these are.

    Args:
        logits: ``(..., S)``, MASK last.
        log_odds: ``(...)``; may be ``-inf``.
        excluded: A state of probability zero, or None.

    Returns:
        ``(..., S)`` in float32 or better, not normalised.
    """
    data = logits[..., :-1].to(torch.promote_types(logits.dtype, torch.float32))
    if excluded is not None:
        data = data.masked_fill(torch.arange(data.shape[-1], device=data.device) == excluded, float("-inf"))
    mask = data.logsumexp(-1) + logits[..., -1] + log_odds
    return torch.cat([data, mask.unsqueeze(-1)], -1)


def log_prob_at(logits: Tensor, index: Tensor, excluded: int | None = None) -> tuple[Tensor, Tensor]:
    """Log-softmax of the data values at ``index``, and the logit of MASK.

    Equal to the dense computation, but neither the probabilities nor any other tensor of the logits' size
    is stored for the backward pass: it computes them anew, chunk by chunk, in float32 or better.

    Args:
        logits: ``(..., S)``, in any precision, MASK last.
        index: Data values asked for, ``(..., m)``.
        excluded: A value of probability zero, or None.

    Returns:
        Log-probabilities ``(..., m)`` and logits ``(...)``, in float32 or better. Where a log-probability is
        ``-inf``, its gradient must be 0.
    """
    values, mask = _LogProbAt.apply(logits.flatten(0, -2), index.flatten(0, -2), excluded)
    return values.view(index.shape), mask.view(index.shape[:-1])


class _LogProbAt(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, index: Tensor, excluded: int | None) -> tuple[Tensor, Tensor]:
        ctx.excluded = excluded
        norms, values = [], []
        for rows, part in _chunks(logits, excluded):
            norm = part.logsumexp(-1, keepdim=True)
            norms.append(norm)
            values.append(part.gather(-1, index[rows]) - norm)
        norm = torch.cat(norms)  # (rows, 1)
        ctx.save_for_backward(logits, index, norm)
        return torch.cat(values), logits[:, -1].to(norm.dtype, copy=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_values: Tensor, of_mask: Tensor) -> tuple[Tensor, None, None]:
        logits, index, norms = ctx.saved_tensors
        grad = torch.empty_like(logits)
        for rows, part in _chunks(logits, ctx.excluded):
            p = part.sub_(norms[rows]).exp_().mul_(-of_values[rows].sum(-1, keepdim=True))
            p.scatter_add_(-1, index[rows], of_values[rows])
            p[:, -1] = of_mask[rows]
            grad[rows] = p
        return grad, None, None


def _chunks(logits: Tensor, excluded: int | None) -> Iterator[tuple[slice, Tensor]]:
    """Rows of logits ``(rows, S)``, a few at a time, copied to float32 or better, without MASK and ``excluded``."""
    dtype = torch.promote_types(logits.dtype, torch.float32)
    size = rows_at_once(logits.shape[-1])
    for first in range(0, len(logits), size):
        rows = slice(first, first + size)
        part = logits[rows].to(dtype, copy=True)
        part[:, -1] = float("-inf")
        if excluded is not None:
            part[:, excluded] = float("-inf")
        yield rows, part
