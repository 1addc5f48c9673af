"""Checkpoints as files: written whole, and checked before a run goes on from one."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.trainer.states import TrainerFn
from torch import nn

from .errors import FLDDError
from .files import remove_leftovers, replacing

__all__ = [
    "WholeCheckpointIO",
    "check_folder",
    "check_room",
    "damaged",
    "is_damaged",
    "newest_good",
    "write_whole_checkpoints",
]


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside the one that it replaces, which stays until the new one is on the disk.

    Lightning writes to the folder for temporary files first. Where that is another file system it then copies, over the
    checkpoint that is there. Addresses such as ``s3://`` are left to it.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint.

        Args:
            checkpoint: What it holds.
            path: Where it belongs.
            storage_options: Lightning's, which refuses them.

        Raises:
            FLDDError: If it cannot be written.
        """
        if storage_options is not None or _is_address(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        try:
            with replacing(Path(path)) as file:
                torch.save(checkpoint, file)
        except OSError as error:
            raise FLDDError(
                f"cannot write the checkpoint '{path}': {error.strerror or error}. Those written before are whole: "
                "make room, or choose another folder with trainer.default_root_dir, and go on from the last one."
            ) from error

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Read a checkpoint, every byte of which is checked first.

        Args:
            path: The file.
            args: As Lightning's.
            kwargs: As Lightning's.

        Raises:
            FLDDError: If it is damaged.
        """
        if not _is_address(path):
            remove_leftovers(Path(path).parent)
            if is_damaged(path) or (os.path.isfile(path) and not os.path.getsize(path)):
                raise damaged(path)
        found: dict[str, Any] = super().load_checkpoint(path, *args, **kwargs)
        return found


def write_whole_checkpoints(trainer: Trainer) -> None:
    """Let a trainer write its checkpoints by :class:`WholeCheckpointIO`, unless it was given a plugin for that."""
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = WholeCheckpointIO()


def check_room(trainer: Trainer, module: nn.Module) -> None:
    """See before training that its checkpoints can be written: that their folders take files, and room for two.

    A checkpoint holds every weight four times: as it is, averaged, and twice in the optimiser.

    Args:
        trainer: Its ModelCheckpoints know their folders.
        module: What is trained.

    Raises:
        FLDDError: If they cannot.
    """
    if trainer.state.fn != TrainerFn.FITTING or getattr(trainer, "fast_dev_run", False):
        return
    needed = 2 * 4 * sum(p.numel() * p.element_size() for p in module.parameters())
    kept = [one.dirpath for one in trainer.checkpoint_callbacks if isinstance(one, ModelCheckpoint)]
    for folder in {Path(each) for each in kept if each and not _is_address(each)}:
        check_folder(folder)
        free = shutil.disk_usage(folder).free
        if free < needed:
            raise FLDDError(
                f"'{folder}' has {free / 1e6:,.0f} MB left, but two checkpoints take about {needed / 1e6:,.0f} MB. "
                "Make room, or choose another folder with trainer.default_root_dir."
            )


_OF_RUN = "Choose another folder with trainer.default_root_dir, or the dirpath of a checkpoint."


def check_folder(folder: Path, advice: str = _OF_RUN) -> None:
    """Raise FLDDError, with an advice, unless files can be written into a folder, which is made if it is not there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise FLDDError(f"cannot write into '{folder}': {error.strerror or error}. {advice}") from error


def is_damaged(path: str | Path) -> bool:
    """Whether a file starts as checkpoints do, but is not whole."""
    try:
        with open(path, "rb") as file:
            if file.read(4) != b"PK\x03\x04":
                return False
        with ZipFile(path) as archive:
            return archive.testzip() is not None
    except (BadZipFile, EOFError, ValueError):
        return True
    except OSError:
        return False  # whoever reads it says why


def damaged(path: str | Path) -> FLDDError:
    """What to raise for a damaged checkpoint."""
    return FLDDError(f"'{path}' is damaged: bytes are missing or have changed. {newest_good(path)}")


def newest_good(path: str | Path) -> str:
    """A sentence that says what to take in place of a damaged checkpoint."""
    others = [each for each in Path(path).parent.glob("*.ckpt") if each.is_file() and each != Path(path)]
    for other in sorted(others, key=lambda each: each.stat().st_mtime, reverse=True):
        try:
            held = torch.load(other, map_location="cpu", weights_only=True, mmap=True)
        except Exception:  # whatever bytes of another kind lead to
            continue
        if isinstance(held, dict) and "fldd" in held and not is_damaged(other):
            return f"The newest good one in its folder is '{other}'."
    return "There is no good one in its folder. Give one that 'fit' wrote."


def _is_address(path: str | Path) -> bool:
    return "://" in str(path)
