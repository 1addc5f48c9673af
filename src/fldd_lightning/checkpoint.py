"""Reading checkpoints, which may come from anyone: nothing in them is run or unpickled.

A checkpoint says of its model, under the key ``fldd``: ``version``; ``class``, the module's; ``settings``,
its options as plain data (:func:`fldd_lightning.factory.describe`); ``identity``, what a model must
agree on to load it; ``vocabulary``. What Lightning writes beside it (``hyper_parameters`` with
``_instantiator`` and ``_class_path``) is not read. docs/security.md says who may name a class where.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from os import PathLike
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

import fldd_lightning

from .checkpoint_file import damaged, is_damaged, newest_good
from .errors import FLDDError
from .factory import Trusted, check_arguments, class_paths, describe, plain, public_path, recipe_of, resolve, trusting
from .ranges import check_kinds

if TYPE_CHECKING:
    from .data import DiscreteDataModule
    from .module import FLDD

__all__ = [
    "OF_DATA",
    "VERSION",
    "about_model",
    "check_about",
    "check_same",
    "checkpoint_config",
    "load_data",
    "load_model",
    "load_module",
    "module_of",
    "read_checkpoint",
    "same_vocabulary",
]

VERSION = 2  # of what stands under "fldd"
OF_DATA = ("num_classes", "shape", "padded", "num_values", "condition_sizes")  # options of a model that its data say
_WRITTEN = ("cache_dir",)  # where data modules write is for whoever opens the checkpoint to say

M = TypeVar("M", bound="FLDD")
D = TypeVar("D", bound="DiscreteDataModule")


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """What is in a checkpoint. Weights stay on disk until they are used.

    Raises:
        FLDDError: If the file is missing, cannot be read without unpickling, or is not a checkpoint of this package.
    """
    if not Path(path).is_file():
        raise FLDDError(f"no checkpoint at '{path}'. 'fit' writes them under lightning_logs/*/checkpoints/.")
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # whatever bytes of another kind lead to
        if is_damaged(path):
            raise damaged(path) from error
        if isinstance(error, OSError):
            raise FLDDError(f"cannot read '{path}': {error}.") from error
        raise FLDDError(
            f"cannot read '{path}': it is no checkpoint, a damaged one, or holds objects beside weights and plain "
            f"settings, which are not unpickled. {newest_good(path)} FLDD_TRACEBACK=1 shows the cause."
        ) from error
    check_about(checkpoint, f"'{path}'")
    return checkpoint


def load_module(
    cls: type[M],
    path: str | Path,
    map_location: torch.device | str | None = None,
    trusted: Iterable[Trusted] | Trusted = (),
    overrides: Mapping[str, Any] | None = None,
) -> M:
    """Build the module of a checkpoint and load its weights; the work of ``FLDD.load_from_checkpoint``.

    Args:
        cls: A class of this package, for the checkpoint's own class if it is a subclass of it; or a class
            of the caller's, which is taken whatever the checkpoint says.
        path: The checkpoint.
        map_location: Where the module goes; None for the CPU.
        trusted: Further classes that the checkpoint may name; see :func:`fldd_lightning.factory.trusting`.
        overrides: Options that replace those of the checkpoint.

    Raises:
        FLDDError: If it cannot be read, names a class that is not trusted, or is of another class.
    """
    overrides = dict(overrides or {})
    return module_of(_read(path, overrides), cls, map_location, trusted, overrides)


def module_of(
    checkpoint: dict[str, Any],
    cls: type[M],
    map_location: torch.device | str | None = None,
    trusted: Iterable[Trusted] | Trusted = (),
    overrides: Mapping[str, Any] | None = None,
) -> M:
    """The module of a checkpoint as :func:`read_checkpoint` returns it; for all else see :func:`load_module`."""
    with trusting(trusted), trusting(cls):
        recipe = _recipe(checkpoint, cls)
        settings = {**recipe.keywords, **(overrides or {})}
        try:
            if isinstance(recipe.func, type):
                check_arguments(partial(recipe.func, **settings))
        except TypeError as error:
            said = f"the checkpoint does not say what its model needs: {error}. It is damaged."
            if overrides:
                said = f"{recipe.func.__name__} cannot be made with {', '.join(overrides)}: {error}. Leave that out."
            raise FLDDError(said) from error
        module: M = recipe.func(**settings)
        module.on_load_checkpoint(checkpoint)
    weights = checkpoint.get("state_dict")
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise FLDDError("the checkpoint has no weights: it is damaged. Give one that 'fit' wrote.")
    if all(name in weights and weights[name].dtype == torch.float64 for name, _ in module.named_parameters()):
        module.double()
    module.load_state_dict(weights)
    try:
        return module if map_location is None else module.to(torch.device(map_location))
    except (AssertionError, RuntimeError, TypeError) as error:  # the first where torch was built without the device
        first = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise FLDDError(f"map_location is {map_location!r}, no device that can be used: {first}. Try 'cpu'.") from error


def load_data(
    cls: type[D],
    path: str | Path,
    trusted: Iterable[Trusted] | Trusted = (),
    overrides: Mapping[str, Any] | None = None,
) -> D:
    """Make the data module that the command line trained with; the work of its ``load_from_checkpoint``.

    Args:
        cls: As for :func:`load_module`.
        path: The checkpoint.
        trusted: As for :func:`load_module`.
        overrides: Options that replace those of the checkpoint.

    Raises:
        FLDDError: As :func:`load_module`, or if the checkpoint was made in Python, where it does not know its data.
    """
    overrides = dict(overrides or {})
    checkpoint = _read(path, overrides)
    with trusting(trusted), trusting(cls):
        recipe = _data_of(checkpoint, cls)
        if recipe is None:
            raise FLDDError(f"'{path}' does not say which data it was trained with. Make the data module yourself.")
        data: D = recipe.func(**{**recipe.keywords, **overrides})
    return data


def load_model(path: str | Path, device: torch.device | str = "cpu", trusted: Iterable[Trusted] | Trusted = ()) -> FLDD:
    """Load the module of a checkpoint, whichever subclass it is, with averaged weights, ready to sample.

    Args:
        path: The checkpoint.
        device: Where the module goes.
        trusted: Classes of your own that the checkpoint may name, such as ``[MyNetwork]``, or names of
            modules with them; see docs/security.md.

    Raises:
        FLDDError: If the file is missing, is not a checkpoint of this package, or names a class that is not trusted.
    """
    return load_module(fldd_lightning.FLDD, path, device, trusted).eval()


def checkpoint_config(path: str | Path, trusted: Iterable[Trusted] | Trusted = ()) -> dict[str, Any]:
    """The ``model`` and ``data`` sections a checkpoint was trained with, for the command line's parser.

    Every class in it has been checked, and each goes by the path that was checked.

    Raises:
        FLDDError: As :func:`load_model`.
    """
    checkpoint = read_checkpoint(path)
    with trusting(trusted):
        model = _for_parser(_recipe(checkpoint, fldd_lightning.FLDD))
        for name in OF_DATA:
            model["init_args"].pop(name, None)
        data = _data_of(checkpoint)
    return {"model": model} if data is None else {"model": model, "data": _for_parser(data)}


def about_model(module: FLDD) -> dict[str, Any]:
    """What a checkpoint says of its model, under the key ``fldd``; warns of classes that nobody else will find."""
    about = {
        "version": VERSION,
        "class": public_path(type(module)),
        "settings": {key: plain(value) for key, value in module.hparams.items() if not key.startswith("_")},
        "identity": _identity(module),
        "vocabulary": module.vocabulary,
    }
    own = sorted({path.rpartition(".")[2] for path in class_paths(about) if path.startswith("__main__.")})
    if own:
        names = ", ".join(own)
        rank_zero_warn(
            f"the checkpoint names what is defined in the script itself, and no other program will find it: {names}. "
            f"Put it into a file of its own, such as parts.py, and write 'from parts import {names}' in the script."
        )
    return about


def check_same(module: FLDD, checkpoint: Mapping[str, Any]) -> None:
    """Refuse a checkpoint of another configuration than a module's, naming what differs.

    Raises:
        FLDDError: If anything differs that weights depend on, or it is not a checkpoint of this version.
    """
    there, here = check_about(checkpoint, "this checkpoint")["identity"], _identity(module)
    if there.get("budgets") != here["budgets"]:  # which say more than the number of times
        here.pop("num_steps")
    differences = [f"{key}: {there.get(key)} there, {here[key]} here" for key in here if there.get(key) != here[key]]
    if differences:
        raise FLDDError(
            "the checkpoint is of another configuration (" + "; ".join(differences) + "). Leave out --config "
            "and the options that change it: a checkpoint knows its own. Or give what it was trained with."
            + _last_classes(module, there.get("num_classes"))
        )


def _last_classes(module: FLDD, num_classes: Any) -> str:
    """What to do if a module has fewer classes than the checkpoint, as its data lack the last ones."""
    option = getattr(getattr(module._trainer, "datamodule", None), "classes_option", None)
    if option is None or not isinstance(num_classes, int) or num_classes <= module.spec.num_classes:
        return ""
    return f" If your data merely lack the last of {num_classes} classes, set --data.{option} {num_classes}."


def same_vocabulary(mine: Sequence[str] | None, other: Sequence[str] | None) -> Sequence[str] | None:
    """What the integers of a model stand for, now that data or a checkpoint say it too; either may not know.

    Raises:
        FLDDError: If the two differ, naming where.
    """
    if other is None:
        return mine
    other = [str(name) for name in other]
    if mine is not None and mine != other:
        pairs = enumerate(zip(mine, other))
        first = next((f"; {i} is '{a}' and '{b}'" for i, (a, b) in pairs if a != b), "")
        raise FLDDError(
            f"data and checkpoint have different vocabularies ({len(other)} and {len(mine)} entries{first}). Use the "
            "data the model was trained with, or a file of the same tokens."
        )
    return other


def check_about(checkpoint: Any, name: str) -> dict[str, Any]:
    """What a checkpoint says of its model; raises FLDDError, with its ``name``, if that is not of this version."""
    if isinstance(checkpoint, Mapping) and "fldd_problem" in checkpoint:
        raise FLDDError(f"{name} is of fldd-lightning 0.1, whose models this version cannot build. Train it again.")
    about = checkpoint.get("fldd") if isinstance(checkpoint, Mapping) else None
    if not isinstance(about, dict):
        raise FLDDError(f"{name} is not a checkpoint written by fldd-lightning.")
    if about.get("version") != VERSION:
        raise FLDDError(f"{name} is of another version of fldd-lightning. Install the one that wrote it.")
    parts = {"class": str, "settings": dict, "identity": dict}
    if not all(isinstance(about.get(key), kind) for key, kind in parts.items()):
        raise FLDDError(f"{name} does not say which model it is: it is damaged. Give one that 'fit' wrote.")
    return about


def _read(path: str | Path, overrides: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint that is asked for as Lightning does; ``weights_only`` is taken out of the overrides."""
    check_kinds({"checkpoint_path": path}, checkpoint_path=str | PathLike)
    if not overrides.pop("weights_only", True):
        raise FLDDError("checkpoints are read with weights_only=True, so that none of them runs code. Leave it out.")
    if is_damaged(path):
        raise damaged(path)
    return read_checkpoint(path)


def _identity(module: FLDD) -> dict[str, Any]:
    return {
        "num_classes": module.spec.num_classes,
        "shape": list(module.spec.shape),
        "num_steps": module.spec.grid,
        "budgets": list(module.spec.budgets) or None,
        "padded": module.spec.padded,
        "num_values": None if module.spec.num_values is None else list(module.spec.num_values),
        "forward_process": module.forward_process.configuration(),
        "reverse": module.reverse.configuration(),
        "latents": [each.configuration() for each in module.latents],
    }


def _recipe(checkpoint: dict[str, Any], cls: type[FLDD]) -> partial[Any]:
    """The module of a checkpoint, ready to be called."""
    about = checkpoint["fldd"]
    return _chosen(cls, fldd_lightning.FLDD, about["class"], about["settings"], "model")


def _chosen(cls: type[Any], base: type[Any], path: Any, settings: dict[str, Any], where: str) -> partial[Any]:
    """A class with its settings: the caller's own, or the one a checkpoint names, if that is a subclass of ``cls``."""
    if cls is not base and _is_of_caller(cls):
        return recipe_of(cls, settings)
    found = resolve({"class_path": path}, base, where)
    if not issubclass(found, cls):
        raise FLDDError(
            f"the checkpoint holds a {found.__name__}, no {cls.__name__}. Use load_model for its model, and "
            "DiscreteDataModule.load_from_checkpoint for its data."
        )
    return recipe_of(found, settings)


def _is_of_caller(cls: type[Any]) -> bool:
    """Whether a class is none of this package's."""
    return public_path(cls) == f"{cls.__module__}.{cls.__name__}"


def _for_parser(made: Any) -> Any:
    """Like :func:`describe`, but functions by their name alone, as the parser takes them."""
    if isinstance(made, partial):
        return {"class_path": public_path(made.func), "init_args": plain(made.keywords, _for_parser)}
    return public_path(made) if isinstance(made, FunctionType) else describe(made)


def _data_of(checkpoint: dict[str, Any], cls: type[Any] = LightningDataModule) -> partial[Any] | None:
    """The data module, if a command line wrote the checkpoint, whose entry this is."""
    settings = checkpoint.get("datamodule_hyper_parameters")
    if not isinstance(settings, dict) or "_class_path" not in settings:
        return None
    left_out = ("_class_path", "_instantiator", *_WRITTEN)
    options = {key: value for key, value in settings.items() if key not in left_out}
    return _chosen(cls, LightningDataModule, settings["_class_path"], options, "data")
