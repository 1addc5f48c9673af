"""What an option may be, a number or something else, and the one error for what it may not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from math import inf
from numbers import Integral, Real
from os import PathLike
from textwrap import shorten
from types import NoneType
from typing import Any, get_args

from .errors import FLDDError

__all__ = [
    "ANY_SEED",
    "AT_LEAST_TWO",
    "BELOW_ONE",
    "BETWEEN",
    "COUNT",
    "NATURAL",
    "NOT_NEGATIVE",
    "POSITIVE",
    "SEED",
    "SHARE",
    "UP_TO_ONE",
    "Range",
    "check_kinds",
    "check_numbers",
]


@dataclass(frozen=True)
class Range:
    """Numbers that an option may be: finite ones, from ``least`` to ``most``.

    Attributes:
        least: The lowest of them.
        most: The highest of them.
        is_whole: Whether they are whole. ``2.0`` and ``True`` are no whole numbers.
        above: Whether ``least`` itself is not one of them.
        below: Whether ``most`` itself is not one of them.
        may_lack: Whether None will do.
    """

    least: float = -inf
    most: float = inf
    is_whole: bool = False
    above: bool = False
    below: bool = False
    may_lack: bool = False

    @property
    def or_none(self) -> Range:
        """The same, or None."""
        return replace(self, may_lack=True)

    def __contains__(self, value: object) -> bool:
        if value is None:
            return self.may_lack
        if isinstance(value, bool) or not isinstance(value, Integral if self.is_whole else Real):
            return False
        number = float(value)  # NaN compares as false
        after = self.least < number if self.above else self.least <= number
        before = number < self.most if self.below else number <= self.most
        return after and before and -inf < number < inf

    def __str__(self) -> str:
        kind = "a whole number" if self.is_whole else "a number"
        low = "above" if self.above else "from"
        if self.most < inf:
            most = _plain(self.most)
            end = f" and below {most}" if self.below else f", {most} at most" if self.above else f" to {most}"
            said = f"{kind} {low} {_plain(self.least)}{end}"
        elif self.least > -inf:
            said = f"{kind} above {_plain(self.least)}" if self.above else f"{kind}, {_plain(self.least)} or more"
        else:
            said = kind
        return f"{said}, or left out" if self.may_lack else said


COUNT = Range(1, is_whole=True)
AT_LEAST_TWO = Range(2, is_whole=True)
NATURAL = Range(0, is_whole=True)
SEED = Range(0, 2**32 - 1, is_whole=True)  # what all generators take
ANY_SEED = Range(0, 2**63 - 1, is_whole=True)  # what those of PyTorch take
POSITIVE = Range(0, above=True)
NOT_NEGATIVE = Range(0)
SHARE = Range(0, 1)
BELOW_ONE = Range(0, 1, below=True)
UP_TO_ONE = Range(0, 1, above=True)
BETWEEN = Range(0, 1, above=True, below=True)


def check_numbers(given: Mapping[str, Any], **ranges: Range) -> None:
    """Check options when an object is made, before anything is done with them.

    Args:
        given: Options by name; ``locals()`` at the start of an ``__init__``.
        ranges: Which numbers each may be.

    Raises:
        FLDDError: If one of them is no number, not finite, or out of its range.
    """
    for name, numbers in ranges.items():
        if given[name] not in numbers:
            raise _refusal(given, name, str(numbers))


def check_kinds(given: Mapping[str, Any], **kinds: Any) -> None:
    """The same for options that are no numbers.

    Args:
        given: Options by name.
        kinds: What each must be: a class, or several, as ``str | None``.

    Raises:
        FLDDError: If one of them is something else.
    """
    for name, kind in kinds.items():
        if not isinstance(given[name], kind):
            words = [_WORDS.get(each, f"a {each.__name__}") for each in get_args(kind) or (kind,)]
            raise _refusal(given, name, " or ".join(words))


_WORDS: dict[type, str] = {
    bool: "True or False", str: "a text", PathLike: "a path", Mapping: "a dictionary", NoneType: "left out",
    Iterable: "a list, or something else to go through",
}  # fmt: skip


def _refusal(given: Mapping[str, Any], name: str, allowed: str) -> FLDDError:
    owner = f" of {type(given['self']).__name__}" if "self" in given else ""
    return FLDDError(f"{name}{owner} is {shorten(repr(given[name]), 80)}, but it must be {allowed}.")


def _plain(number: float) -> str:
    return str(int(number)) if number == int(number) else str(number)
