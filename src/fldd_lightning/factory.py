"""Recipes: what a module is told to build, and which classes a checkpoint may name.

A *recipe* is what an option such as ``denoiser`` takes. In Python it is a class, a function or a
``functools.partial``; :func:`build` calls it. In a checkpoint it is plain data,
``{"class_path": ..., "init_args": {...}}``, written by :func:`describe`.

A checkpoint may come from anyone. So its recipes stand for classes of this package alone, and for
those that the user names (:func:`trusting`), and only where such a class belongs. This is checked
for a whole recipe, nested ones included, before anything is imported or called.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

import fldd_lightning

from .allocation import check_size
from .errors import FLDDError
from .roles import Nobody, is_open, options, role

__all__ = [
    "build",
    "check_arguments",
    "class_paths",
    "describe",
    "import_class",
    "plain",
    "recipe_of",
    "resolve",
    "trusting",
]

T = TypeVar("T")
Trusted = type | Callable[..., Any] | str

_TRUSTED: ContextVar[tuple[Trusted, ...]] = ContextVar("fldd_trusted", default=())
_PACKAGE = fldd_lightning.__name__


@contextmanager
def trusting(trusted: Iterable[Trusted] | Trusted) -> Iterator[None]:
    """Let recipes out of checkpoints name further classes, for as long as the context lasts.

    Args:
        trusted: Classes or functions; or names of modules, as ``my_file``, which stand for all
            classes in them, or of single classes, as ``my_file.MyNetwork``.

    Raises:
        FLDDError: If it is given anything else.
    """
    single = isinstance(trusted, (str, type)) or not isinstance(trusted, Iterable)
    several: tuple[Any, ...] = (trusted,) if single else tuple(trusted)  # type: ignore[arg-type]
    for one in several:
        if not (isinstance(one, str) or hasattr(one, "__name__")):
            raise FLDDError(f"trusted takes classes, functions and names of modules or classes, not {one!r}.")
    token = _TRUSTED.set((*_TRUSTED.get(), *several))
    try:
        yield
    finally:
        _TRUSTED.reset(token)


def build(recipe: Callable[..., Any] | Mapping[str, Any], base: type[T], *args: Any) -> T:
    """Make an object from a recipe.

    Args:
        recipe: A class, function or partial, which is called as it is; or a recipe out of a
            checkpoint, which is checked first.
        base: What the object must be an instance of.
        *args: Given to it by position.

    Raises:
        FLDDError: If the recipe makes something else, or names a class that is not trusted.
    """
    if isinstance(recipe, base) or not (callable(recipe) or isinstance(recipe, Mapping)):
        raise FLDDError(
            f"a {base.__name__} is made from its class: give the class or functools.partial of it, "
            f"not {type(recipe).__name__ if isinstance(recipe, base) else repr(recipe)}."
        )
    maker = _checked(recipe, base) if isinstance(recipe, Mapping) else recipe
    cls = _made_by(maker)
    if isinstance(cls, type):
        if not issubclass(cls, base):
            raise _of_another_kind(base, cls, maker)
        try:
            check_arguments(maker, *args)
        except TypeError as error:
            raise FLDDError(f"{_article(base.__name__)} cannot be made from {_name(maker)}: {error}.") from error
    check_size(maker, getattr(cls, "__module__", "").partition(".")[0] == __package__, *args)
    made = maker(*args)
    if not isinstance(made, base):
        raise _of_another_kind(base, type(made), maker)
    return made


def check_arguments(made: Any, *args: Any) -> None:
    """See that a class, or a partial of one, takes what it would be called with. Nothing is made.

    Raises:
        TypeError: If an argument is missing, or is one too many.
    """
    recipe = made if isinstance(made, partial) else partial(made)
    own = signature(recipe.func.__init__)  # that of the class may be of its __new__
    own.bind(None, *recipe.args, *args, **recipe.keywords)


def plain(value: Any, other: Callable[[Any], Any] = lambda value: value) -> Any:
    """Paths and numpy's numbers as Python's own, also inside dictionaries, lists and tuples.

    Args:
        value: Anything.
        other: What becomes of all else.
    """
    if isinstance(value, dict):
        return {key: plain(item, other) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [plain(item, other) for item in value]
        return items if isinstance(value, list) else tuple(items)
    if isinstance(value, Path):
        return str(value)
    return value.tolist() if isinstance(value, (np.generic, np.ndarray)) else other(value)


def describe(recipe: Any) -> Any:
    """The plain form of a recipe, for checkpoints that load with ``weights_only=True``.

    Args:
        recipe: A class or function, a ``functools.partial`` of one with keyword arguments, or any
            value; also inside dictionaries, lists and tuples.

    Returns:
        ``{"class_path": ..., "init_args": {...}}`` for classes, functions and partials of them; else
        what :func:`plain` makes of it.

    Raises:
        FLDDError: If a partial has positional arguments, or what it is about cannot be imported by its name.
    """
    return plain(recipe, _described)


def class_paths(value: Any) -> Iterator[str]:
    """All paths of classes and functions in plain data, as :func:`describe` writes them."""
    if isinstance(value, dict):
        for key, item in value.items():
            if key in ("class", "class_path") and isinstance(item, str):
                yield item
            else:
                yield from class_paths(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from class_paths(item)


def resolve(value: Any, annotation: Any, where: str = "") -> Any:
    """A setting out of a checkpoint, with classes in place of their names. Nothing is called.

    Args:
        value: Plain data.
        annotation: Of the option that it is for. It says which classes belong there.
        where: The option's name, for messages.

    Raises:
        FLDDError: If it names a class that is not trusted or does not belong there, or holds anything
            that no checkpoint of this package holds.
    """
    base = role(annotation)
    if isinstance(value, (list, tuple)):
        return type(value)(resolve(item, annotation, where) for item in value)
    if isinstance(value, dict) and base is None and "class_path" not in value:
        for key in value:
            if type(key) not in (str, int) or "." in str(key) or key == "init_args":
                raise FLDDError(f"the checkpoint's {where} has an entry {key!r}, which no setting has.")
        return {key: resolve(item, annotation, where) for key, item in value.items()}
    if isinstance(value, dict) or (isinstance(value, str) and base is not None):
        return _checked(value, base or Nobody, where)
    if type(value) not in (int, float, bool, str, type(None)):
        raise FLDDError(f"the checkpoint's {where} is a {type(value).__name__}, which no setting is.")
    if type(value) is str and is_open(annotation) and not _is_word(value):
        raise FLDDError(f"the checkpoint's {where} is {value!r}; an option without a type takes words and numbers.")
    return value


def recipe_of(made: Any, settings: Mapping[str, Any]) -> partial[Any]:
    """A class or function with settings out of a checkpoint, each of them checked by :func:`resolve`."""
    annotations = options(made)
    for name in settings:
        if name not in annotations:
            raise FLDDError(f"the checkpoint gives {_name(made)} an option '{name}', which it does not have.")
    return partial(made, **{name: resolve(value, annotations[name], name) for name, value in settings.items()})


def import_class(path: str) -> Any:
    """Import ``package.module.Name``. Never with a name out of a checkpoint: :func:`resolve` is for those.

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


# ---- internals ----------------------------------------------------------------------------


def _checked(recipe: Mapping[str, Any] | str, base: type, where: str = "") -> Any:
    """What a recipe out of a checkpoint stands for: a class, or a partial of one."""
    recipe = {"class_path": recipe} if isinstance(recipe, str) else recipe
    path, settings = recipe.get("class_path"), recipe.get("init_args") or {}
    if not isinstance(path, str) or not isinstance(settings, dict) or set(recipe) - {"class_path", "init_args"}:
        raise FLDDError(f"the checkpoint's {where or 'settings'} have the wrong form: {str(recipe)[:80]}.")
    found = _found(path, base, where)
    return recipe_of(found, settings) if settings else found


def _found(path: str, base: type, where: str) -> Any:
    """The class that a checkpoint names, if it is trusted and belongs there."""
    found, named = None, False  # named: the user has named this very class or function, not its module
    package, _, name = path.rpartition(".")
    for trusted in _TRUSTED.get():
        if isinstance(trusted, str):
            if path == trusted or path.startswith(trusted + "."):
                found, named = import_class(path), path == trusted
        elif path in (public_path(trusted), f"{trusted.__module__}.{trusted.__name__}"):
            found, named = trusted, True
    if found is None and package.partition(".")[0] == _PACKAGE and name in fldd_lightning.__all__:
        found = getattr(fldd_lightning, name)
    said = f"the checkpoint names '{path}'{f' as its {where}' if where else ''}"
    if found is None and package == "__main__":
        raise FLDDError(
            f"{said}, which is defined in the script that wrote the checkpoint, and cannot be found elsewhere. Load it "
            f"in that script with trusted=[{name}]; or put {name} into a file, import it there, and save it anew."
        )
    if found is None and package.partition(".")[0] in (*sys.stdlib_module_names, ""):
        raise FLDDError(f"{said}, which is no part of a model. Such a file is damaged or meant to do harm.")
    if found is None:
        raise FLDDError(
            f"{said}, which is no class of fldd-lightning. A checkpoint may come from anyone, so its classes run only "
            f"if you name them. If you know this one, give trusted=[{name}] in Python or --trust {path} on the "
            "command line."
        )
    if isinstance(found, type) and issubclass(found, base):
        return found
    if named and callable(found) and not isinstance(found, type) and base is not Nobody:
        return found  # a function: build looks at what it makes
    wanted = "no class" if base is Nobody else f"a {base.__name__}"
    if callable(found) and not isinstance(found, type) and not named and base is not Nobody:
        raise FLDDError(f"{said}, which is a function. Functions are trusted one by one: --trust {path}.")
    raise FLDDError(f"{said}, where {wanted} belongs.")


def _is_word(text: str) -> bool:
    """Whether no parser could take a text for a mapping or for a file."""
    return all(c.isalnum() or c in "_.+- " for c in text) and not os.path.lexists(text)


def public_path(made: Any) -> str:
    """The name that checkpoints have for a class: the shortest that this package offers."""
    name = made.__name__
    if name in fldd_lightning.__all__ and getattr(fldd_lightning, name) is made:
        return f"{_PACKAGE}.{name}"
    return f"{getattr(made, '__module__', None) or 'torch'}.{name}"


def _of_another_kind(base: type, found: type, maker: Any) -> FLDDError:
    """What to raise where a recipe makes something else than is needed."""
    what = f"{_article(base.__name__)} is needed here"
    return FLDDError(f"{what}, but this makes a {found.__name__}: {_name(maker)}.")


def _article(name: str) -> str:
    return f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"


def _name(made: Any) -> str:
    made = _made_by(made)
    return str(getattr(made, "__qualname__", made))


def _made_by(recipe: Any) -> Any:
    """What a recipe calls: a class or a function."""
    if not isinstance(recipe, partial):
        return recipe
    args, made = recipe.args, recipe.func
    by_command_line = args and isinstance(args[-1], type) and getattr(made, "__module__", "").startswith("jsonargparse")
    return args[-1] if by_command_line else made


def _described(recipe: Any) -> Any:
    if isinstance(recipe, partial):
        made = _made_by(recipe)
        if recipe.args and made is recipe.func:
            raise FLDDError("use keyword arguments in functools.partial, so that checkpoints can name them.")
        return {**_described(made), "init_args": describe(recipe.keywords)}
    if not callable(recipe):
        return recipe
    home, name = getattr(recipe, "__module__", None) or "torch", getattr(recipe, "__name__", "")
    if getattr(sys.modules.get(home), name, None) is not recipe:
        raise FLDDError(
            f"{recipe!r} cannot be imported by its name, so that no checkpoint could say what it was made of. Give a "
            "class or function from the top level of a file; functools.partial sets options."
        )
    return {"class_path": public_path(recipe)}
