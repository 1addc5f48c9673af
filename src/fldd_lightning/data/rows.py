"""From documents to equal rows of tokens. The ``datasets`` library keeps the tokens on disk."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import FLDDError
from .corpus import Documents, as_text
from .hub import quiet
from .tokenizer import CharacterTokenizer, Tokenizer

__all__ = ["Rows", "draw_splits", "found_characters"]

_BATCH = 1_000  # documents at once
_DTYPES = ((2**8, np.uint8), (2**15, np.int16), (2**31, np.int32))  # that torch has, too


class Rows:
    """Turns documents into rows of one length: blocks of the joined text, or one padded row per document.

    Args:
        tokenizer: Of the texts.
        length: L, tokens a row.
        padded: One document a row, filled up with PAD, which is ``tokenizer.vocab_size``; empty ones are
            left out and longer ones cut. Otherwise documents are joined and cut into blocks, and
            what does not fill the last block is left out.
        separator: Put between joined documents.

    Attributes:
        counts: Documents and tokens seen, documents cut, those left out as empty, and tokens that stand for what has
            none.
    """

    def __init__(self, tokenizer: Tokenizer, length: int, padded: bool, separator: str) -> None:
        self.tokenizer, self.length, self.padded, self.separator = tokenizer, length, padded, separator
        num_classes = tokenizer.vocab_size + int(padded)
        self.dtype = next(dtype for limit, dtype in _DTYPES if num_classes <= limit)
        self.counts = {"documents": 0, "tokens": 0, "cut": 0, "empty": 0, "unknown": 0}

    def of(self, documents: Iterable[str]) -> Iterator[np.ndarray]:
        """Rows of documents, in their order, ``(N, L)`` at a time with N >= 0."""
        iterator, number, encode = iter(documents), 0, self._encoder()
        parts = iter(lambda: list(islice(iterator, _BATCH)), [])

        def encoded() -> Iterator[list[np.ndarray]]:
            nonlocal number
            for part in parts:
                yield encode(part, range(number, number + len(part)))["ids"]
                number += len(part)

        return self._packed(encoded())

    def all_of(self, documents: Documents) -> Tensor:
        """Rows ``(N, L)`` of documents, N >= 0; their tokens are found again by the next run.

        Raises:
            FLDDError: If a document cannot be written in these tokens.
        """
        import datasets

        ids = datasets.Features({"ids": datasets.List(datasets.Value(np.dtype(self.dtype).name))})
        with quiet():
            table = documents.table.map(
                self._encoder(documents),
                with_indices=True,
                input_columns=[documents.column],
                remove_columns=documents.table.column_names,
                batched=True,
                batch_size=_BATCH,
                features=ids,
            )
        batches = table.with_format("arrow").iter(_BATCH)
        parts = list(self._packed(_split(batch["ids"].combine_chunks()) for batch in batches))
        return torch.from_numpy(np.concatenate([np.zeros((0, self.length), self.dtype), *parts]))

    def _encoder(self, documents: Documents | None = None) -> _Encoder:
        return _Encoder(self.tokenizer, None if self.padded else self.separator, documents)

    def _packed(self, batches: Iterable[list[np.ndarray]]) -> Iterator[np.ndarray]:
        """Rows of documents' tokens ``(tokens,)``; those of joined documents begin with their separators."""
        rest = np.zeros(0, self.dtype)
        for encoded in batches:
            self.counts["documents"] += len(encoded)
            self.counts["tokens"] += sum(len(ids) for ids in encoded)
            if (unknown := self.tokenizer.unknown) is not None:
                self.counts["unknown"] += sum(int((ids == unknown).sum()) for ids in encoded)
            if self.padded:
                filled = [ids for ids in encoded if len(ids)]
                self.counts["empty"] += len(encoded) - len(filled)
                yield self._filled(filled)
            else:
                stream = np.concatenate([rest, *(ids.astype(self.dtype) for ids in encoded)])
                whole = len(stream) // self.length * self.length
                rest = stream[whole:]
                yield stream[:whole].reshape(-1, self.length)

    def _filled(self, encoded: list[np.ndarray]) -> np.ndarray:
        rows = np.full((len(encoded), self.length), self.tokenizer.vocab_size, self.dtype)
        for row, ids in zip(rows, encoded, strict=True):
            row[: len(ids)] = ids[: self.length]
            self.counts["cut"] += len(ids) > self.length
        return rows


def _split(lists: Any) -> list[np.ndarray]:
    """The parts ``(n,)`` of an Arrow array of lists."""
    ends: np.ndarray = lists.value_lengths().to_numpy().cumsum()
    return np.split(lists.flatten().to_numpy(), ends[:-1])


@dataclass
class _Encoder:
    """Tokens of a batch of documents; without a separator, each document is on its own."""

    tokenizer: Tokenizer
    separator: str | None
    documents: Documents | None

    def __call__(self, texts: Sequence[Any], numbers: Sequence[int]) -> dict[str, list[np.ndarray]]:
        if self.documents is not None:
            texts = self.documents.texts(texts, numbers[0])
        if self.separator is None:
            return {"ids": self.tokenizer.encode(texts)}
        # with the separator, so that a text split into lines is the same text again
        joined = [self.separator + text if number else text for text, number in zip(texts, numbers, strict=True)]
        try:
            return {"ids": self.tokenizer.encode(joined)}
        except FLDDError:
            self.tokenizer.encode(texts)  # says which text cannot be written, if it is not the separator
            raise FLDDError(
                f"documents are joined by {self.separator!r}, which {self.tokenizer.describe()} cannot write. Set "
                "--data.separator to what it can, such as ' ', or to '' for nothing."
            ) from None

    def __getstate__(self) -> dict[str, Any]:
        """What the library finds kept tokens by: all that decides them, nothing that changes in use."""
        return {"tokenizer": self.tokenizer.fingerprint, "separator": self.separator, "version": 1}


def found_characters(documents: Iterable[Documents], separator: str) -> CharacterTokenizer:
    """A tokenizer of the characters of documents, and of those of the separator if it is put anywhere."""
    found = ""
    for each in documents:
        with quiet():
            table = each.table.map(
                _characters, input_columns=[each.column], remove_columns=each.table.column_names, batched=True
            )
        found += "".join(table["characters"]) + (separator if len(each.table) > 1 else "")
    return CharacterTokenizer.of(found)


def _characters(texts: Sequence[Any]) -> dict[str, list[str]]:
    return {"characters": ["".join(sorted(set().union(*(as_text(text) for text in texts))))]}


def draw_splits(rows: Tensor, shares: dict[str, float], seed: int) -> dict[str, Tensor]:
    """Take rows for other splits out of the training rows, at random but in order.

    Args:
        rows: All of them, ``(N, L)``.
        shares: Share of each new split.
        seed: Of the draw.

    Returns:
        Rows of the new splits and of the remaining ``train``.

    Raises:
        FLDDError: If there are too few.
    """
    if not shares:
        return {"train": rows}
    sizes = {name: max(1, round(share * len(rows))) for name, share in shares.items()}
    if len(rows) <= sum(sizes.values()):
        raise FLDDError(
            f"the corpus gives {len(rows)} examples, too few for the splits train, {' and '.join(sizes)}. Give more "
            "text, or a smaller --data.length."
        )
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    sizes["train"] = len(rows) - sum(sizes.values())
    chosen = torch.split(order, list(sizes.values()))
    return {name: rows[index.sort().values] for name, index in zip(sizes, chosen, strict=True)}
