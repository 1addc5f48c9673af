"""Corpora: documents of text from the hub, from local files, or from the Python installation itself.

The last is ``pydoc_data.topics``: CPython's language reference, made from the Python documentation by the Python
Software Foundation; licence PSF-2.0.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import get_worker_info

from ..errors import FLDDError
from .hub import load_hub, load_local, split_names

__all__ = ["Corpus", "Documents", "as_text", "embedded_corpus", "read_corpus"]

_HEAD = 100  # rows that are looked at to find the column with the texts
_WORDS = (str, bool, int, float)  # what can be written as text


def as_text(value: Any) -> str:
    """A value of a table as text: ``12`` of 12, ``true`` of True.

    Raises:
        FLDDError: If it is no text, no number and no truth value.
    """
    if isinstance(value, str):
        return value
    if not isinstance(value, _WORDS):
        raise FLDDError(f"{value!r} is no text. Set --data.column to the column with the texts.")
    return str(value).lower() if isinstance(value, bool) else str(value)


@dataclass(frozen=True)
class Documents:
    """The texts of one split, read anew whenever they are iterated over.

    Attributes:
        table: A ``datasets.Dataset`` or ``IterableDataset``.
        column: Its column of texts.
        what: Names it in messages.
        skip_missing: Leave out rows without text, and say how many they are. Otherwise they are refused.
    """

    table: Any
    column: str
    what: str
    skip_missing: bool = True

    def __iter__(self) -> Iterator[str]:
        number = missing = 0
        rows = self.table.iter(batch_size=1_000)
        while (batch := _next(rows, self.what)) is not None:
            texts = self.texts(batch[self.column], number)
            number += len(batch[self.column])
            missing += len(batch[self.column]) - len(texts)
            yield from texts
        if missing and ((worker := get_worker_info()) is None or worker.id == 0):
            self._tell_missing(missing, number)

    def texts(self, values: Sequence[Any], first: int) -> list[str]:
        """The texts of some rows.

        Args:
            values: What the rows hold.
            first: The number of the first of them.

        Raises:
            FLDDError: For what is no text, and for what is missing if it is not to be skipped.
        """
        if not self.skip_missing and None in values:
            raise self._refused(first + list(values).index(None))
        try:
            return [as_text(value) for value in values if value is not None]
        except FLDDError as error:
            raise FLDDError(f"{self.what}, column '{self.column}': {error}") from error

    def complete(self) -> Documents:
        """Itself without the rows that have no text, if all rows are at hand.

        Raises:
            FLDDError: If there are such rows, and they are not to be skipped; or if there are no others.
        """
        values = self.table.data.column(self.column)
        if not values.null_count:
            return self
        there = values.is_valid().to_numpy()
        if not self.skip_missing:
            raise self._refused(int(there.argmin()))
        if not there.any():
            raise FLDDError(f"{self.what}: no row has text in column '{self.column}'. Set --data.column to another.")
        self._tell_missing(values.null_count, len(there))
        return replace(self, table=self.table.select(np.flatnonzero(there)))

    def _refused(self, number: int) -> FLDDError:
        return FLDDError(
            f"{self.what}: row {number} (from 0) has no text in column '{self.column}'. Give it one, or remove the "
            "row; in training --data.skip_missing true leaves out such rows."
        )

    def _tell_missing(self, missing: int, rows: int) -> None:
        rank_zero_warn(
            f"{self.what}: {missing} of {rows} rows have no text in column '{self.column}' and were left out."
        )


@dataclass(frozen=True)
class Corpus:
    """Documents by split.

    Attributes:
        splits: ``train`` and, where the corpus has them, ``val`` and ``test``.
        fingerprint: Changes whenever a text may have.
        what: Source, version and size in words.
    """

    splits: dict[str, Documents]
    fingerprint: str
    what: str


def embedded_corpus() -> Corpus:
    """CPython's language reference, which every Python installation carries, in 27 characters.

    Letters are lowered, everything else becomes a space, spaces in a row become one: as in text8
    (Mahoney, 2009). It differs between versions of Python, so version and hash are stated.
    """
    from pydoc_data.topics import topics

    import datasets

    text = re.sub("[^a-z]+", " ", " ".join(topics[key] for key in sorted(topics)).lower()).strip()
    digest = hashlib.sha256(text.encode()).hexdigest()
    version = ".".join(str(n) for n in sys.version_info[:3])
    what = f"pydoc_data.topics of Python {version} ({len(text)} characters, sha256 {digest[:16]})"
    table = datasets.Dataset.from_dict({"text": [text]})
    return Corpus({"train": Documents(table, "text", what)}, digest, what)


def read_corpus(
    path: str | None,
    name: str | None = None,
    subset: str | None = None,
    column: str | None = None,
    val_path: str | None = None,
    test_path: str | None = None,
    skip_missing: bool = True,
    streaming: bool = False,
    cache_dir: str | None = None,
) -> Corpus:
    """Open a corpus; see :class:`fldd_lightning.data.TextDataModule` for the arguments.

    Raises:
        FLDDError: If it is missing, broken, empty, or has no column of texts.
    """
    if path is None and name is None:
        return embedded_corpus()
    from .readers import TEXTS  # here: it imports the library, which takes a second

    how: dict[str, Any] = {"streaming": streaming, "cache_dir": cache_dir}
    if path is not None:
        tables = split_names(load_local(Path(path).expanduser(), TEXTS, **how))
    else:
        tables = split_names(load_hub(str(name), subset, **how))
    for split, extra in (("val", val_path), ("test", test_path)):
        if extra is not None:
            tables[split] = load_local(Path(extra).expanduser(), TEXTS, one_split=True, **how)["train"]
    what = f"'{path if path is not None else name}'"
    found: list[str] = [key for key in ("train", "val", "test") if key in tables]
    columns = {key: _column(tables[key], column, f"{what}, {key}") for key in found}
    splits = {key: Documents(tables[key], columns[key], f"{what}, {key}", skip_missing) for key in found}
    digest = hashlib.sha256()
    for key, documents in splits.items():
        digest.update(f"{key} {documents.column} {_kept_in(documents.table)}".encode())
    if not streaming:
        splits = {key: documents.complete() for key, documents in splits.items()}
    return Corpus(splits, digest.hexdigest(), what)


def _kept_in(table: Any) -> list[str]:
    """The files that the library keeps a table in, named by a hash of where it comes from; none for a stream."""
    return [file["filename"] for file in getattr(table, "cache_files", [])]


def _next(rows: Iterator[Any], what: str) -> Any:
    """The next row or batch, or None; streams read their files only now."""
    try:
        return next(rows, None)
    except FLDDError:
        raise
    except Exception as error:  # the library raises many kinds
        raise FLDDError(f"cannot read {what}: {error.__cause__ or error}. Files must be whole, in UTF-8.") from error


def _column(table: Any, wanted: str | None, what: str) -> str:
    """The column with the texts: the one that is wanted, or ``text``, or the only one of words."""
    import datasets

    names = table.column_names  # None for a stream that does not know before it is read
    if table.features is not None:
        plain = [key for key, feature in table.features.items() if isinstance(feature, datasets.Value)]
        table = table.select_columns(plain or names)
    head = _next(table.take(_HEAD).iter(_HEAD), what)
    if head is None:
        raise FLDDError(f"{what} is empty: give more data.")
    usable = {key: values for key, values in head.items() if all(v is None or isinstance(v, _WORDS) for v in values)}
    texts = [key for key, values in usable.items() if any(isinstance(v, str) and not _is_number(v) for v in values)]
    likely = ["text"] if "text" in usable else texts or list(usable)
    column = wanted if wanted is not None or len(likely) != 1 else likely[0]
    if column not in usable:
        raise FLDDError(
            f"column is {wanted!r}; columns with text: {texts or 'none'}; all columns: {names or list(head)}. "
            "Set --data.column."
        )
    return str(column)


def _is_number(text: str) -> bool:
    """Whether a text is a number or a truth value. A column of such is not read unless it is named, or the only one."""
    try:
        float(text)
    except ValueError:
        return text.lower() in ("", "true", "false")
    return True
