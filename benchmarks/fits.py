"""Latents that are fitted once, for all trainings that need the same."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from work import TrainingWork

from fldd_lightning import FLDD, DiscreteDataModule

__all__ = ["FittedOnce"]


class FittedOnce(Callback):
    """Takes the latents of an earlier training with the same data, latents and seed; else keeps what this one fits.

    The operations of the fit are counted as if it had been made again.

    Args:
        model: What is trained, just made.
        data: Its data.
        callbacks: Of the training; of these :class:`TrainingWork` is told. It must come before this one.
        folder: Where fitted latents are kept.
    """

    def __init__(self, model: FLDD, data: DiscreteDataModule, callbacks: Iterable[Callback], folder: Path) -> None:
        self._works = [each for each in callbacks if isinstance(each, TrainingWork)]
        fitted = self._fitted = [i for i, latent in enumerate(model.latents) if latent.num_examples]
        made = [(model.latents[i].configuration(), getattr(model.latents[i], "fit_steps", 0)) for i in fitted]
        settings = (made, data.num_classes, data.shape, type(data), data.hparams, torch.initial_seed())
        self._file = folder / f"latents-{sha256(repr(settings).encode()).hexdigest()[:16]}.pt"
        if fitted and self._file.exists():  # before training, which copies the model for averages
            kept = torch.load(self._file, weights_only=True)
            for i, state in zip(fitted, kept["states"], strict=True):
                model.latents[i].load_state_dict(state)
            for work in self._works:
                work.fit = kept["fit"]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, FLDD)
        if trainer.global_step == 0 and self._fitted and self._works and not self._file.exists():
            states = [pl_module.latents[i].state_dict() for i in self._fitted]
            self._file.parent.mkdir(parents=True, exist_ok=True)
            new = self._file.with_suffix(".new")
            torch.save({"states": states, "fit": self._works[0].fit}, new)
            new.replace(self._file)
