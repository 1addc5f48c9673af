"""What training needs beside the bound: rates, clipping and averages of the two networks, and the fit of latents."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from math import cos, pi
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Timer, WeightAveraging
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from .data.loaders import apart_from_training
from .latents.base import Latent

__all__ = ["AdaptiveClip", "Averaging", "fit_latents", "learning_rate_factor", "run_length", "run_progress"]


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


class Averaging(WeightAveraging):
    """Lightning's weight averaging with a decay that rises to ``decay``, so that short runs profit.

    After n updates the decay is at most (1 + n) / (10 + n). Buffers are copied, not averaged.

    Args:
        decay: Decay of the averaged weights.
    """

    def __init__(self, decay: float) -> None:
        def average(averaged: Tensor, current: Tensor, updates: Tensor | int) -> Tensor:
            n = float(updates)
            return torch.lerp(averaged, current, 1 - min(decay, (1 + n) / (10 + n)))

        super().__init__(use_buffers=False, avg_fn=average)

    @property
    def averaged(self) -> Any:
        """The module with averaged weights, or None before there is one."""
        return None if self._average_model is None else self._average_model.module


def fit_latents(
    trainer: Trainer, module: LightningModule, latents: Sequence[Latent], integers: Callable[[Any], Tensor]
) -> None:
    """Fit what is fitted before training, to training examples, and give the averaged weights a copy.

    A resumed run keeps its latents. The clock of ``max_time`` starts anew afterwards. All processes get those of
    the first.

    Args:
        trainer: The trainer, whose training loader is there.
        module: The module.
        latents: Its latents.
        integers: Gets the checked integers ``(B, *shape)`` of a batch.
    """
    if not latents:
        return
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    averages = [each.averaged for each in callbacks if isinstance(each, Averaging) and each.averaged is not None]
    has_fitted = False
    for i, latent in enumerate(latents):
        copies = [average.latents[i] for average in averages]
        if latent.num_examples == 0:
            continue
        if bool(trainer.strategy.broadcast(bool(latent.is_fitted))):
            rank_zero_info(f"Keeping the fitted {type(latent).__name__}: {latent.summary()}.")
        else:
            _fit(trainer, module, latent, integers)
            has_fitted = True
            for copy in copies:  # averages were made before
                copy.load_state_dict(latent.state_dict())
        for each in (latent, *copies):
            on_cpu = {name: value.cpu() for name, value in each.state_dict().items()}
            each.load_state_dict(trainer.strategy.broadcast(on_cpu))  # the first process's
    for timer in callbacks:
        if has_fitted and isinstance(timer, Timer):
            timer.on_train_start(trainer, module)


def _fit(trainer: Trainer, module: LightningModule, latent: Latent, integers: Callable[[Any], Tensor]) -> None:
    parts: list[Tensor] = []
    for batch in apart_from_training(trainer.train_dataloader):
        parts.append(integers(batch).to(module.device))
        if sum(map(len, parts)) >= latent.num_examples:
            break
    examples = torch.cat(parts)[: latent.num_examples]
    name = type(latent).__name__
    rank_zero_info(f"Fitting the {name} to {len(examples)} training examples ...")
    fit = latent.fit(examples, seed=torch.initial_seed() % 2**31)
    if latent.says_nothing:
        rank_zero_info(
            f"The {name} says nothing: nothing was found that helps held-out examples. There may be nothing, or too "
            "few training examples; or, of an AutoencoderLatent, fit_steps may be too small or kl_weight too large."
        )
    elif "nll" in fit:
        rank_zero_info(
            f"{latent.summary()}. On held-out training examples: {fit['nll']:.2f} "
            f"nats by the latent alone, {fit['nll_marginals']:.2f} by a product of marginals."
        )
    else:
        rank_zero_info(f"{latent.summary()}.")
    for logger in trainer.loggers:
        logger.log_metrics({f"{latent.name}/{key}": value for key, value in fit.items()}, step=trainer.global_step)
