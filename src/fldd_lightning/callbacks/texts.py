"""Samples as text, over training and at its end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from ..errors import FLDDError
from ..module import FLDD
from ..ranges import COUNT, SEED, check_numbers
from .run import in_training, on_training_device, run_folder

__all__ = ["Texts", "trajectory_lines", "write_lines"]


class Texts(Callback):
    """Writes ``texts/samples_step{n}.txt`` at every validation of ``fit``, one sample a line, and tells every logger.

    Of tables it is a ``.csv``, with the names of the columns.

    At the end ``texts/trajectory.txt`` shows a few samples as they come about, z_T to z_0. For models that
    write text, which is what :meth:`fldd_lightning.FLDD.to_text` gives.

    Args:
        num_samples: Samples at every validation.
        num_rows: Trajectories.
        seed: Seed of the samples.
    """

    def __init__(self, num_samples: int = 16, num_rows: int = 4, seed: int = 0) -> None:
        check_numbers(locals(), num_samples=COUNT, num_rows=COUNT, seed=SEED)
        self.num_samples, self.num_rows, self.seed = num_samples, num_rows, seed

    @torch.no_grad()
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Samples over training; here, as the weights are no longer the averaged ones when validation ends."""
        if not in_training(trainer):
            return
        folder, module = run_folder(trainer, "texts"), _fldd(pl_module)
        if trainer.is_global_zero:
            lines = _lines(module, module.sample(self.num_samples, self.seed))
            file = folder / f"samples_step{trainer.global_step}{module.text_ending}"
            write_lines([*module.text_head(), *lines], file)
            for logger in trainer.loggers:
                _log_text(logger, "\n\n".join(lines), trainer.global_step)

    @torch.no_grad()
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not in_training(trainer):
            return
        folder, module = run_folder(trainer, "texts"), _fldd(pl_module)
        if trainer.is_global_zero:
            with on_training_device(trainer, module):
                states = module.sample(self.num_rows, self.seed, trajectory=True)
            write_lines(trajectory_lines(module, states), folder / "trajectory.txt")


def write_lines(lines: Sequence[str], path: Path) -> None:
    """Write what ``to_text`` gives to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def trajectory_lines(module: FLDD, states: Tensor) -> list[str]:
    """States z_T..z_0 ``(T + 1, N, *shape)`` as text, sample after sample."""
    return [line for row in states.unbind(1) for line in _lines(module, row)]


def _fldd(module: LightningModule) -> FLDD:
    if not isinstance(module, FLDD):
        raise FLDDError("the Texts callback shows FLDD modules only; remove it from the callbacks.")
    return module


def _lines(module: FLDD, x: Tensor) -> list[str]:
    lines = module.to_text(x)
    if lines is None:
        raise FLDDError(
            f"{type(module).__name__} writes no text, as it has no to_text or no tokenizer; remove the Texts callback."
        )
    return lines


def _log_text(logger: Any, text: str, step: int) -> None:
    if hasattr(logger, "log_text"):
        logger.log_text("samples", columns=["text"], data=[[text]], step=step)
    elif hasattr(logger.experiment, "add_text"):
        logger.experiment.add_text("samples", text, step)
