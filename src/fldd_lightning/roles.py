"""Which class belongs in an option, read off its annotation."""

from __future__ import annotations

import collections.abc
import inspect
import os
import sys
import types
from enum import Enum
from typing import Any, Literal, Union, get_args, get_origin

__all__ = ["Nobody", "is_open", "options", "role"]

_VALUES = (str, bytes, int, float, complex, bool, type(None), object)
_CONTAINERS = (list, tuple, set, frozenset, dict, collections.abc.Sequence, collections.abc.Iterable)
_MAPPINGS = (collections.abc.Mapping, collections.abc.MutableMapping, collections.abc.Collection)


class Nobody:
    """The role of an option that no class may fill."""


def role(annotation: Any) -> type | None:
    """The class that whatever stands in an option must be, or make.

    ``Callable[..., X]``, ``type[X]`` and ``X`` itself give X, also within unions and sequences. Plain
    values (numbers, texts, paths, literals) and containers of them give None.
    """
    origin, args = get_origin(annotation), get_args(annotation)
    if annotation in (collections.abc.Callable, type) or origin in (collections.abc.Callable, type):
        return role(args[-1]) or Nobody if args else Nobody
    if origin is Literal:
        return None
    if origin is not None:
        found = (role(arg) for arg in args if arg is not Ellipsis)
        return next((base for base in found if base is not None), None)
    if not isinstance(annotation, type) or annotation in (Any, inspect.Parameter.empty):
        return None
    is_value = annotation in _VALUES or issubclass(annotation, (os.PathLike, Enum))
    return None if is_value or annotation in (*_CONTAINERS, *_MAPPINGS) else annotation


def is_open(annotation: Any) -> bool:
    """Whether an option takes anything, so that a parser might look for a class in it."""
    if get_origin(annotation) is Literal:
        return False
    if get_origin(annotation) in (Union, types.UnionType) or get_args(annotation):
        return any(is_open(arg) for arg in get_args(annotation) if arg is not Ellipsis)
    if not isinstance(annotation, type) or annotation in (Any, inspect.Parameter.empty, object):
        return annotation is not None
    return annotation in (*_CONTAINERS, *_MAPPINGS)


def options(made: Any) -> dict[str, Any]:
    """The options of a class or function with their annotations.

    Those that a class hands on as ``**kwargs`` are its parents'.
    """
    if not isinstance(made, type):
        return _parameters(made)
    found: dict[str, Any] = {}
    for base in made.__mro__:
        if "__init__" in vars(base) and base.__module__.partition(".")[0] not in ("torch", "lightning", "builtins"):
            found = {**_parameters(vars(base)["__init__"], skip=1), **found}
    return found


def _parameters(function: Any, skip: int = 0) -> dict[str, Any]:
    try:
        parameters = list(inspect.signature(function).parameters.values())[skip:]
    except (TypeError, ValueError):
        return {}
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {p.name: _evaluated(p.annotation, function) for p in parameters if p.kind not in variadic}


def _evaluated(annotation: Any, function: Any) -> Any:
    """An annotation that ``from __future__ import annotations`` has left as text; empty if that cannot be told."""
    if not isinstance(annotation, str):
        return annotation
    try:
        return eval(annotation, vars(sys.modules[function.__module__]))
    except Exception:  # names that are imported for type checkers only
        return inspect.Parameter.empty
