"""What commands share that take a checkpoint and data: their options, and files that are written whole."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import auto_cli

import fldd_lightning

from ..checkpoint import checkpoint_config, load_model
from ..checkpoint_file import check_folder
from ..errors import FLDDError
from ..files import replacing
from ..module import FLDD
from ..pretrained import shipped
from .foreign import mistakes_first
from .mistakes import OptionParser

__all__ = [
    "check_device",
    "check_free",
    "check_new",
    "check_output",
    "checkpoint_sections",
    "chosen_model",
    "know_classes",
    "option",
    "run_options",
    "run_with_data",
    "write_whole",
]


_SOURCES = ("path", "name", "subset", "val_path", "test_path")  # options that say where data come from


def run_with_data(command: Callable[..., None], name: str, args: Sequence[str]) -> None:
    """Parse the options of a function with ``ckpt_path``, ``pretrained`` and ``data``, and call it.

    Data are those of the checkpoint; options given beside it override them. Classes in it have been checked. A
    pretrained model does not name its data.

    Args:
        command: The function.
        name: Of the subcommand.
        args: Its options.

    Raises:
        FLDDError: For mistakes in checkpoint or data.
        SystemExit: For options that cannot be parsed, and for help.
    """
    know_classes()
    args, path = list(args), option(args, "--ckpt_path")
    with tempfile.TemporaryDirectory() as folder:
        if path is not None:
            sections = checkpoint_sections(path, args)
            config = Path(folder) / "checkpoint.yaml"
            config.write_text(yaml.safe_dump({"data": sections["data"]} if "data" in sections else {}))
            args = ["--config", str(config), *args]
        elif (name_of := option(args, "--pretrained")) and not (option(args, "--data") or option(args, "--config")):
            raise _nameless_data(name_of)
        elif name_of is None and not {"-h", "--help", "--config"} & {arg.partition("=")[0] for arg in args}:
            raise _no_model()
        run_options(command, name, args)


def run_options(command: Callable[..., None], name: str, args: Sequence[str]) -> None:
    """Parse the options of a function, and call it.

    Args:
        command: The function.
        name: Of the subcommand.
        args: Its options.

    Raises:
        FLDDError: For mistakes in what the options make.
        SystemExit: For options that cannot be parsed, and for help.
    """
    prog = f"fldd-lightning {name}"
    with mistakes_first():
        auto_cli(command, args=list(args), as_positional=False, prog=prog, parser_class=OptionParser)


def checkpoint_sections(path: str, args: Sequence[str]) -> dict[str, Any]:
    """The sections ``model`` and ``data`` of a checkpoint, for the parser.

    Where another source is given, by ``--data.path`` or ``--data.name``, none of the checkpoint's is left.

    Args:
        path: The checkpoint.
        args: The options beside it, which must name the data if the checkpoint does not.

    Raises:
        FLDDError: If nothing names the data, or as :func:`fldd_lightning.checkpoint.checkpoint_config`.
    """
    sections = checkpoint_config(path)
    if "data" not in sections and option(args, "--data") is None:
        raise _nameless_data(path)
    if "data" in sections and any(option(args, f"--data.{name}") is not None for name in ("path", "name")):
        kept = {name: value for name, value in sections["data"]["init_args"].items() if name not in _SOURCES}
        return {**sections, "data": {**sections["data"], "init_args": kept}}
    return sections


def chosen_model(ckpt_path: str | None, pretrained: str | None, device: str) -> FLDD:
    """The model of a checkpoint or of a pretrained model's folder.

    Args:
        ckpt_path: The checkpoint.
        pretrained: As for :func:`fldd_lightning.pretrained.find_folder`.
        device: Where the model goes.

    Raises:
        FLDDError: Unless one of both is given and can be loaded.
    """
    if (ckpt_path is None) == (pretrained is None):
        raise _no_model()
    if ckpt_path is not None:
        return load_model(ckpt_path, device)
    model: FLDD = FLDD.from_pretrained(str(pretrained), map_location=device)
    return model


def _no_model() -> FLDDError:
    return FLDDError(
        "give a model: --ckpt_path FILE for a checkpoint, or --pretrained NAME for a trained model "
        f"({', '.join(shipped())}, a folder, or OWNER/NAME on the Hugging Face hub); one of both."
    )


def _nameless_data(model: str) -> FLDDError:
    return FLDDError(f"'{model}' does not name its data: add --data CLASS, such as --data DigitsDataModule.")


def know_classes() -> None:
    """Import all public classes: the parser knows them by their short names from then on."""
    for name in fldd_lightning.__all__:
        getattr(fldd_lightning, name)


def option(args: Sequence[str], name: str) -> str | None:
    """The value of an option, None where it is not given."""
    for i, arg in enumerate(args):
        if arg == name and i + 1 < len(args):
            return args[i + 1]
        if arg.startswith(name + "="):
            return arg.split("=", 1)[1]
    return None


def check_device(device: str) -> None:
    """Raise FLDDError for a device that is not here."""
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise FLDDError(f"device is '{device}', but there is no CUDA device here. Use --device cpu.")
    try:
        torch.zeros(1, device=device).item()
    except Exception as error:  # each kind of device has its own
        known = "cpu, cuda, cuda:1 or mps"
        raise FLDDError(f"device is '{device}', which cannot be used here. Devices are called {known}.") from error


def check_new(path: Path) -> None:
    """Raise FLDDError unless a file can be written here and replaces none; before the work, so that none is lost."""
    check_free(path)
    check_output(path)


def check_free(*paths: Path) -> None:
    """Raise FLDDError if there is a file already."""
    for path in paths:
        if path.exists():
            raise FLDDError(f"'{path}' is there already. Give another --output, or move it away.")


def check_output(path: Path) -> None:
    """Raise FLDDError unless a file can be written here; its folder is made."""
    if not path.name:
        raise FLDDError(f"'{path}' is no name of a file. Give another --output.")
    check_folder(path.parent, "Give another --output.")


def write_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    try:
        with replacing(path) as file:
            file.write(text.encode())
    except OSError as error:
        raise FLDDError(f"cannot write '{path}': {error}. Give another --output.") from error
