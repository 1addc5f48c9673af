"""log softmax at a few states of many, in chunks: two tensors of the logits' size, them and their gradient."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["log_softmax_at", "offset_chunks"]

_CHUNK = 2**22  # logits worked on at once: 16 MiB in float32


def log_softmax_at(logits: Tensor, index: Tensor, last_offset: Tensor, excluded: int | None = None) -> Tensor:
    """``log_softmax(logits')`` at ``index``, where logits' has an offset at its last state.

    Equal to the dense computation, but neither the probabilities nor any other tensor of the logits' size
    is stored for the backward pass: it computes them anew, chunk by chunk, in float32 or better.

    Args:
        logits: ``(..., S)``, in any precision.
        index: States asked for, ``(..., m)``.
        last_offset: Added to the logit of state S - 1, ``(...)``; may be ``-inf``. Gets no gradient.
        excluded: A state of probability zero, or None.

    Returns:
        Log-probabilities ``(..., m)`` in float32 or better. Where they are ``-inf``, their gradient must be 0.
    """
    rows = logits.flatten(0, -2)
    out: Tensor = _LogSoftmaxAt.apply(rows, index.flatten(0, -2), last_offset.flatten(), excluded)
    return out.view(index.shape)


class _LogSoftmaxAt(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, index: Tensor, last_offset: Tensor, excluded: int | None) -> Tensor:
        ctx.excluded = excluded
        norms, values = [], []
        for rows, part in offset_chunks(logits, last_offset, excluded):
            norm = part.logsumexp(-1, keepdim=True)
            norms.append(norm)
            values.append(part.gather(-1, index[rows]) - norm)
        ctx.save_for_backward(logits, index, last_offset, torch.cat(norms))
        return torch.cat(values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None, None]:
        logits, index, last_offset, norms = ctx.saved_tensors
        grad = torch.empty_like(logits)
        for rows, part in offset_chunks(logits, last_offset, ctx.excluded):
            outer = grad_output[rows].to(part.dtype)  # (rows, m)
            p = part.sub_(norms[rows]).exp_()
            grad[rows] = p.mul_(-outer.sum(-1, keepdim=True)).scatter_add_(-1, index[rows], outer)
        return grad, None, None, None


def offset_chunks(logits: Tensor, last_offset: Tensor, excluded: int | None) -> Iterator[tuple[slice, Tensor]]:
    """Rows of logits ``(rows, S)``, a few at a time, copied with the offset and the exclusion in.

    Args:
        logits: ``(rows, S)``.
        last_offset: Added to the logit of state S - 1, ``(rows,)``.
        excluded: A state whose logit becomes ``-inf``, or None.

    Yields:
        Which rows, and their logits in float32 or better.
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    size = max(1, _CHUNK // logits.shape[-1])
    for first in range(0, len(logits), size):
        rows = slice(first, first + size)
        part = logits[rows].to(dtype, copy=True)
        part[:, -1] += last_offset[rows]
        if excluded is not None:
            part[:, excluded] = float("-inf")
        yield rows, part
