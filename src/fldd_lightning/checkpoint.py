"""Reading a checkpoint's own configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from .errors import FLDDError
from .factory import import_class
from .module import FLDD

__all__ = ["checkpoint_config", "load_model"]


def checkpoint_config(path: str) -> dict[str, Any]:
    """The ``model`` and ``data`` sections a checkpoint was trained with.

    Raises:
        FLDDError: If the file is missing or is not a checkpoint of this package.
    """
    checkpoint = _read(path)
    config: dict[str, Any] = {}
    for section, key in (("model", "hyper_parameters"), ("data", "datamodule_hyper_parameters")):
        values = dict(checkpoint.get(key) or {})
        values.pop("_instantiator", None)
        class_path = values.pop("_class_path", None)  # what the command line writes
        if section == "model":
            class_path = _class_path(path, checkpoint)
        if class_path is not None:
            config[section] = {"class_path": class_path, "init_args": values}
    for linked in ("num_classes", "shape", "padded"):
        config["model"]["init_args"].pop(linked, None)  # the data says them
    return config


def load_model(path: str, device: str = "cpu") -> FLDD:
    """Load the module of a checkpoint, whichever subclass it is, with averaged weights.

    Raises:
        FLDDError: If the file is missing or is not a checkpoint of this package.
    """
    cls = import_class(_class_path(path, _read(path)))
    model: FLDD = cls.load_from_checkpoint(path, map_location=device, weights_only=True)
    return model.eval()


def _class_path(path: str, checkpoint: dict[str, Any]) -> str:
    """Of the module: under a key of its own, or among the hyperparameters."""
    found: str | None = checkpoint.get("fldd_class") or (checkpoint.get("hyper_parameters") or {}).get("_class_path")
    if found is None:
        raise FLDDError(f"'{path}' does not say which model it is; it was not written by fldd-lightning.")
    return found


def _read(path: str) -> dict[str, Any]:
    if not Path(path).is_file():
        raise FLDDError(f"no checkpoint at '{path}'. 'fit' writes them under lightning_logs/*/checkpoints/.")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)  # no need of the weights
    except OSError as error:
        raise FLDDError(f"cannot read '{path}': {error}.") from error
    except Exception as error:  # whatever bytes of another kind lead to
        raise FLDDError(
            f"cannot read '{path}': it is no checkpoint, a damaged one, or holds objects beside weights and plain "
            "settings, which are not unpickled. Give one that 'fit' wrote; FLDD_TRACEBACK=1 shows the cause."
        ) from error
    if not isinstance(checkpoint, dict) or "fldd_problem" not in checkpoint:
        raise FLDDError(f"'{path}' is not a checkpoint written by fldd-lightning.")
    return checkpoint
