"""The sections of a report that tell how a run was made, and how to go on from it."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, Timer
from torch import nn

from ..module import FLDD
from . import report_page
from .run import shown

__all__ = ["commands", "duration", "made_with", "num_parameters", "versions"]


def made_with(trainer: Trainer, module: FLDD, seconds: float, examples_per_second: float) -> str:
    """Settings, versions, seeds, time and size."""
    parts: dict[str, Any] = {
        "forward process": module.forward_process,
        "denoiser": module.reverse,
        "latents": module.latents,
    }
    sizes = [f"{name} {count:,}" for name, part in parts.items() if (count := num_parameters([part]))]
    seed = os.environ.get("PL_GLOBAL_SEED")
    rows = {
        "wall time of training": duration(seconds),
        "optimiser steps": f"{trainer.global_step:,}, with {examples_per_second:,.0f} training examples a second",
        "parameters": f"{num_parameters([module]):,} ({', '.join(sizes)})",
        "seed": f"{seed}, of seed_everything"
        if seed
        else f"{torch.initial_seed()}, of torch; seed_everything was not called",
        "device": _device(trainer),
        "versions": ", ".join(f"{name} {number}" for name, number in versions().items()),
    }
    settings = {**_settings(trainer, module), "trainer": _plain(_trainer_settings(trainer))}
    text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    return report_page.section(
        "How it was made", report_page.table(rows), report_page.preformatted(text, "All settings")
    )


def commands(trainer: Trainer, module: FLDD) -> str:
    """The commands that go on from here."""
    kept = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]
    best = _first(callback.best_model_path for callback in kept if callback.monitor is not None)
    last = _first(callback.last_model_path for callback in kept)
    last = last or _first(callback.best_model_path for callback in kept if callback.monitor is None)
    found = best or last
    if not found:
        return report_page.section(
            "Go on from here",
            report_page.note(
                "This run kept no checkpoint. Add a ModelCheckpoint to its callbacks to sample, test or resume."
            ),
        )
    own = sorted({name for name in _classes(_settings(trainer, module)) if not name.startswith("fldd_lightning.")})
    chosen, resumed = (
        shlex.join([shown(path), *(f"--trust={name}" for name in own)]) for path in (found, last or found)
    )
    config = Path(found).parents[1] / "config.yaml"  # of the command line; it has the trainer's options
    resume = (
        f"--config {shlex.quote(shown(config))} --ckpt_path {resumed}" if config.exists() else f"--ckpt_path {resumed}"
    )
    lines = [
        "# draw samples of the checkpoint of the lowest bound" if best else "# draw samples",
        f"fldd-lightning sample --ckpt_path {chosen} --num_samples 64 --output samples",
        "# the bound on test examples",
        f"fldd-lightning test --ckpt_path {chosen}",
        "# train longer",
        f"fldd-lightning fit {resume} --trainer.max_steps {2 * max(1, trainer.global_step)}",
    ]
    return report_page.section("Go on from here", report_page.preformatted("\n".join(lines)))


def versions() -> dict[str, str]:
    """Of Python, the libraries that numbers depend on, and this package."""
    found = {name: version(name) for name in ("lightning", "torchmetrics", "numpy", "fldd-lightning")}
    return {"python": platform.python_version(), "torch": torch.__version__, **found}


def num_parameters(modules: Iterable[nn.Module]) -> int:
    """Of all modules together."""
    return sum(p.numel() for module in modules for p in module.parameters())


def duration(seconds: float) -> str:
    """Seconds in words, such as ``3 min 20 s``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


# ---- internals ---------------------------------------------------------------------------------


def _first(paths: Iterable[str]) -> str:
    """The first path that is set, or an empty one."""
    return next((path for path in paths if path), "")


def _classes(value: Any) -> Iterator[str]:
    """All class paths in plain settings, which a checkpoint names and a user must trust if they are no one else's."""
    if isinstance(value, dict):
        named = (item for key, item in value.items() if key in ("class", "class_path") and isinstance(item, str))
        yield from named
        for item in value.values():
            yield from _classes(item)
    elif isinstance(value, list):
        for item in value:
            yield from _classes(item)


def _path(thing: object) -> str:
    return f"{type(thing).__module__}.{type(thing).__qualname__}"


def _device(trainer: Trainer) -> str:
    device = trainer.strategy.root_device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type}, {platform.machine()}"
    return f"{name}, {trainer.world_size} process{'es' if trainer.world_size > 1 else ''}"


def _settings(trainer: Trainer, module: FLDD) -> dict[str, Any]:
    """Of model and data, as plain values."""
    model = {"class": _path(module), **dict(module.hparams)}
    return {"model": _plain(model), "data": _plain(_data_settings(trainer))}


def _data_settings(trainer: Trainer) -> dict[str, Any]:
    data = getattr(trainer, "datamodule", None)
    if data is None:
        return {"loaders": "given to fit"}
    options = dict(data.hparams) or {name: value for name, value in vars(data).items() if _is_option(name, value)}
    return {"class": _path(data), **options}


def _is_option(name: str, value: object) -> bool:
    return not name.startswith("_") and isinstance(value, (bool, int, float, str, Path, tuple, list, type(None)))


def _plain(value: Any) -> Any:
    """Anything as YAML can hold it."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items() if not str(key).startswith("_")}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if isinstance(value, (bool, int, float, str, type(None))) else str(value)


def _trainer_settings(trainer: Trainer) -> dict[str, Any]:
    timers = [each for each in trainer.callbacks if isinstance(each, Timer)]  # type: ignore[attr-defined]
    times = [each.time_elapsed() + left for each in timers if (left := each.time_remaining()) is not None]
    return {
        "max_steps": trainer.max_steps,
        "max_epochs": trainer.max_epochs,
        "max_time": duration(min(times)) if times else None,
        "precision": str(trainer.precision),
        "strategy": type(trainer.strategy).__name__,
        "devices": trainer.num_devices,
        "num_nodes": trainer.num_nodes,
        "accumulate_grad_batches": trainer.accumulate_grad_batches,
        "gradient_clip_val": trainer.gradient_clip_val,
        "val_check_interval": getattr(trainer, "val_check_interval", None),  # none if it is a time
        "check_val_every_n_epoch": trainer.check_val_every_n_epoch,
        "callbacks": [type(callback).__name__ for callback in trainer.callbacks],  # type: ignore[attr-defined]
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }
