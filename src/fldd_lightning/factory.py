"""Recipes for submodules: classes, partials or plain ``class_path`` dictionaries, told apart in one place."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn

from .errors import FLDDError

__all__ = ["build", "describe", "import_class", "plain"]

T = TypeVar("T")


def import_class(path: str) -> Any:
    """Import ``package.module.Name``.

    Raises:
        FLDDError: If it does not exist.
    """
    module, _, name = path.rpartition(".")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise FLDDError(
            f"cannot import '{path}': {error}. Install or rename what it refers to; "
            "a class of your own is found from the folder that holds its file."
        ) from error


def build(factory: Any, base: type[T], *args: Any) -> T:
    """Make an object from a recipe: call it, or follow its ``class_path`` and ``init_args``."""
    made = (_resolve(factory) if isinstance(factory, dict) else factory)(*args)
    if not isinstance(made, base):
        raise FLDDError(f"{type(made).__name__} is not a {base.__name__}. Subclass fldd_lightning.{base.__name__}.")
    return made


def plain(value: Any, recipe: Callable[[Any], Any] = lambda value: value) -> Any:
    """Paths and numpy's numbers as Python's own, also inside dictionaries, lists and tuples.

    Args:
        value: Anything.
        recipe: What becomes of all else.
    """
    if isinstance(value, dict):
        return {key: plain(item, recipe) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [plain(item, recipe) for item in value]
        return items if isinstance(value, list) else tuple(items)
    if isinstance(value, Path):
        return str(value)
    return value.tolist() if isinstance(value, (np.generic, np.ndarray)) else recipe(value)


def describe(factory: Any) -> Any:
    """The plain form of a recipe, for checkpoints that load with ``weights_only=True``.

    Args:
        factory: A class or function, a ``functools.partial`` of one with keyword arguments, or any
            value; also inside dictionaries, lists and tuples.

    Returns:
        ``{"class_path": ..., "init_args": {...}}`` for classes, functions and partials of them; else
        what :func:`plain` makes of it.

    Raises:
        FLDDError: If a partial has positional arguments, or what it is about cannot be imported by its name.
    """
    return plain(factory, _recipe)


def _recipe(factory: Any) -> Any:
    if isinstance(factory, partial):
        made, args = factory.func, factory.args
        if args and isinstance(args[-1], type) and made.__module__.startswith("jsonargparse"):
            made, args = args[-1], ()  # out of a checkpoint that the command line wrote
        if args:
            raise FLDDError("use keyword arguments in functools.partial, so that checkpoints can name them.")
        return {**_recipe(made), "init_args": describe(factory.keywords)}
    if not callable(factory):
        return factory
    home, name = getattr(factory, "__module__", None) or "torch", getattr(factory, "__name__", "")
    if getattr(sys.modules.get(home), name, None) is not factory:
        raise FLDDError(
            f"{factory!r} cannot be imported by its name, so that no checkpoint could say what it was made of. Give a "
            "class or function from the top level of a file; functools.partial sets options."
        )
    if home == "__main__":
        rank_zero_warn(
            f"{name} is defined in the script itself: checkpoints can be loaded there alone. Move it to a file of its "
            "own and import it."
        )
    return {"class_path": f"{home}.{name}"}


def _resolve(value: Any) -> Any:
    """Recipes in place of their plain form, also inside dictionaries, lists and tuples."""
    if isinstance(value, dict) and "class_path" in value:
        made = import_class(value["class_path"])
        return partial(made, **_resolve(value["init_args"])) if value.get("init_args") else made
    if isinstance(value, dict):
        return {key: _resolve(item) for key, item in value.items()}
    return type(value)(map(_resolve, value)) if isinstance(value, (list, tuple)) else value
