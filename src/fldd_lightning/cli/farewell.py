"""The last lines of a run: which files it has written, and what to do with them."""

from __future__ import annotations

import shlex
from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from ..callbacks.run import run_folder, shown
from ..checkpoint import read_checkpoint
from ..factory import class_paths
from ..module import FLDD

__all__ = ["farewell"]

_ABOUT = {"best": "lowest validation bound", "final": "averaged weights at the end", "last": "to go on from"}


def farewell(trainer: Trainer) -> str:
    """What to print after ``fit``: the report, the checkpoints, and the commands that take them."""
    found = {
        Path(one.dirpath) for one in trainer.checkpoint_callbacks if isinstance(one, ModelCheckpoint) and one.dirpath
    }
    checkpoints = sorted(path for folder in found for path in folder.glob("*.ckpt"))
    report = run_folder(trainer) / "report.html"
    lines = [f"  {shown(report)}  open it in a browser"] if report.exists() else []
    for path in checkpoints:
        about = _ABOUT.get(path.stem.partition("-")[0], "")
        lines.append(f"  {shown(path)}  {about}".rstrip())
    if not lines:
        return ""
    if checkpoints:
        path = checkpoints[0]  # best-*, if there is one
        options = shlex.join(["--ckpt_path", shown(path), *_trust(path)])
        lines += [
            "",
            "Next:",
            f"  fldd-lightning sample {options} --output samples",
            f"  fldd-lightning test {options}",
        ]
    return "\n".join(["", *_missing(trainer), "This run wrote:", *lines])


def _missing(trainer: Trainer) -> list[str]:
    """What a run should have and has not: a step, and a best checkpoint."""
    kept = [one for one in trainer.checkpoint_callbacks if isinstance(one, ModelCheckpoint) and one.monitor]
    if isinstance(trainer.lightning_module, FLDD) and not trainer.lightning_module.logged:
        return [f"This run trained no step: it began at its end, step {trainer.global_step}. Set more max_steps."]
    if kept and not any(one.best_model_path for one in kept):
        return ["No checkpoint is the best one: the run ended before a validation, or had none."]
    return []


def _trust(path: Path) -> list[str]:
    """The options that let a checkpoint name the user's own classes."""
    checkpoint = read_checkpoint(path)
    data = checkpoint.get("datamodule_hyper_parameters") or {}
    named = {*class_paths(checkpoint["fldd"]), *class_paths({"class_path": data.get("_class_path"), "init_args": data})}
    own = sorted(name for name in named if not name.startswith("fldd_lightning."))
    return [word for name in own for word in ("--trust", name)]
