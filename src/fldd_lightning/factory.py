"""Recipes for submodules: classes, partials or plain ``class_path`` dictionaries, told apart in one place."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any, TypeVar

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
        factory: A class, a ``functools.partial`` of one with keyword arguments, a dictionary or
            any plain value.

    Returns:
        ``{"class_path": ..., "init_args": {...}}`` for classes and partials of classes; anything
        else unchanged.

    Raises:
        FLDDError: If a partial of a class has positional arguments.
    """
    if isinstance(factory, partial) and isinstance(factory.func, type):
        if factory.args:
            raise FLDDError("use keyword arguments in functools.partial, so that checkpoints can name them.")
        init_args = {key: describe(value) for key, value in factory.keywords.items()}
        return {**describe(factory.func), "init_args": init_args}
    if isinstance(factory, type):
        return {"class_path": f"{factory.__module__}.{factory.__qualname__}"}
    return factory


def _resolve(value: Any) -> Any:
    if isinstance(value, dict) and "class_path" in value:
        init_args = {key: _resolve(item) for key, item in (value.get("init_args") or {}).items()}
        return partial(import_class(value["class_path"]), **init_args)
    return value
