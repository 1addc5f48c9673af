"""What a column of a table holds, by its entries: categories or bins of numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from ..errors import FLDDError
from .columns import Bins, Categories, Column
from .entries import finite, is_number, stands_for_none, text_of

__all__ = ["find_column"]

_MOST_CATEGORIES = 5_000  # networks have weights for each of them in every column


def find_column(name: str, counts: Mapping[str | None, int], bins: int, as_text: bool) -> Column:
    """What a column holds, by its entries.

    It holds numbers if every entry is one, but for those that are missing and for what usually stands for a missing
    number. Numbers of up to ``bins`` kinds are categories.

    Args:
        name: What the header calls it.
        counts: How often each entry stands there; None where it is missing.
        bins: How many bins there may be.
        as_text: Whether numbers are taken as texts.

    Raises:
        FLDDError: If there are too many categories.
    """
    texts = sorted(entry for entry in counts if entry is not None)
    others = [text for text in texts if not is_number(text)]
    if as_text or len(others) == len(texts) or any(not stands_for_none(text) for text in others):
        if len(texts) > _MOST_CATEGORIES:
            raise FLDDError(
                f"column '{name}' holds {len(texts)} different texts, such as {texts[0]!r}, more than "
                f"{_MOST_CATEGORIES}. If they are names or numbers of the rows, set --data.leave_out \"['{name}']\"."
            )
        return Categories(name, None in counts, tuple(texts), are_numbers=False)
    numbers: Counter[float] = Counter()
    for text in texts:
        if is_number(text):
            numbers[finite(float(text), name)] += counts[text]
    missing = None in counts or bool(others)
    if len(numbers) <= bins:
        return Categories(name, missing, tuple(text_of(number) for number in sorted(numbers)), are_numbers=True)
    low, high = _equal_bins(numbers, bins)
    return Bins(name, missing, low, high, all(number.is_integer() for number in numbers))


def _equal_bins(counts: Mapping[float, int], bins: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Least and largest number of up to ``bins`` bins with about equally many rows.

    They are quantiles, but for numbers that are frequent: these fill a bin, and the others share the rest.
    """
    low: list[float] = []
    high: list[float] = []
    left, size = sum(counts.values()), 0  # rows from this bin on, and rows in it
    for number in sorted(counts):
        share = left / (bins - max(len(low) - 1, 0))
        if not low or (len(low) < bins and size + counts[number] / 2 > share):
            left, size = left - size, 0
            low.append(number)
            high.append(number)
        high[-1] = number
        size += counts[number]
    return tuple(low), tuple(high)
