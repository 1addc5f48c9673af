"""A progress bar of the whole run: its steps, the bound, the time left."""

from __future__ import annotations

import sys
from time import monotonic
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Timer, TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

from ..training import run_length

__all__ = ["RunProgressBar"]

_WITH_END = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
_WITHOUT_END = "{desc} {elapsed}{postfix}"
_SECONDS = 0.1  # between two changes of the bar


class RunProgressBar(TQDMProgressBar):
    """Shows ``step 120/500``, the bound and the time left; Lightning's own bar shows one epoch at a time.

    The bar fills up with the run's steps or with its ``max_time``, whichever is further. Without an end there
    is a count only. Validation, testing and prediction show Lightning's bars.
    """

    def __init__(self) -> None:
        super().__init__()
        self._shown_at = 0.0
        self._total_steps = float("inf")
        self._has_begun = False

    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """The metrics of the bar, without the logger's version number."""
        metrics = super().get_metrics(trainer, pl_module)
        return {name: value for name, value in metrics.items() if name != "v_num"}

    def init_train_tqdm(self) -> Tqdm:
        """The bar of the run, filled from 0 to 1."""
        self._total_steps, self._has_begun = run_length(self.trainer), False
        share = self._share()
        return Tqdm(
            desc=self._description(),
            total=None if share is None else 1.0,
            position=2 * self.process_position,
            disable=self.is_disabled,
            leave=True,
            dynamic_ncols=True,
            file=sys.stdout,
            smoothing=0,
            bar_format=_WITHOUT_END if share is None else _WITH_END,
        )

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        """Starts the clock, as a latent is fitted before the first epoch; later epochs leave the bar as it is."""
        if not self._has_begun:
            self._has_begun = True
            share = self._share()
            self.train_progress_bar.reset(None if share is None else 1.0)
            self.train_progress_bar.initial = share or 0.0  # a resumed run was this far

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if monotonic() - self._shown_at >= _SECONDS:
            self._show(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._show(trainer, pl_module)
        super().on_train_end(trainer, pl_module)

    def _show(self, trainer: Trainer, module: LightningModule) -> None:
        if self.is_enabled:
            share = self._share()
            self._shown_at = monotonic()
            self.train_progress_bar.n = trainer.global_step if share is None else share
            self.train_progress_bar.set_description_str(self._description(), refresh=False)
            self.train_progress_bar.set_postfix(self.get_metrics(trainer, module))

    def _description(self) -> str:
        total = "" if self._total_steps == float("inf") else f"/{self._total_steps:.0f}"
        return f"step {self.trainer.global_step}{total}"

    def _share(self) -> float | None:
        """The share of the run that is done, or None where it has no end."""
        shares = [] if self._total_steps == float("inf") else [self.trainer.global_step / max(self._total_steps, 1.0)]
        for timer in self.trainer.callbacks:  # type: ignore[attr-defined]
            remaining = timer.time_remaining() if isinstance(timer, Timer) else None
            if remaining is not None:
                shares.append(timer.time_elapsed() / max(timer.time_elapsed() + remaining, 1e-9))
        return min(1.0, max(shares)) if shares else None
