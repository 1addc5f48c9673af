"""The reverse process p(z_s|z_t): factorised, given directly by the denoiser (FLDD eq. 7)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .categorical import log_one_hot, sample_categorical
from .codes import Code
from .errors import FLDDError
from .forward.base import ForwardProcess
from .forward.mask import MaskProcess
from .networks.base import Backbone, check_backbone
from .problem import Problem
from .softmax import log_prob_at, masked_logits, rows_at_once
from .states import SparseStates, State

__all__ = ["ReverseProcess"]


class ReverseProcess(nn.Module):
    """p(z_s|z_t) = prod_i Cat(z_s^i; v^i(z_t, t)), with s = t-1.

    The network gives the distribution of z_s itself: predicting x and noising it again is valid
    for fixed processes only. Its logits are added to those of the base process's own posterior
    with unknown x, so that an untrained denoiser already keeps what the process keeps. Coordinates
    at PAD stay there, and no other coordinate gets there.

    Under a mask-only process unmasked coordinates carry over, and whether a masked one stays is decided
    first, with the odds of the schedule that all examples share and the denoiser's logit for MASK as a
    correction. Where a schedule does not depend on x the correction is zero, as at initialisation: it is followed
    exactly, also while it is being learned. At t = 1 MASK has probability zero.

    With a code the logits of such a process start from its log p(x_i|c), which is the best there is
    while nothing is visible; it takes two more tensors of the logits' size.

    Args:
        problem: K, shape and T.
        process: The forward process; only its base, or the schedule that all examples share, is used.
        denoiser: Makes the backbone from ``(problem, num_inputs, num_outputs)``.
        code: What the labels stand for, if they are codes.

    Raises:
        FLDDError: If the network is no Backbone, or the code is learned and the process does not only mask.
    """

    def __init__(
        self,
        problem: Problem,
        process: ForwardProcess,
        denoiser: Callable[[Problem, int, int], Backbone],
        code: Code | None = None,
    ) -> None:
        super().__init__()
        self.num_states = process.num_states
        self.has_mask = process.has_mask
        self.mask_only = process.mask_only
        self.pad = problem.pad
        # methods of a module held elsewhere, which add no parameters here
        self._skip = process.reverse_skip
        if self.mask_only:
            if not isinstance(process, MaskProcess):
                raise FLDDError(f"{type(process).__name__} sets mask_only, but is not a MaskProcess. Subclass that.")
            self._log_stay_odds = process.log_stay_odds
            self._log_data = None if code is None else code.log_conditional_of
        elif code is not None and next(code.parameters(), None) is not None:
            raise FLDDError(
                f"{type(code).__name__} is trained through the logits it gives to masked coordinates, and under "
                f"{type(process).__name__} there is more than masks. Use LearnedMaskProcess, or code MixtureCode."
            )
        self.network = check_backbone(denoiser(problem, self.num_states, self.num_states))

    def network_log_prob(self, state: State, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """What the denoiser says of every coordinate, before any carry-over.

        Args:
            state: z_t as weights over states ``(B, *shape, S)``, one-hot or relaxed, or as SparseStates.
            t: Steps ``(B,)``, in 1..T.
            condition: Labels ``(B,)``, codes ``(B, m)`` or None.

        Returns:
            Log-probabilities of z_s, ``(B, *shape, S)``, float32; ``-inf`` for MASK at t = 1 and for PAD.
        """
        if self.mask_only:  # unmasked coordinates carry over, whatever stands here
            logits = self._masked_logits(state, t, condition).float()
            return masked_logits(logits, self._stay_odds(t, logits), self.pad).log_softmax(-1)
        logits = self.network(state, t, condition).float()
        logits = logits + self._skip(state.dense() if isinstance(state, SparseStates) else state, t)
        if self.has_mask:
            is_last = (t == 1).reshape(-1, *[1] * (logits.dim() - 1))  # (B, 1.., 1)
            mask_logit = logits[..., -1:].masked_fill(is_last, float("-inf"))
            logits = torch.cat([logits[..., :-1], mask_logit], -1)
        if self.pad is not None:
            is_pad = torch.arange(self.num_states, device=logits.device) == self.pad
            logits = logits.masked_fill(is_pad, float("-inf"))
        return logits.log_softmax(-1)

    def masked_log_prob_at(
        self, index: Tensor, state: State, t: Tensor, condition: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The two factors of :meth:`network_log_prob` under a mask-only process; no second tensor of its size.

        Args:
            index: Data values asked for, ``(B, *shape, m)``.
            state: z_t, as for :meth:`network_log_prob`.
            t: Steps ``(B,)``, in 1..T.
            condition: Labels ``(B,)``, codes ``(B, m)`` or None.

        Returns:
            Log-probabilities of these values for a coordinate that does not stay masked, ``(B, *shape, m)``, and
            the log odds that it does, ``(B, *shape)``; float32.
        """
        logits = self._masked_logits(state, t, condition)
        log_prob, mask = log_prob_at(logits, index, self.pad)
        return log_prob, mask + self._stay_odds(t, logits)

    def log_prob(self, z_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """Log p(z_s|z_t) (eq. 7).

        Args:
            z_t: Integer states ``(B, *shape)``.
            t: Steps ``(B,)``, in 1..T.
            condition: Labels ``(B,)``, codes ``(B, m)`` or None.

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
            condition: Labels ``(B,)``, codes ``(B, m)`` or None.
        """
        if not self.mask_only:
            return sample_categorical(self.log_prob(z_t, t, condition), generator)
        logits = self._masked_logits(SparseStates.hard(z_t, self.num_states), t, condition)
        masked = z_t == self.num_states - 1
        size = rows_at_once(self.num_states)
        rows, odds = (torch.split(each[masked], size) for each in (logits, self._stay_odds(t, logits)))
        joint = (masked_logits(*part, self.pad) for part in zip(rows, odds, strict=True))
        drawn = [sample_categorical(part, generator) for part in joint]
        return z_t.masked_scatter(masked, torch.cat(drawn))

    def _masked_logits(self, state: State, t: Tensor, condition: Tensor | None) -> Tensor:
        """Logits of a mask-only process ``(B, *shape, S)``: the network's, for data values over those of the code."""
        logits: Tensor = self.network(state, t, condition)
        if self._log_data is None:
            return logits
        assert condition is not None  # the network has seen to that
        return logits + F.pad(self._log_data(condition), (0, 1))

    def _stay_odds(self, t: Tensor, logits: Tensor) -> Tensor:
        """Log odds of staying masked, for every coordinate of ``logits``."""
        return self._log_stay_odds()[t].expand(logits.shape[:-1])
