"""Samples as text, over training and at its end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn

from ..errors import FLDDError
from ..text import TextFLDD, write_lines

__all__ = ["Texts"]


class Texts(Callback):
    """Writes ``texts/samples_step{n}.txt`` at every validation of ``fit``, one sample a line, and tells every logger.

    At the end ``texts/trajectory.txt`` shows a few samples as they come about, z_T to z_0, MASK as ``·``.

    Args:
        num_samples: Samples at every validation.
        num_rows: Trajectories.
        seed: Seed of the samples.
    """

    def __init__(self, num_samples: int = 16, num_rows: int = 4, seed: int = 0) -> None:
        self.num_samples, self.num_rows, self.seed = num_samples, num_rows, seed

    @torch.no_grad()
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Samples with averaged weights."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking or getattr(trainer, "fast_dev_run", False):
            return
        folder, module = _folder(trainer), _text_module(pl_module)
        if trainer.is_global_zero:
            lines = module.to_text(module.sample(self.num_samples, self.seed)) or []
            write_lines(lines, folder / f"samples_step{trainer.global_step}.txt")
            for logger in trainer.loggers:
                _log_text(logger, "\n\n".join(lines), trainer.global_step)

    @torch.no_grad()
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if getattr(trainer, "fast_dev_run", False):
            return
        folder, module = _folder(trainer), _text_module(pl_module)
        if trainer.is_global_zero:
            states = module.sample(self.num_rows, self.seed, trajectory=True)  # (T + 1, N, length)
            rows = [module.to_text(row) or [] for row in states.unbind(1)]
            write_lines([line for row in rows for line in row], folder / "trajectory.txt")


def _folder(trainer: Trainer) -> Path:
    """Where texts go; all processes must ask, as they agree on it."""
    return Path(trainer.log_dir or trainer.default_root_dir) / "texts"


def _text_module(module: LightningModule) -> TextFLDD:
    if not isinstance(module, TextFLDD):
        raise FLDDError("the Texts callback shows TextFLDD modules only; remove it from the callbacks.")
    return module


def _log_text(logger: Any, text: str, step: int) -> None:
    if hasattr(logger, "log_text"):
        logger.log_text("samples", columns=["text"], data=[[text]], step=step)
    elif hasattr(logger.experiment, "add_text"):
        logger.experiment.add_text("samples", text, step)
