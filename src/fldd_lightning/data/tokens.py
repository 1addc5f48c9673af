"""Tokenised corpora on disk: equal rows of integers, memory-mapped, written whole or not at all."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import FLDDError
from .tokenizer import Tokenizer

__all__ = ["Rows", "built_once", "draw_splits", "read_rows", "write_rows"]

_DTYPES = ((2**8, "uint8"), (2**15, "int16"), (2**31, "int32"))


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
        counts: Documents and tokens seen, documents cut, and tokens that stand for what has none.
    """

    def __init__(self, tokenizer: Tokenizer, length: int, padded: bool, separator: str) -> None:
        self.tokenizer, self.length, self.padded, self.separator = tokenizer, length, padded, separator
        self.counts = {"documents": 0, "tokens": 0, "cut": 0, "unknown": 0}

    def of(self, documents: Iterable[str]) -> Iterator[np.ndarray]:
        """Rows of documents, in their order, ``(N, L)`` at a time with N >= 0."""
        rest = np.zeros(0, np.int64)
        iterator, is_first = iter(documents), True
        while batch := list(islice(iterator, 1_000)):
            if not self.padded:  # so that a text split into lines is the same text again
                joined = [self.separator + text for text in batch]
                joined[0] = batch[0] if is_first else joined[0]
                batch, is_first = joined, False
            encoded = self.tokenizer.encode(batch)
            self.counts["documents"] += len(batch)
            self.counts["tokens"] += sum(len(ids) for ids in encoded)
            self.counts["unknown"] += sum(int((ids == self.tokenizer.unknown).sum()) for ids in encoded)
            if self.padded:
                yield self._filled([ids for ids in encoded if len(ids)])
            else:
                stream = np.concatenate([rest, *encoded])
                whole = len(stream) // self.length * self.length
                rest = stream[whole:]
                yield stream[:whole].reshape(-1, self.length)

    def _filled(self, encoded: list[np.ndarray]) -> np.ndarray:
        rows = np.full((len(encoded), self.length), self.tokenizer.vocab_size)
        for row, ids in zip(rows, encoded, strict=True):
            row[: len(ids)] = ids[: self.length]
            self.counts["cut"] += len(ids) > self.length
        return rows


def write_rows(path: Path, rows: Iterable[np.ndarray], num_classes: int) -> dict[str, Any]:
    """Write rows to a file.

    Args:
        path: The file.
        rows: Integers ``(N, L)`` at a time.
        num_classes: K; decides the width of the integers.

    Returns:
        What :func:`read_rows` must know of it.

    Raises:
        FLDDError: If it cannot be written; what ``rows`` raises is passed on.
    """
    dtype = next(name for limit, name in _DTYPES if num_classes <= limit)
    number, length = 0, 0
    with _writing(path.parent):
        file = path.open("wb")
    with file:
        for part in rows:
            number, length = number + len(part), part.shape[1]
            with _writing(path.parent):
                part.astype(dtype).tofile(file)
    return {"file": path.name, "rows": number, "length": length, "dtype": dtype}


def read_rows(folder: Path, entry: dict[str, Any]) -> Tensor:
    """Rows of a file as a memory-mapped tensor ``(N, L)``: only what is used is read."""
    if entry["rows"] == 0:
        return torch.zeros(0, max(entry["length"], 1), dtype=torch.uint8)
    size = entry["rows"] * entry["length"]
    path = folder / entry["file"]
    dtype: torch.dtype = getattr(torch, entry["dtype"])
    if path.stat().st_size != size * dtype.itemsize:
        raise FLDDError(f"'{path}' has another size than it was written with. Delete the folder '{folder}'.")
    return torch.from_file(str(path), shared=False, size=size, dtype=dtype).view(-1, entry["length"])


def draw_splits(
    folder: Path, train: dict[str, Any], shares: dict[str, float], seed: int, num_classes: int
) -> dict[str, dict[str, Any]]:
    """Take rows out of the training rows for other splits, at random but in order.

    Args:
        folder: Of the files.
        train: Of all rows.
        shares: Share of each new split.
        seed: Of the draw.
        num_classes: K.

    Returns:
        Entries of the new splits and of the remaining ``train``.
    """
    if not shares:
        return {"train": train}
    rows = read_rows(folder, train)
    sizes = {name: max(1, round(share * len(rows))) for name, share in shares.items()}
    if len(rows) <= sum(sizes.values()):
        raise FLDDError(
            f"the corpus gives {len(rows)} examples, too few for the splits train, {' and '.join(sizes)}. Give more "
            "text, or a smaller --data.length."
        )
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    chosen = dict(zip(sizes, torch.split(order, [*sizes.values(), len(rows) - sum(sizes.values())])))
    chosen["train"] = order[sum(sizes.values()) :]
    entries = {}
    for name, index in chosen.items():
        parts = (rows[i].numpy() for i in torch.split(index.sort().values, 4_096))
        entries[name] = write_rows(folder / f"{name}_drawn.bin", parts, num_classes)
    (folder / train["file"]).unlink()
    return entries


def built_once(folder: Path, build: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """The facts that ``build`` returned for a folder, building it if it is not there.

    The first process builds under another name and renames; others wait for it. A process that is killed
    releases the lock and leaves at most a folder that the next one clears away.

    Args:
        folder: Where the files are to be.
        build: Writes files into the folder it is given, and returns facts about them.

    Raises:
        FLDDError: If nothing can be written there, or ``build`` cannot read what it needs.
    """
    from filelock import FileLock

    facts = folder / "facts.json"
    if not facts.is_file():
        with _writing(folder.parent):
            folder.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(folder.with_suffix(".lock"))
            with lock:
                if not facts.is_file():
                    shutil.rmtree(folder, ignore_errors=True)
                    for left in folder.parent.glob(f"{folder.name}.tmp*"):  # nobody works on it: we hold the lock
                        shutil.rmtree(left, ignore_errors=True)
                    work = Path(tempfile.mkdtemp(prefix=f"{folder.name}.tmp", dir=folder.parent))
                    try:
                        (work / "facts.json").write_text(json.dumps(_built(build, work)), encoding="utf-8")
                        work.rename(folder)
                    finally:
                        shutil.rmtree(work, ignore_errors=True)
    loaded: dict[str, Any] = json.loads(facts.read_text(encoding="utf-8"))
    return loaded


def _built(build: Callable[[Path], dict[str, Any]], work: Path) -> dict[str, Any]:
    """The facts of ``build``, whose own writing is named as such: what else fails is reading."""
    try:
        return build(work)
    except OSError as error:
        raise FLDDError(f"cannot read the data: {error}.") from error


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise FLDDError(f"cannot write to '{folder}': {error}. Set --data.cache_dir.") from error
