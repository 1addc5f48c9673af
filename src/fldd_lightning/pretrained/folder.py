"""A trained model as a folder, here or on the Hugging Face hub.

``config.json`` says what a checkpoint says (:mod:`fldd_lightning.checkpoint`), and goes through the same checks.
``model.safetensors`` holds the averaged weights. ``README.md`` is the model card.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from huggingface_hub import snapshot_download
from lightning.pytorch.utilities import rank_zero_warn
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from ..checkpoint import check_about, module_of
from ..checkpoint_file import check_folder
from ..data.hub import hub_error
from ..errors import FLDDError
from ..evaluation import check_weights
from ..factory import Trusted, plain
from ..files import replacing
from ..training import averaged_state

if TYPE_CHECKING:
    import torch

    from ..module import FLDD

__all__ = [
    "CONFIG",
    "WEIGHTS",
    "check_own",
    "find_folder",
    "load_pretrained",
    "read_folder",
    "shipped",
    "write_folder",
    "writing_to_hub",
]

CONFIG, WEIGHTS = "config.json", "model.safetensors"
_HERE = Path(__file__).parent

M = TypeVar("M", bound="FLDD")


def shipped() -> list[str]:
    """Names of the models that come with this package."""
    return sorted(path.parent.name for path in _HERE.glob(f"*/{CONFIG}"))


def write_folder(module: FLDD, folder: Path) -> None:
    """Write configuration and averaged weights, each file whole or not at all.

    Args:
        module: The model; it may be in training.
        folder: Where to write. It is made if it is not there.

    Raises:
        FLDDError: If an option is something that JSON does not have, a weight is not finite, or the folder cannot be
            written to.
    """
    check_weights(module)
    about: dict[str, Any] = {}
    module.on_save_checkpoint(about)
    about["global_step"] = module.global_step or module.trained_steps
    made_by = {"library_name": "fldd-lightning", "library_version": version("fldd-lightning")}
    weights = {name: value.detach().cpu().contiguous().clone() for name, value in averaged_state(module).items()}
    written, card = save(weights, {"format": "pt"}), folder / "README.md"
    if card.exists() and (folder / WEIGHTS).exists() and (folder / WEIGHTS).read_bytes() != written:
        rank_zero_warn(f"'{card}' is of the model before, and is kept. Delete it to have one of this model.")
    try:
        with replacing(folder / WEIGHTS) as file:
            file.write(written)
        with replacing(folder / CONFIG) as file:
            file.write(_as_json({**made_by, **about}).encode())
    except OSError as error:
        raise FLDDError(f"cannot write to '{folder}': {error.strerror or error}. Choose another folder.") from error


@contextmanager
def writing_to_hub(name: str) -> Iterator[None]:
    """Say in one sentence why the hub did not take a model.

    Args:
        name: Of the model on the hub.

    Raises:
        FLDDError: If it did not.
    """
    try:
        yield
    except (FLDDError, TypeError):  # an option that is none
        raise
    except Exception as error:  # the hub's library raises many kinds
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise FLDDError(
            f"cannot write '{name}' to the hub: {reason}. Log in with 'hf auth login', or give token. A name is "
            "OWNER/NAME, and the network must be there (HF_HUB_OFFLINE not set)."
        ) from error


def check_own(folder: Path) -> None:
    """Refuse to write over what is not a model of this package.

    Raises:
        FLDDError: If there is a file in place of the folder, a configuration of something else in it, or no file can
            be written there.
    """
    if folder == Path() or "\0" in str(folder):
        raise FLDDError(f"'{folder}' is no folder to save a model in. Give one of its own.")
    if folder.exists() and not folder.is_dir():
        raise FLDDError(f"'{folder}' is a file. Give a folder to save the model in.")
    check_folder(folder, "Choose another folder.")
    config = folder / CONFIG
    if config.exists():
        try:
            check_about(_parsed(config), f"'{config}'")
        except FLDDError as error:
            raise FLDDError(f"'{config}' would be lost, and is of something else. Give another folder.") from error


def find_folder(name: str | Path, **hub: Any) -> Path:
    """The folder of a model.

    Args:
        name: The name of a model that comes with this package (:func:`shipped`), else a folder, else ``OWNER/NAME`` on
            the hub, which is downloaded unless it is cached. Write ``./digits`` for a folder of that name.
        hub: Options of ``huggingface_hub.snapshot_download``, such as ``revision``.

    Raises:
        FLDDError: If there is nothing of that name, or it is neither reachable nor cached.
    """
    if str(name) in shipped():
        return _HERE / str(name)
    path = Path(name)
    if path.is_dir():
        return path
    instead = f"Give a folder, OWNER/NAME on the hub, or one of {', '.join(shipped())}."
    if path.exists():
        raise FLDDError(f"'{name}' is a file, no folder of a model. {instead} Checkpoints are given by --ckpt_path.")
    if isinstance(name, Path) or name.startswith((".", "/", "~")) or len(path.parts) != 2:
        raise FLDDError(f"there is no folder '{name}'. {instead}")
    try:
        return Path(snapshot_download(str(name), allow_patterns=[CONFIG, WEIGHTS, "README.md"], **hub))
    except Exception as error:  # the library raises many kinds
        raise hub_error(f"'{name}'", error, instead) from error


def read_folder(folder: Path) -> dict[str, Any]:
    """What is in a model's folder, as a checkpoint holds it: ``fldd``, ``state_dict`` and what subclasses add.

    Raises:
        FLDDError: If a file is missing or damaged, or the folder is of something else.
    """
    for file in (CONFIG, WEIGHTS):
        if not (folder / file).is_file():
            raise FLDDError(f"'{folder}' has no {file}: it is no model that save_pretrained wrote, or not all of it.")
    checkpoint = _parsed(folder / CONFIG)
    check_about(checkpoint, f"'{folder / CONFIG}'")
    try:
        weights = load_file(folder / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise FLDDError(f"'{folder / WEIGHTS}' cannot be read: {error}. Get it anew.") from error
    return {**checkpoint, "state_dict": weights}


def load_pretrained(
    cls: type[M],
    name: str | Path,
    map_location: torch.device | str | None = None,
    trusted: Iterable[Trusted] | Trusted = (),
    overrides: Mapping[str, Any] | None = None,
    **hub: Any,
) -> M:
    """The model of a folder, ready to sample; the work of ``FLDD.from_pretrained``.

    Args:
        cls: As for :func:`fldd_lightning.checkpoint.load_module`.
        name: As for :func:`find_folder`.
        map_location: Where the module goes; None for the CPU.
        trusted: Further classes that the configuration may name; see docs/security.md.
        overrides: Options that replace those of the configuration.
        hub: As for :func:`find_folder`.

    Raises:
        FLDDError: As :func:`find_folder` and :func:`read_folder`, or if it names a class that is not trusted.
    """
    checkpoint = read_folder(find_folder(name, **hub))
    return module_of(checkpoint, cls, map_location, trusted, overrides).eval()


# ---- internals ----------------------------------------------------------------------------


def _parsed(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise FLDDError(f"'{path}' cannot be read: {error}. Get it anew.") from error


def _as_json(about: dict[str, Any]) -> str:
    """Plain data as JSON that reads back as it was, but for tuples, which become lists."""
    try:
        text = json.dumps(about, indent=2)
    except (TypeError, ValueError) as error:
        raise FLDDError(f"the model cannot be described in JSON: {error}. Save a checkpoint instead.") from error
    if repr(json.loads(text)) != repr(_listed(about)):
        raise FLDDError("an option of the model has a mapping whose keys are no texts. Save a checkpoint instead.")
    return text + "\n"


def _listed(value: Any) -> Any:
    """Lists in place of tuples."""
    if isinstance(value, dict):
        return {key: _listed(item) for key, item in value.items()}
    return [_listed(item) for item in value] if isinstance(value, (list, tuple)) else plain(value)
