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
from torch.optim.swa_utils import AveragedModel

from .errors import FLDDError
from .ranges import BELOW_ONE, BETWEEN, POSITIVE, check_numbers

__all__ = [
    "AdaptiveClip",
    "Averaging",
    "RisingAverage",
    "averaged_state",
    "averages_of",
    "check_length",
    "clip_apart",
    "held_still",
    "learning_rate_factor",
    "refuse_other_averaging",
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


def check_length(trainer: Trainer) -> None:
    """See that a run is set to a step or more; warn if it is set to end before its first validation.

    Args:
        trainer: Of a training that starts.

    Raises:
        FLDDError: If there is nothing to train on, or the least length is above the greatest.
    """
    if trainer.limit_train_batches == 0:
        raise FLDDError("limit_train_batches is 0, which leaves nothing to train on. Leave it out, or set more.")
    for unit, least, most in (
        ("steps", trainer.min_steps, trainer.max_steps), ("epochs", trainer.min_epochs, trainer.max_epochs),
    ):  # fmt: skip
        if most == 0:
            raise FLDDError(f"max_{unit} is 0, which leaves nothing to train. Leave it out, or set more.")
        if least is not None and most is not None and 0 < most < least:
            raise FLDDError(f"min_{unit} is {least}, which is more than max_{unit}, {most}. Set one of them.")
    interval = getattr(trainer, "val_check_interval", None)  # none if it is a time
    batches = trainer.max_steps * trainer.accumulate_grad_batches
    if type(interval) is int and trainer.check_val_every_n_epoch is None and 0 < batches < interval:
        rank_zero_warn(
            f"the run ends after {batches} batches, before its first validation: val_check_interval is {interval}. "
            "No checkpoint will be the best one. Set a smaller val_check_interval."
        )


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
    num_dropped: Tensor

    def __init__(self, name: str, ratio: float = 2.0, decay: float = 0.98) -> None:
        check_numbers(locals(), ratio=POSITIVE, decay=BETWEEN)
        super().__init__()
        self.ratio, self.decay, self.name, self.has_warned = ratio, decay, name, False
        self.register_buffer("mean_norm", torch.full((), float("nan")))
        self.register_buffer("num_dropped", torch.zeros((), dtype=torch.long), persistent=False)

    @torch.no_grad()
    def clip(self, parameters: Iterable[nn.Parameter]) -> None:
        """Scale the gradients in place; one that is not finite becomes 0. The device is not waited for."""
        with_grad = [p for p in parameters if p.grad is not None]
        if not with_grad:
            return
        gradients = [p.grad for p in with_grad if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        is_finite = norm.isfinite()
        mean = torch.where(self.mean_norm > 0, self.mean_norm, norm)  # of the gradients before; of none yet
        mean = self.decay * mean + (1 - self.decay) * norm.clamp_max(4 * mean)
        self.mean_norm.copy_(torch.where(is_finite, mean, self.mean_norm))
        self.num_dropped.add_(~is_finite)
        of_limit = norm / (self.ratio * self.mean_norm).clamp_min(torch.finfo(norm.dtype).tiny)
        torch.nn.utils.clip_grads_with_norm_(with_grad, 1.0, of_limit)  # to a norm of 1 in units of the limit
        for gradient in gradients:  # where the norm is not finite, they are now 0 or NaN
            gradient.nan_to_num_(0.0, 0.0, 0.0)

    def warn(self) -> None:
        """Say once if gradients were dropped; this waits for the device."""
        if not self.has_warned and int(self.num_dropped) > 0:
            self.has_warned = True
            rank_zero_warn(
                f"a gradient of {self.name} was not finite, and was taken as 0. This may happen once in a while in "
                "half precision; if training stands still, lower model.lr and report the config."
            )


class RisingAverage(AveragedModel):
    """A copy of a module with a moving average of its weights, whose decay rises to ``decay``: short runs profit.

    After n updates the decay is at most (1 + n) / (10 + n). Buffers are copied. All weights are averaged by one
    call, and the device is not waited for.

    Args:
        model: The module.
        decay: Decay of the averaged weights.
        device: Where the copy is kept; the module's if None.
    """

    n_averaged: Tensor

    def __init__(self, model: nn.Module, decay: float, device: torch.device | None = None) -> None:
        super().__init__(model, device)
        self.n_averaged = self.n_averaged.cpu()  # its value is looked at
        self.decay = decay
        self._of: tuple[Any, ...] | None = None  # the module, and weights and buffers of both: looked up once

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Move the average towards the weights of the module; the first time, to them."""
        n = int(self.n_averaged)
        share = 1 - min(self.decay, (1 + n) / (10 + n)) if n > 0 else 1.0
        if self._of is None or self._of[0] is not model:
            self._of = (model, *(list(each()) for m in (self.module, model) for each in (m.parameters, m.buffers)))
        _, weights, buffers, current, current_buffers = self._of
        torch._foreach_lerp_(weights, current, share)
        if buffers:
            torch._foreach_copy_(buffers, current_buffers)
        self.n_averaged += 1


class Averaging(WeightAveraging):
    """Lightning's weight averaging by :class:`RisingAverage`.

    Args:
        decay: Decay of the averaged weights.
    """

    def __init__(self, decay: float) -> None:
        check_numbers(locals(), decay=BELOW_ONE)
        super().__init__(use_buffers=False)
        self._decay = decay

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Copy the module when training begins, onto the device that it will be moved to.

        In float64, if that is asked for: Lightning sees to both after this copy only.
        """
        if trainer.precision == "64-true":
            pl_module.double()
        if stage == "fit":
            self._average_model = RisingAverage(pl_module, self._decay, trainer.strategy.root_device)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._average_model is not None:  # after training the module itself has the average
            super().on_save_checkpoint(trainer, pl_module, checkpoint)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """As at the end of training, which Lightning leaves out where a resumed run was at its end already."""
        if self._average_model is not None:
            self.on_train_end(trainer, pl_module)

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
    fused: bool,
) -> dict[str, Any]:
    """One AdamW and its schedule: a parameter group for denoiser and latents and one for the forward process.

    Args:
        progress: Share of the run that is done; see :func:`run_progress`.
        module: All parameters.
        process: The forward process, whose parameters make the second group.
        rates: Peak learning rates of the two groups.
        freeze: Steps at first in which the second group does not move.
        decay: AdamW's weight decay.
        fused: Whether AdamW may do all of its work in one call; it can on a CPU and on CUDA.

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
    is_fast = fused and all(p.device.type in ("cpu", "cuda") for group in groups for p in group["params"])
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=decay, fused=is_fast or None)
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
