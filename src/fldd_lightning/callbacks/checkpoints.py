"""The two checkpoints that every run keeps: the best one, and the one to go on from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from ..ranges import COUNT, check_numbers

__all__ = ["BestCheckpoint", "LastCheckpoint"]


class _Checkpoint(ModelCheckpoint):
    """A ModelCheckpoint that takes over no files from elsewhere when a run is resumed."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the score and the files of a run that goes on in the same folder; else start anew.

        The files that the state lists are deleted in time. A checkpoint may come from anyone and list any file.
        """
        listed = [state_dict.get(name) for name in ("best_model_path", "kth_best_model_path", "last_model_path")]
        listed += list(state_dict.get("best_k_models") or {})
        folder = Path(self.dirpath or ".").resolve()
        if state_dict.get("dirpath") == self.dirpath and all(
            Path(path).resolve().parent == folder for path in listed if path
        ):
            super().load_state_dict(state_dict)


class BestCheckpoint(_Checkpoint):
    """Keeps ``best-{step}.ckpt``, the checkpoint with the lowest validation bound so far.

    Args:
        dirpath: Folder; by default ``checkpoints/`` in the run's.
        monitor: The logged value that is smallest for the best.
    """

    def __init__(self, dirpath: str | None = None, monitor: str = "val/nelbo") -> None:
        super().__init__(dirpath, filename="best-{step}", monitor=monitor, mode="min")


class LastCheckpoint(_Checkpoint):
    """Keeps ``last.ckpt``, from which a run goes on: ``fit --ckpt_path .../last.ckpt``.

    It is also written at the end of a run, so that there is one however short the run was.

    Args:
        dirpath: Folder; by default ``checkpoints/`` in the run's.
        every_n_train_steps: Optimiser steps between two writings; by default it is written after every epoch.
    """

    def __init__(self, dirpath: str | None = None, every_n_train_steps: int | None = None) -> None:
        check_numbers(locals(), every_n_train_steps=COUNT.or_none)
        super().__init__(
            dirpath,
            filename="last",
            every_n_train_steps=every_n_train_steps,
            save_on_train_epoch_end=True if every_n_train_steps is None else None,
            enable_version_counter=False,
        )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if trainer.should_stop or trainer.global_step == trainer.max_steps:  # within an epoch, where it can go on
            self._save_at_end(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        if trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs:
            self._save_at_end(trainer)

    def _save_at_end(self, trainer: Trainer) -> None:
        """Write the file unless it holds this step already."""
        if not self._should_skip_saving_checkpoint(trainer):
            self._save_topk_checkpoint(trainer, {})
