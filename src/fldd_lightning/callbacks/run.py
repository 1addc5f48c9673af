"""Where a run writes, whether a validation is one of training, and the device it trained on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

__all__ = ["in_training", "on_training_device", "run_folder", "shown"]


def run_folder(trainer: Trainer, name: str = "") -> Path:
    """The run's folder, or the one called ``name`` in it; all processes must ask, as they agree on it."""
    folder = Path(trainer.log_dir or trainer.default_root_dir, name)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def shown(path: str | Path) -> str:
    """A path from the working folder on, where it lies in it; addresses such as ``s3://`` as they are."""
    if "://" in str(path):
        return str(path)
    absolute, here = Path(path).resolve(), Path.cwd().resolve()
    return str(absolute.relative_to(here) if absolute.is_relative_to(here) else absolute)


def in_training(trainer: Trainer) -> bool:
    """Whether this is ``fit``, and neither its sanity check nor a ``fast_dev_run``."""
    is_try = trainer.sanity_checking or getattr(trainer, "fast_dev_run", False)
    return trainer.state.fn == TrainerFn.FITTING and not is_try


@contextmanager
def on_training_device(trainer: Trainer, module: LightningModule) -> Iterator[None]:
    """Take the module back to where it was trained: when ``on_fit_end`` is called, it has left for the CPU."""
    device = module.device
    module.to(trainer.strategy.root_device)
    try:
        yield
    finally:
        module.to(device)
