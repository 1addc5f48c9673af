"""What jsonargparse says of wrong values, in plain words."""

from __future__ import annotations

import re

__all__ = ["NO_CLASS", "WRONG_TYPE", "in_words", "wants_list"]

WRONG_TYPE = re.compile(r"Expected a <class '([\w.]+)'>\. Got value: (.*)", re.DOTALL)
NO_CLASS = re.compile(r"Expected (?:a dot import path string:|an import path or a subclass spec, but got) ([^\n]*)")
_LISTS = ("list", "collections.abc.Sequence")
_TYPES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a text",
    "dict": "a mapping, such as {name: 1}",
    "collections.abc.Mapping": "a mapping, such as {name: 1}",
}


def wants_list(said: str) -> bool:
    """Whether it is said that a value should have been a list."""
    found = WRONG_TYPE.match(said)
    return found is not None and found[1] in _LISTS


def in_words(said: str) -> str:
    """What is said of a value of a wrong type or of an unknown class, without Python's names for them."""
    if unknown := NO_CLASS.match(said):
        return f"there is no class {unknown[1]}" if unknown[1][:1].isalpha() else f"expected a class, not {unknown[1]}"
    found = WRONG_TYPE.match(said)
    if found is None:
        return said
    kind, value = found[1], found[2]
    if wants_list(said):
        return f"expected a list, not {value}" + ("" if value.startswith("{") else f": write [{value}]")
    return f"expected {_TYPES[kind]}, not {value}" if kind in _TYPES else said
