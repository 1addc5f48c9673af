"""Entries of a table as text: how numbers are written, and what stands for a missing one."""

from __future__ import annotations

import re
from collections import Counter
from datetime import date, time, timedelta
from decimal import Decimal
from math import isfinite
from typing import Any

import numpy as np
import pyarrow as pa

from ..errors import FLDDError

__all__ = ["as_entry", "as_number", "count_entries", "distinct", "finite", "is_number", "stands_for_none", "text_of"]

_NO_NUMBER = ("?", "-", "na", "n/a", "nan", "null", "none")  # what stands for a missing number, in any case
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)


def as_entry(value: Any, name: str) -> str | None:
    """A value of a table as text without white space around it; None if it is missing."""
    value = value.item() if isinstance(value, np.generic) else value
    if value is None or (isinstance(value, float) and value != value):
        return None
    if isinstance(value, str):
        return value.strip() or None
    if isinstance(value, (bool, date, time, timedelta)):
        return str(value)
    if isinstance(value, (int, float, Decimal)):
        return text_of(finite(value, name))
    raise FLDDError(f"column '{name}' holds a {type(value).__name__}, not texts or numbers: leave it out.")


def is_number(entry: str) -> bool:
    """Whether an entry is a number as people write it; not ``nan``, ``inf`` or ``1_000``."""
    return _NUMBER.fullmatch(entry) is not None


def stands_for_none(entry: str) -> bool:
    """Whether an entry stands for a missing number."""
    return entry.lower() in _NO_NUMBER


def count_entries(table: pa.Table, name: str) -> Counter[str | None]:
    """How often each entry stands in a column; None where it is missing."""
    entries, which = distinct(table, name)
    counts: Counter[str | None] = Counter()
    for entry, count in zip(entries, np.bincount(which, minlength=len(entries)).tolist(), strict=True):
        counts[entry] += count
    return +counts


def distinct(table: pa.Table, name: str) -> tuple[list[str | None], np.ndarray]:
    """Different entries of a column, and which of them each row has, ``(N,)``."""
    column = table.column(name)
    if pa.types.is_null(column.type):
        return [None], np.zeros(len(column), np.int64)
    if pa.types.is_nested(column.type):
        raise FLDDError(f"column '{name}' holds {column.type}, not texts or numbers: leave it out (data.leave_out).")
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    coded = column.combine_chunks().dictionary_encode()
    coded = coded.combine_chunks() if isinstance(coded, pa.ChunkedArray) else coded
    entries = [as_entry(value, name) for value in coded.dictionary.to_pylist()]
    which = coded.indices.fill_null(len(entries)).to_numpy(zero_copy_only=False).astype(np.int64)
    return [*entries, *[None] * bool(coded.null_count)], which


def as_number(entry: str | None) -> str | None:
    """An entry of a column of numbers in the one way that it is written; None for what stands for a missing one."""
    if entry is None or stands_for_none(entry):
        return None
    return text_of(float(entry)) if is_number(entry) else entry


def text_of(number: float | Decimal) -> str:
    """A number as text: whole ones without a point."""
    if isinstance(number, int):
        return str(number)
    number = float(number)
    return str(int(number)) if number.is_integer() and abs(number) < 2**53 else repr(number)


def finite(number: Any, name: str) -> Any:
    """The number itself; raises FLDDError, naming the column, if it is infinite or none."""
    if not isfinite(number):
        raise FLDDError(f"column '{name}' holds {number}, which is in no bin: correct it, or leave it empty.")
    return number
