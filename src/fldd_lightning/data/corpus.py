"""Corpora: documents of text from the hub, from local files, or from the Python installation itself.

The last is ``pydoc_data.topics``: CPython's language reference, made from the Python documentation by the Python
Software Foundation; licence PSF-2.0.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import FLDDError
from .hub import TABLES, load_hub, load_local, split_names

__all__ = ["Corpus", "Documents", "embedded_corpus", "read_corpus"]

TEXTS = {**TABLES, ".txt": "text"}


@dataclass(frozen=True)
class Documents:
    """The texts of one split, read anew whenever they are iterated over.

    Attributes:
        table: A ``datasets.Dataset`` or ``IterableDataset``.
        column: Its column of texts.
        what: Names it in messages.
    """

    table: Any
    column: str
    what: str

    def __iter__(self) -> Iterator[str]:
        number = 0
        rows = self.table.iter(batch_size=1_000)
        while (batch := _next(rows, self.what)) is not None:
            texts = batch[self.column]
            self.check(texts, number)
            number += len(texts)
            yield from texts

    def check(self, texts: Sequence[Any], first: int) -> None:
        """Raise for what is no text.

        Args:
            texts: Some of the documents.
            first: The number of the first of them.
        """
        for number, text in enumerate(texts, first):
            if not isinstance(text, str):
                raise FLDDError(f"{self.what}, document {number}: column '{self.column}' holds {text!r}, no text.")


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
    streaming: bool = False,
    cache_dir: str | None = None,
) -> Corpus:
    """Open a corpus; see :class:`fldd_lightning.data.TextDataModule` for the arguments.

    Raises:
        FLDDError: If it is missing, broken, empty, or has no column of texts.
    """
    if path is None and name is None:
        return embedded_corpus()
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
    splits = {key: Documents(tables[key], columns[key], f"{what}, {key}") for key in found}
    digest = hashlib.sha256()
    for key, documents in splits.items():
        digest.update(f"{key} {documents.column} {_kept_in(documents.table)}".encode())
    return Corpus(splits, digest.hexdigest(), what)


def _kept_in(table: Any) -> list[str]:
    """The files that the library keeps a table in, named by a hash of where it comes from; none for a stream."""
    return [file["filename"] for file in getattr(table, "cache_files", [])]


def _next(rows: Iterator[Any], what: str) -> Any:
    """The next row or batch, or None; streams read their files only now."""
    try:
        return next(rows, None)
    except Exception as error:  # the library raises many kinds
        raise FLDDError(f"cannot read {what}: {error.__cause__ or error}. Files must be whole, in UTF-8.") from error


def _column(table: Any, wanted: str | None, what: str) -> str:
    """The column with the texts."""
    features = table.features
    if features is None:  # a stream does not know before it is read
        first = _next(iter(table), what)
        if first is None:
            raise FLDDError(f"{what} is empty: give more data.")
        kinds = {key: type(value) is str for key, value in first.items()}
    else:
        kinds = {
            key: getattr(feature, "dtype", None) in ("string", "large_string") for key, feature in features.items()
        }
    texts = [key for key, is_text in kinds.items() if is_text]
    column = wanted or ("text" if "text" in texts else texts[0] if len(texts) == 1 else None)
    if column not in texts:
        raise FLDDError(
            f"column is {wanted!r}; columns with text: {texts or 'none'}; all columns: {list(kinds)}. "
            "Set --data.column."
        )
    return str(column)
