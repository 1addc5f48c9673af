"""What training needs beside the bound: rates, clipping and averages of the two networks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from math import cos, pi
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, StochasticWeightAveraging, Timer, WeightAveraging
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from .errors import FLDDError

__all__ = [
    "AdaptiveClip",
    "Averaging",
    "averaged_state",
    "averages_of",
    "clip_apart",
    "held_still",
    "learning_rate_factor",
    "refuse_other_averaging",
    "rising_average",
    "run_length",
    "run_progress",
    "two_time_scales",
]


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
        name: Whose gradients these are, for the warning.
        ratio: The multiple.
        decay: Decay of the running mean.
    """

    mean_norm: Tensor

    def __init__(self, name: str, ratio: float = 2.0, decay: float = 0.98) -> None:
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


def rising_average(decay: float) -> Callable[[Tensor, Tensor, Tensor | int], Tensor]:
    """The ``avg_fn`` of a moving average whose decay rises to ``decay``, so that short runs profit.

    After n updates the decay is at most (1 + n) / (10 + n).
    """

    def average(averaged: Tensor, current: Tensor, updates: Tensor | int) -> Tensor:
        n = float(updates)
        return torch.lerp(averaged, current, 1 - min(decay, (1 + n) / (10 + n)))

    return average


class Averaging(WeightAveraging):
    """Lightning's weight averaging by :func:`rising_average`. Buffers are copied, not averaged.

    Args:
        decay: Decay of the averaged weights.
    """

    def __init__(self, decay: float) -> None:
        super().__init__(use_buffers=False, avg_fn=rising_average(decay))

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Put the module into float64, if that is asked for: Lightning does it after this copy, and after resuming."""
        if trainer.precision == "64-true":
            pl_module.double()
        super().setup(trainer, pl_module, stage)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._average_model is not None:  # after training the module itself has the average
            super().on_save_checkpoint(trainer, pl_module, checkpoint)

    @property
    def averaged(self) -> Any:
        """The module with averaged weights, or None before there is one."""
        return None if self._average_model is None else self._average_model.module


def averages_of(trainer: Trainer) -> list[Any]:
    """The modules with averaged weights that a run keeps."""
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    return [each.averaged for each in callbacks if isinstance(each, Averaging) and each.averaged is not None]


def averaged_state(module: LightningModule) -> dict[str, Tensor]:
    """The state of a module with averaged weights, also while it is trained, when its own are others."""
    trainer = module._trainer
    averages = averages_of(trainer) if trainer is not None and trainer.training else []
    state: dict[str, Tensor] = (averages[0] if averages else module).state_dict()
    return state


def refuse_other_averaging(callbacks: Iterable[Callback]) -> None:
    """Raise FLDDError for a callback that averages weights beside :class:`Averaging`.

    Two of them swap the weights of one module in turn: what one takes for the weights of training is the other's
    average, and checkpoints hold that.
    """
    for each in callbacks:
        if isinstance(each, (WeightAveraging, StochasticWeightAveraging)) and not isinstance(each, Averaging):
            raise FLDDError(
                f"remove the callback {type(each).__name__}: the model averages its weights itself. Set "
                "model.ema_decay for another decay of the average."
            )


def held_still(total: float, asked: int) -> int:
    """Steps at first in which the forward process is held still: those asked for, but no more than half of the run.

    A process that has less time than that has little to show when the run ends. It is said if the freeze is shorter.

    Args:
        total: Optimiser steps of the run, as :func:`run_length` gives them.
        asked: ``freeze_steps``.
    """
    if 2 * asked <= total:
        return asked
    rank_zero_warn(
        f"freeze_steps={asked} would be more than half of this run, which ends at step {total:.0f}. The forward "
        f"process is held still until step {total // 2:.0f}, so that it can learn in the others."
    )
    return int(total // 2)


def two_time_scales(
    progress: Callable[[int], float],
    module: nn.Module,
    process: nn.Module,
    rates: tuple[float, float],
    freeze: int,
    decay: float,
) -> dict[str, Any]:
    """One AdamW and its schedule: a parameter group for denoiser and latents and one for the forward process.

    Args:
        progress: Share of the run that is done; see :func:`run_progress`.
        module: All parameters.
        process: The forward process, whose parameters make the second group.
        rates: Peak learning rates of the two groups.
        freeze: Steps at first in which the second group does not move.
        decay: AdamW's weight decay.

    Returns:
        What ``configure_optimizers`` returns.
    """
    own = list(process.parameters())
    mine = {id(p) for p in own}
    rest = [p for p in module.parameters() if id(p) not in mine]
    groups: list[dict[str, Any]] = [{"params": rest, "lr": rates[0], "name": "reverse"}]
    factors = [learning_rate_factor(progress)]
    if own:
        groups.append({"params": own, "lr": rates[1], "name": "forward"})
        factors.append(learning_rate_factor(progress, freeze))
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factors)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def clip_apart(
    optimizer: torch.optim.Optimizer,
    clips: dict[str, AdaptiveClip],
    frozen: bool,
    value: float | None,
    algorithm: str | None,
) -> None:
    """Clip each parameter group by itself, and hold the forward process still while it is frozen.

    Args:
        optimizer: That of :func:`two_time_scales`.
        clips: The clip of each group, by its name.
        frozen: Whether the forward process stays as it is at this step.
        value: The trainer's ``gradient_clip_val``. If given, it replaces the clips by a fixed norm or value, 0 by none.
        algorithm: The trainer's ``gradient_clip_algorithm``.
    """
    for group in optimizer.param_groups:
        if frozen and group["name"] == "forward":
            for p in group["params"]:
                p.grad = None
        elif value is None:
            clips[group["name"]].clip(group["params"])
        elif value > 0:  # 0 is Lightning's word for none
            by_value = algorithm == "value"
            clip_to = nn.utils.clip_grad_value_ if by_value else nn.utils.clip_grad_norm_
            clip_to(group["params"], value)
