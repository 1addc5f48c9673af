"""Recipes for submodules: classes, partials or plain ``class_path`` dictionaries, told apart in one place."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from inspect import isroutine
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn

from .errors import FLDDError

__all__ = ["build", "describe", "import_class"]

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


def build(factory: Callable[..., T] | dict[str, Any], *args: Any) -> T:
    """Make an object from a recipe: call it, or follow its ``class_path`` and ``init_args``."""
    if not isinstance(factory, dict):
        return factory(*args)
    return _resolve(factory)(*args)  # type: ignore[no-any-return]


def describe(factory: Any) -> Any:
    """The plain form of a recipe, for checkpoints that load with ``weights_only=True``.

    Args:
        factory: A class or function, a ``functools.partial`` of one with keyword arguments, a
            dictionary, list or any plain value.

    Returns:
        ``{"class_path": ..., "init_args": {...}}`` for classes, functions and partials of them; paths and
        numpy's numbers as Python's own strings and numbers; anything else unchanged.

    Raises:
        FLDDError: If a partial has positional arguments, or what it is about cannot be imported by its name.
    """
    if isinstance(factory, partial):
        made, args = factory.func, factory.args
        if args and isinstance(args[-1], type) and made.__module__.startswith("jsonargparse"):
            made, args = args[-1], ()  # out of a checkpoint that the command line wrote
        if args:
            raise FLDDError("use keyword arguments in functools.partial, so that checkpoints can name them.")
        return {**describe(made), "init_args": describe(factory.keywords)}
    if isinstance(factory, type) or isroutine(factory):
        if not factory.__qualname__.isidentifier():
            raise FLDDError(
                f"'{factory.__qualname__}' cannot be found by its name, so that no checkpoint could say what it was "
                "made of. Define a class or function at the top level of a file; functools.partial sets options."
            )
        if factory.__module__ == "__main__":
            rank_zero_warn(
                f"{factory.__qualname__} is defined in the script itself: checkpoints can be loaded there alone. Move "
                "it to a file of its own and import it."
            )
        return {"class_path": f"{factory.__module__}.{factory.__qualname__}"}
    if isinstance(factory, dict):
        return {key: describe(value) for key, value in factory.items()}
    if isinstance(factory, (list, tuple)):
        return type(factory)(describe(value) for value in factory)
    if isinstance(factory, Path):
        return str(factory)
    return factory.item() if isinstance(factory, np.generic) else factory


def _resolve(value: Any) -> Any:
    if isinstance(value, dict) and "class_path" in value:
        init_args = {key: _resolve(item) for key, item in (value.get("init_args") or {}).items()}
        return partial(import_class(value["class_path"]), **init_args)
    return value
