"""The reverse process p(z_s|z_t): factorised, given directly by the denoiser (FLDD eq. 7)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .categorical import log_one_hot, one_hot, sample_categorical
from .forward.base import ForwardProcess
from .networks.base import Backbone, check_backbone
from .problem import Problem
from .softmax import log_softmax_at, offset_chunks
from .states import SparseStates, State

__all__ = ["ReverseProcess"]


class ReverseProcess(nn.Module):
    """p(z_s|z_t) = prod_i Cat(z_s^i; v^i(z_t, t)), with s = t-1.

    The network gives the distribution of z_s itself: predicting x and noising it again is valid
    for fixed processes only. Its logits are added to those of the base process's own posterior
    with unknown x, so that an untrained denoiser already keeps what the process keeps. Under a
    mask-only process unmasked coordinates carry over; at t = 1 MASK has probability zero. Coordinates
    at PAD stay there, and no other coordinate gets there.

    Args:
        problem: K, shape and T.
        process: The forward process; only its fixed properties are used.
        denoiser: Makes the backbone from ``(problem, num_inputs, num_outputs)``.
    """

    mask_offset: Tensor

    def __init__(
        self,
        problem: Problem,
        process: ForwardProcess,
        denoiser: Callable[[Problem, int, int], Backbone],
    ) -> None:
        super().__init__()
        self.num_states = process.num_states
        self.has_mask = process.has_mask
        self.mask_only = process.mask_only
        self.pad = problem.pad
        self._skip = process.reverse_skip  # a method of a module held elsewhere; adds no parameters
        if self.mask_only:
            self.register_buffer("mask_offset", self._mask_offsets(problem.num_steps), persistent=False)
        self.network = check_backbone(denoiser(problem, self.num_states, self.num_states))

    def network_log_prob(self, state: State, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """What the denoiser says of every coordinate, before any carry-over.

        Args:
            state: z_t as weights over states ``(B, *shape, S)``, one-hot or relaxed, or as SparseStates.
            t: Steps ``(B,)``, in 1..T.
            condition: Labels ``(B,)`` or None.

        Returns:
            Log-probabilities of z_s, ``(B, *shape, S)``, float32; ``-inf`` for MASK at t = 1 and for PAD.
        """
        logits = self.network(state, t, condition).float()
        if self.mask_only:  # unmasked coordinates carry over, whatever stands here
            offset = self._offset_everywhere(t, logits).unsqueeze(-1)  # (B, *shape, 1)
            logits = torch.cat([logits[..., :-1], logits[..., -1:] + offset], -1)
        else:
            logits = logits + self._skip(state.dense() if isinstance(state, SparseStates) else state, t)
            if self.has_mask:
                is_last = (t == 1).reshape(-1, *[1] * (logits.dim() - 1))  # (B, 1.., 1)
                mask_logit = logits[..., -1:].masked_fill(is_last, float("-inf"))
                logits = torch.cat([logits[..., :-1], mask_logit], -1)
        if self.pad is not None:
            is_pad = torch.arange(self.num_states, device=logits.device) == self.pad
            logits = logits.masked_fill(is_pad, float("-inf"))
        return logits.log_softmax(-1)

    def masked_log_prob_at(self, index: Tensor, state: State, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """:meth:`network_log_prob` at a few states, under a mask-only process; no second tensor of its size.

        Args:
            index: States asked for, ``(B, *shape, m)``.
            state: z_t, as for :meth:`network_log_prob`.
            t: Steps ``(B,)``, in 1..T.
            condition: Labels ``(B,)`` or None.

        Returns:
            Log-probabilities ``(B, *shape, m)``, float32.
        """
        logits = self.network(state, t, condition)
        return log_softmax_at(logits, index, self._offset_everywhere(t, logits), self.pad)

    def log_prob(self, z_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """Log p(z_s|z_t) (eq. 7).

        Args:
            z_t: Integer states ``(B, *shape)``.
            t: Steps ``(B,)``, in 1..T.
            condition: Labels ``(B,)`` or None.

        Returns:
            log v, ``(B, *shape, S)``, float32; ``-inf`` where exactly 0.
        """
        log_v = self.network_log_prob(SparseStates.hard(z_t, self.num_states), t, condition)
        carried = z_t != self.num_states - 1 if self.mask_only else torch.zeros_like(z_t, dtype=torch.bool)
        if self.pad is not None:
            carried = carried | (z_t == self.pad)
        if self.mask_only or self.pad is not None:
            log_v = torch.where(carried.unsqueeze(-1), log_one_hot(z_t, self.num_states, log_v.dtype), log_v)
        return log_v

    def draw(self, z_t: Tensor, t: Tensor, generator: torch.Generator, condition: Tensor | None = None) -> Tensor:
        """Draw z_s ~ p(z_s|z_t), integers ``(B, *shape)``; under a mask-only process of masked coordinates alone.

        Args:
            z_t: Integer states ``(B, *shape)``.
            t: Steps ``(B,)``, in 1..T.
            generator: Source of the noise, see :func:`sample_categorical`.
            condition: Labels ``(B,)`` or None.
        """
        if not self.mask_only:
            return sample_categorical(self.log_prob(z_t, t, condition), generator)
        logits = self.network(SparseStates.hard(z_t, self.num_states), t, condition)
        masked = z_t == self.num_states - 1
        offset = self._offset_everywhere(t, logits)[masked]
        rows = offset_chunks(logits[masked], offset, self.pad)  # (masked coordinates, S), in parts
        drawn = [sample_categorical(part, generator) for _, part in rows]
        return z_t.masked_scatter(masked, torch.cat([z_t.new_empty(0), *drawn]))

    def _offset_everywhere(self, t: Tensor, logits: Tensor) -> Tensor:
        return self.mask_offset[t].view(-1, *[1] * (logits.dim() - 2)).expand(logits.shape[:-1])

    def _mask_offsets(self, num_steps: int) -> Tensor:
        """How far MASK's logit starts above a data value's at a masked coordinate, at t = 0..T; ``-inf`` at 1."""
        t = torch.arange(2, num_steps + 1)
        masked = one_hot(torch.full((len(t), 1), self.num_states - 1), self.num_states)
        skip = self._skip(masked, t).squeeze(1)  # (T - 1, S)
        return torch.cat([torch.full((2,), float("-inf")), skip[:, -1] - skip[:, 0]])
