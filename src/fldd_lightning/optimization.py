"""Two time scales: learning-rate schedules, clipping and weight averaging for the two networks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from math import cos, pi

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Timer, WeightAveraging
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

__all__ = ["AdaptiveClip", "averaging", "learning_rate_factor", "run_length", "run_progress"]


def learning_rate_factor(
    progress: Callable[[int], float], frozen_steps: int = 0, warmup_steps: int = 100
) -> Callable[[int], float]:
    """Freeze, linear warm-up, then a cosine from 1 to 2 %.

    Args:
        progress: Share of the run behind us at a step, as :func:`run_progress` makes it.
        frozen_steps: Steps with a factor of zero.
        warmup_steps: Steps of the rise after them.
    """

    def factor(step: int) -> float:
        rise = min(1.0, max(0, step + 1 - frozen_steps) / warmup_steps)
        fall = 0.02 + 0.98 * 0.5 * (1 + cos(pi * min(1.0, progress(step))))
        return rise * fall

    return factor


def run_length(trainer: Trainer) -> float:
    """Optimiser steps of a run; infinite where nobody knows, as with a stream (Lightning says -1)."""
    total = float(trainer.estimated_stepping_batches)
    return total if total > 0 else float("inf")


def run_progress(trainer: Trainer) -> Callable[[int], float]:
    """Share of a run that is done: of its steps or of its ``max_time``, whichever is further.

    A run that its clock will stop has thus brought its learning rate down by then. Without a
    limit of either kind it stays at 0. The clock is the first process's, looked at once a step: with clocks of their
    own processes would train at different rates.
    """
    total = run_length(trainer)
    timers = [callback for callback in trainer.callbacks if isinstance(callback, Timer)]  # type: ignore[attr-defined]

    @lru_cache(1)
    def of_time(step: int) -> float:
        shares = [0.0]
        for timer in timers:
            remaining, elapsed = timer.time_remaining(), timer.time_elapsed()
            if remaining is not None:
                shares.append(elapsed / max(elapsed + remaining, 1e-9))
        return trainer.strategy.broadcast(max(shares))

    def progress(step: int) -> float:
        return max(step / total, of_time(step)) if timers else step / total

    return progress


class AdaptiveClip(nn.Module):
    """Clips a gradient to a multiple of the running mean of its norm.

    Forward and reverse have one each: a single norm over both lets the score-function noise of
    one starve the other, and a fixed norm would depend on K, D and T.

    Args:
        ratio: The multiple.
        decay: Decay of the running mean.
        name: Whose gradients these are, for the warning.
    """

    mean_norm: Tensor

    def __init__(self, ratio: float = 2.0, decay: float = 0.98, name: str = "one network") -> None:
        super().__init__()
        self.ratio, self.decay, self.name, self.has_dropped = ratio, decay, name, False
        self.register_buffer("mean_norm", torch.full((), float("nan")))

    @torch.no_grad()
    def clip(self, parameters: Iterable[nn.Parameter]) -> None:
        """Scale the gradients in place; one that is not finite is dropped for this step, with a warning at first."""
        with_grad = [p for p in parameters if p.grad is not None]
        if not with_grad:
            return
        norm = torch.nn.utils.get_total_norm([p.grad for p in with_grad if p.grad is not None])
        mean = torch.where(self.mean_norm > 0, self.mean_norm, norm)  # of the gradients before; of none yet
        mean = self.decay * mean + (1 - self.decay) * norm.clamp_max(4 * mean)
        self.mean_norm.copy_(torch.where(norm.isfinite(), mean, self.mean_norm))
        is_finite, limit = torch.stack([norm.isfinite(), self.ratio * self.mean_norm]).tolist()
        if not is_finite:
            if not self.has_dropped:
                rank_zero_warn(
                    f"a gradient was not finite, and {self.name} was not updated in this step. This may happen once "
                    "in a while in half precision; if training stands still, lower model.lr and report the config."
                )
            self.has_dropped = True
            for p in with_grad:
                p.grad = None
            return
        torch.nn.utils.clip_grads_with_norm_(with_grad, limit, norm)


def averaging(decay: float) -> WeightAveraging:
    """Lightning's weight averaging with a decay that rises to ``decay``, so that short runs profit.

    After n updates the decay is at most (1 + n) / (10 + n). Buffers are copied, not averaged.
    """

    def average(averaged: Tensor, current: Tensor, updates: Tensor | int) -> Tensor:
        n = float(updates)
        return torch.lerp(averaged, current, 1 - min(decay, (1 + n) / (10 + n)))

    return WeightAveraging(use_buffers=False, avg_fn=average)
