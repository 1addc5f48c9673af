"""What the command line adds to a run that its config does not say: callbacks, and when to validate."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, ProgressBar

from ..callbacks import CollapseMonitor, NELBOWriter, Pictures, Texts
from ..callbacks.checkpoints import BestCheckpoint, LastCheckpoint
from ..callbacks.progress import RunProgressBar
from ..callbacks.report import Report
from ..callbacks.signals import SaveOnSignal
from ..errors import FLDDError
from ..module import FLDD
from ..ranges import COUNT, NATURAL, NOT_NEGATIVE, SEED, Range, check_numbers
from ..table import TableFLDD
from ..text import TextFLDD

__all__ = ["check_trainer", "default_callbacks", "validation_interval"]


_PER_CORE = 8  # processes, at most; more would halt the machine
_NUMBERS = {  # that the trainer takes unchecked, and trips over later or not at all
    "accumulate_grad_batches": COUNT,
    "check_val_every_n_epoch": COUNT.or_none,
    "gradient_clip_val": NOT_NEGATIVE.or_none,
    "log_every_n_steps": NATURAL.or_none,
    "min_epochs": NATURAL.or_none,
    "min_steps": NATURAL.or_none,
    "num_nodes": COUNT,
    "num_sanity_val_steps": Range(-1, is_whole=True).or_none,
}


def check_trainer(options: Any) -> None:
    """Raise FLDDError for a seed or a number of the trainer that cannot be right.

    Args:
        options: Of a subcommand, parsed.
    """
    if not isinstance(options.seed_everything, bool):
        check_numbers({"seed_everything": options.seed_everything}, seed_everything=SEED.or_none)
    check_numbers(options.trainer, **_NUMBERS)
    if type(options.trainer.val_check_interval) is int:
        check_numbers(options.trainer, val_check_interval=COUNT)
    devices, cores = str(options.trainer.devices), os.cpu_count() or 1
    on_cpu = options.trainer.accelerator == "cpu" or not torch.accelerator.is_available()
    if on_cpu and devices.isdecimal() and int(devices) > _PER_CORE * cores:
        raise FLDDError(
            f"trainer.devices is {devices}: each would be a process on the CPU, which has {cores} cores here. Set "
            f"--trainer.devices to {cores} or less."
        )


def default_callbacks(subcommand: str, trainer: dict[str, Any], model: FLDD) -> list[Callback]:
    """The callbacks that a run has unless it lists others of the same kind.

    Args:
        subcommand: ``fit`` has all of them, the others those that do something there.
        trainer: The trainer's options.
        model: Decides between pictures and texts.
    """
    given = listed(trainer.get("callbacks"))
    wanted: list[tuple[tuple[type[Callback], ...], Callback]] = [((NELBOWriter,), NELBOWriter())]
    if trainer.get("enable_progress_bar") is not False:
        wanted.append(((ProgressBar,), RunProgressBar()))
    if subcommand == "fit":
        wanted.append(((CollapseMonitor,), CollapseMonitor()))
        wanted.append(((Pictures, Texts), Texts() if isinstance(model, (TextFLDD, TableFLDD)) else Pictures()))
        wanted.append(((Report,), Report()))
        if trainer.get("enable_checkpointing") is not False:
            interval = trainer.get("val_check_interval")
            steps = interval if type(interval) is int else None
            accumulated = trainer.get("accumulate_grad_batches") or 1
            wanted.append(((ModelCheckpoint,), BestCheckpoint()))
            wanted.append(
                ((ModelCheckpoint,), LastCheckpoint(every_n_train_steps=steps and max(1, steps // accumulated)))
            )
        wanted.append(((SaveOnSignal,), SaveOnSignal()))
    return [callback for kinds, callback in wanted if not any(isinstance(one, kinds) for one in given)]


def listed(callbacks: Callback | Sequence[Callback] | None) -> list[Callback]:
    """The callbacks of a trainer's option, which takes one, several or none."""
    if callbacks is None:
        return []
    return [callbacks] if isinstance(callbacks, Callback) else list(callbacks)


def validation_interval(trainer: Any) -> None:
    """Count the batches between two validations over all epochs, where their number is given.

    Lightning counts within an epoch unless ``check_val_every_n_epoch`` is None, and then refuses numbers
    that are larger than an epoch.
    """
    if type(trainer.val_check_interval) is int and trainer.check_val_every_n_epoch == 1:
        trainer.check_val_every_n_epoch = None
