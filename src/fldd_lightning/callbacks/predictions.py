"""Writes what ``predict`` computes: the bound of every example."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter

from ..files import shard_mark
from .run import run_folder

__all__ = ["NELBOWriter"]


class NELBOWriter(BasePredictionWriter):
    """Saves ``nelbo.pt``: ``index`` and ``nelbo`` (nats per example) of the predicted split.

    Of several processes each saves its part, the first of two as ``nelbo-00000-of-00002.pt``. With data modules of this
    package the parts, one after the other, are what one process saves.
    """

    def __init__(self) -> None:
        super().__init__("epoch")

    def write_on_epoch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        predictions: Sequence[Any],
        batch_indices: Sequence[Any],
    ) -> None:
        folder = run_folder(trainer)
        if not predictions:  # there are fewer batches than processes
            return
        joined = {key: torch.cat([p[key].cpu() for p in predictions]) for key in ("index", "nelbo")}
        path = folder / f"nelbo{shard_mark(trainer.global_rank, trainer.world_size)}.pt"
        torch.save(joined, path)
        if trainer.is_global_zero:
            of = f", one of {trainer.world_size} files" if trainer.world_size > 1 else ""
            print(f"NELBO of {len(joined['nelbo'])} examples: {path}{of}")
