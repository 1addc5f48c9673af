"""Columns of a table: the integer of each entry, and the entry that each integer stands for.

A checkpoint keeps them as JSON, which is plain data: names, categories and edges.
"""

from __future__ import annotations

import csv
import json
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal
from functools import cached_property
from io import StringIO
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from ..errors import FLDDError
from .entries import as_entry, as_number, distinct, finite, is_number, text_of

__all__ = ["Bins", "Categories", "Column", "Columns"]

_MASKED, _UNKNOWN = "·", "___"


class NoPlace(FLDDError):
    """A column has no integer for an entry.

    Args:
        reason: Why, in a sentence.
        advice: What to do where the entry is one of a whole row.
    """

    def __init__(self, reason: str, advice: str) -> None:
        super().__init__(f"{reason} {advice}")
        self.reason = reason


@dataclass(frozen=True)
class Column(ABC):
    """Base class. An entry is a text, or None where it is missing; integers are ``0..num_values-1``.

    Attributes:
        name: What the header calls it.
        missing: Whether entries were missing in training. That is a value of its own, the last.
    """

    name: str
    missing: bool

    @property
    @abstractmethod
    def num_present(self) -> int:
        """How many values there are beside the missing one."""

    @property
    def num_values(self) -> int:
        """How many values there are."""
        return self.num_present + self.missing

    def place(self, entry: str | None) -> int:
        """The integer of an entry; raises :class:`NoPlace`, naming column and entry, if training had none such."""
        if entry is None and not self.missing:
            raise NoPlace(f"column '{self.name}' lacks an entry, but in training none was missing.", "Fill it in.")
        return self.num_present if entry is None else self.place_of(entry)

    @abstractmethod
    def place_of(self, entry: str) -> int:
        """The integer of an entry that is not missing."""

    def entry(self, place: int) -> str:
        """What an integer stands for: nothing where the entry is missing, a dot at MASK."""
        if place >= self.num_present:
            return "" if place < self.num_values else _MASKED
        return self.entry_of(place)

    @abstractmethod
    def entry_of(self, place: int) -> str:
        """What an integer stands for that is not the missing one."""

    @abstractmethod
    def summary(self) -> str:
        """What there is in it, in words."""


@dataclass(frozen=True)
class Categories(Column):
    """A column of texts, or of few different numbers, each with an integer of its own.

    Attributes:
        categories: What there was in training, in order.
        are_numbers: Whether they are numbers, so that ``01`` and ``1.0`` are ``1``.
    """

    categories: tuple[str, ...]
    are_numbers: bool

    @property
    def num_present(self) -> int:
        return len(self.categories)

    @cached_property
    def _places(self) -> dict[str, int]:
        return {category: i for i, category in enumerate(self.categories)}

    def place(self, entry: str | None) -> int:
        return super().place(as_number(entry) if self.are_numbers else entry)

    def place_of(self, entry: str) -> int:
        if entry not in self._places:
            few = ", ".join(repr(each) for each in self.categories[:5])
            raise NoPlace(
                f"column '{self.name}' holds {entry!r}, which was not there in training: it had "
                f"{few or 'no entry'}{' and others' if len(self.categories) > 5 else ''}.",
                "Leave such rows out, or train on data that have it.",
            )
        return self._places[entry]

    def entry_of(self, place: int) -> str:
        return self.categories[place]

    def summary(self) -> str:
        return f"{self.num_values} {'categories' if self.num_values > 1 else 'category'}"


@dataclass(frozen=True)
class Bins(Column):
    """A column of numbers in bins that had about equally many rows of training; no number was in two of them.

    A number belongs to the last bin that starts at it or below, and to the first one if it is less than all.
    A bin comes back as its midpoint, which belongs to it.

    Attributes:
        low: The least number of training in each bin, ascending.
        high: The largest.
        whole: Whether all numbers were whole; midpoints then are, too.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    whole: bool

    @property
    def num_present(self) -> int:
        return len(self.low)

    def place(self, entry: str | None) -> int:
        return super().place(as_number(entry))

    def place_of(self, entry: str) -> int:
        if not is_number(entry):
            raise NoPlace(f"column '{self.name}' holds {entry!r}, but in training it held numbers.", "Correct it.")
        return max(0, bisect_right(self.low, float(entry)) - 1)

    def entry_of(self, place: int) -> str:
        low, high = (Decimal(repr(each[place])) for each in (self.low, self.high))  # as they are written
        middle = min(max((low + high) / 2, low), high)
        return text_of(round(middle) if self.whole else middle)

    def summary(self) -> str:
        return f"{self.num_present} bins{' and missing' if self.missing else ''}"


class Columns:
    """The columns of a table, in their order.

    Args:
        columns: One or more.
    """

    def __init__(self, columns: Sequence[Column]) -> None:
        self.columns = tuple(columns)

    @property
    def names(self) -> list[str]:
        """What the header calls them."""
        return [column.name for column in self.columns]

    @property
    def num_values(self) -> list[int]:
        """How many values each has."""
        return [column.num_values for column in self.columns]

    def encode(self, table: pa.Table) -> Tensor:
        """Integers ``(N, D)`` of a table's rows; its other columns are left out.

        Raises:
            FLDDError: If a column is missing, or an entry has no integer.
        """
        missing = [name for name in self.names if name not in table.column_names]
        if missing:
            raise FLDDError(f"the table has no column '{missing[0]}', only {', '.join(table.column_names)}.")
        largest = max(self.num_values)
        dtype = np.uint8 if largest <= 2**8 else np.int16 if largest <= 2**15 else np.int32
        x = np.empty((table.num_rows, len(self.columns)), dtype)
        for i, column in enumerate(self.columns):
            entries, which = distinct(table, column.name)
            x[:, i] = np.array([column.place(entry) for entry in entries], dtype)[which]
        return torch.from_numpy(x)

    def given(self, rows: Sequence[Mapping[str, Any]]) -> Tensor:
        """What rows give that are known in part: integers ``(N, D)``, -1 where nothing is given.

        Args:
            rows: Entries by the names of their columns. A column that is left out, or holds ``___`` (three underscores
                or more), is not given. An empty entry is one that is missing.

        Raises:
            FLDDError: If there is no row, a name is no column's, or an entry has no integer.
        """
        if not rows:
            raise FLDDError("no row is given: give one or more.")
        unknown = [name for row in rows for name in row if name not in self.names]
        if unknown:
            raise FLDDError(f"'{unknown[0]}' is no column of the model's: it has {', '.join(self.names)}.")
        places = []
        for i, row in enumerate(rows):
            try:
                places.append([_given_place(column, row) for column in self.columns])
            except NoPlace as error:
                raise FLDDError(f"row {i} (from 0): {error.reason} Write ___ for what is not known.") from error
        return torch.tensor(places)

    def lines(self, rows: Tensor) -> list[str]:
        """Rows ``(N, D)`` as lines of CSV; states with MASK have a dot there."""
        written = [[c.entry(place) for c, place in zip(self.columns, row, strict=True)] for row in rows.tolist()]
        return [_line(row) for row in written]

    def head(self) -> str:
        """The line of CSV with the names."""
        return _line(self.names)

    def summary(self) -> str:
        """What there is in each, in words."""
        return ", ".join(f"{column.name} {column.summary()}" for column in self.columns)

    def state(self) -> str:
        """All of it as JSON."""
        return json.dumps([asdict(column) for column in self.columns])

    @classmethod
    def of_state(cls, state: str) -> Columns:
        """The columns of :meth:`state`; raises FLDDError if it is none, as it may come from anyone."""
        try:
            columns = [_restored(entry) for entry in json.loads(state)]
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            raise FLDDError(f"these are no columns of a table, or damaged ones: {str(state)[:60]}.") from error
        if not columns:
            raise FLDDError("there is no column in the checkpoint's table: it is damaged.")
        return cls(columns)


def _given_place(column: Column, row: Mapping[str, Any]) -> int:
    entry = as_entry(row.get(column.name, _UNKNOWN), column.name)
    is_unknown = entry is not None and len(entry) >= len(_UNKNOWN) and set(entry) == set(_UNKNOWN)
    return -1 if is_unknown else column.place(entry)


def _line(fields: Sequence[str]) -> str:
    text = StringIO()
    csv.writer(text, lineterminator="").writerow(fields)
    return text.getvalue()


def _restored(entry: dict[str, Any]) -> Column:
    """A column of plain data; raises ValueError, TypeError or KeyError if that is none."""
    name, missing = _of_type(entry["name"], str), _of_type(entry["missing"], bool)
    if "categories" in entry:
        categories = tuple(_of_type(each, str) for each in entry["categories"])
        column: Column = Categories(name, missing, categories, _of_type(entry["are_numbers"], bool))
    else:
        low, high = (tuple(float(finite(number, name)) for number in entry[key]) for key in ("low", "high"))
        order = [number for pair in zip(low, high, strict=True) for number in pair]
        if order != sorted(order) or len(set(low)) < len(low):
            raise ValueError("bins out of order")
        column = Bins(name, missing, low, high, _of_type(entry["whole"], bool))
    if column.num_values < 1:
        raise ValueError("a column without values")
    return column


def _of_type(value: Any, kind: type[Any]) -> Any:
    if type(value) is not kind:
        raise TypeError(f"{value!r} is no {kind.__name__}")
    return value
