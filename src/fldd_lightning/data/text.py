"""Text: blocks of a corpus or padded lines, in characters or in any tokenizer's tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from ..errors import FLDDError
from ..ranges import COUNT, check_kinds, check_numbers
from .base import DiscreteDataModule, Split, check_shares
from .corpus import Corpus, Documents, read_corpus
from .loaders import ResumableLoader, StreamLoader, outlive_sigterm
from .rows import Rows, draw_splits, found_characters
from .stream import TextStream
from .tokenizer import CharacterTokenizer, HuggingFaceTokenizer, Tokenizer

__all__ = ["TextDataModule"]


class TextDataModule(DiscreteDataModule):
    """Text as integers ``(length,)``; without ``path`` and ``name`` the corpus that Python carries.

    Either documents are joined and cut into blocks of ``length`` tokens, or (``padded``) every
    document is one example, filled up with PAD. PAD is then the last class, K - 1; see :class:`fldd_lightning.Spec`
    for what it means, and :class:`fldd_lightning.LengthLatent` for the lengths. Lines of a ``.txt`` file
    are documents; joined by ``separator``, they are the file again. Records of FASTA are documents, without their
    headers. In a ``.csv``, an empty field is missing; ``""``, ``NA`` and ``None`` are text.

    Splits named ``train``, ``validation`` and ``test`` (for a folder, in the names of files or folders, such as
    ``train.txt.gz``) are used as they are. Missing ones are drawn from the training examples by ``seed``:
    blocks of one text may thus have neighbours in another split.

    All tokens are held in memory, in one, two or four bytes each; for more text than that, see ``streaming``. The
    ``datasets`` library keeps them on disk too, so that the next run on the same text does not tokenise it again.

    Args:
        path: A ``.txt``, ``.csv``, ``.jsonl``, ``.parquet``, ``.arrow`` or FASTA file (``.fasta``, ``.fa``, ``.faa``,
            ``.fna``), gzipped or not, or a folder of them. Overrides ``name``.
        name: A data set of the Hugging Face hub, such as ``roneneldan/TinyStories``.
        subset: One of its configurations.
        column: Column with the texts; by default ``text``, or the only one that holds words. Numbers and truth values
            of a column that is named are read as text, those of a ``.csv`` as they stand there: ``0012``.
        val_path: Validation text, if it is not found under ``path``.
        test_path: Test text.
        skip_missing: Leave out rows without text, and say how many they are; False refuses them.
        length: Tokens per example.
        padded: One document per example, instead of blocks.
        tokenizer: A ``tokenizer.json``, a folder with one, or a name on the hub; None for characters.
        alphabet: For characters: all there are; None for those of the corpus.
        separator: Put between documents that are joined.
        val_fraction: Share of the examples for validation, where there is no such split.
        test_fraction: Share of the examples for testing, where there is no such split.
        streaming: Read, tokenise and shuffle the training text while training; nothing is kept on disk.
            Needs a tokenizer or an alphabet.
        held_out: When streaming, documents for each of validation and test where there is no such split,
            and for what must be known beforehand, such as the shape.
        cache_dir: Where the ``datasets`` library keeps texts and tokens; its own folder if None.
        batch_size: Examples per batch and process.
        num_workers: Worker processes of the loaders.
        seed: Seed of the splits and of the training order.

    Raises:
        FLDDError: If an option is out of range, or (when read) the corpus is missing, broken, too
            short or not covered by the tokenizer.
    """

    def __init__(
        self,
        path: str | None = None,
        name: str | None = None,
        subset: str | None = None,
        column: str | None = None,
        val_path: str | None = None,
        test_path: str | None = None,
        skip_missing: bool = True,
        length: int = 128,
        padded: bool = False,
        tokenizer: str | None = None,
        alphabet: str | None = None,
        separator: str = "\n",
        val_fraction: float = 0.05,
        test_fraction: float = 0.05,
        streaming: bool = False,
        held_out: int = 1_000,
        cache_dir: str | None = None,
        batch_size: int = 128,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers, seed)
        places = dict.fromkeys(("path", "val_path", "test_path"), str | PathLike | None)
        check_kinds(locals(), **places, name=str | None, column=str | None)
        check_numbers(locals(), length=COUNT, held_out=COUNT)
        check_shares(val_fraction, test_fraction)
        further = {"subset": subset, "column": column, "val_path": val_path, "test_path": test_path}
        lonely = [key for key, value in further.items() if value is not None]
        if lonely and path is None and name is None:
            raise FLDDError(f"--data.{lonely[0]} goes with --data.path or --data.name, and neither is given.")
        if tokenizer is not None and alphabet is not None:
            raise FLDDError("give a tokenizer or an alphabet, not both.")
        if streaming and path is None and name is None:
            raise FLDDError("streaming needs --data.path or --data.name; the corpus that Python carries is small.")
        if streaming and tokenizer is None and alphabet is None:
            raise FLDDError("streaming sees not all characters beforehand: set --data.alphabet or --data.tokenizer.")
        self.save_hyperparameters(logger=False)
        self.source: dict[str, Any] = {"path": path, "name": name, **further, "skip_missing": skip_missing}
        self.length, self._padded, self.separator = length, padded, separator
        self._tokenizer_source, self._alphabet = tokenizer, alphabet
        self.shares = {"val": val_fraction, "test": test_fraction}
        self.streaming, self.held_out = streaming, held_out
        self.cache_dir = None if cache_dir is None else str(Path(cache_dir).expanduser())
        self._tokenizer: Tokenizer | None = None
        self._chosen: Tokenizer | None = None
        self._corpus: Corpus | None = None

    @property
    def tokenizer(self) -> Tokenizer:
        """Of the texts; PAD is not among its tokens."""
        _ = self.splits
        assert self._tokenizer is not None
        return self._tokenizer

    @property
    def num_classes(self) -> int:
        """K: the tokens, and PAD if there is padding."""
        return self.tokenizer.vocab_size + int(self.padded)

    @property
    def padded(self) -> bool:
        """Whether the last class is PAD."""
        return self._padded

    def texts(self, split: str) -> Iterator[str]:
        """The texts of a split's examples, as their tokens decode."""
        for row in self.splits[split].x:
            yield self.tokenizer.decode([i for i in row.tolist() if i < self.tokenizer.vocab_size])

    def write_in(self, tokenizer: Tokenizer, length: int | None = None, padded: bool | None = None) -> None:
        """Write the texts as a model takes them, instead of as the options or the characters say.

        Args:
            tokenizer: The model's.
            length: Tokens per example; None for what the option says.
            padded: Whether there is one document per example; None for what the option says.
        """
        self._chosen = tokenizer
        self.length = self.length if length is None else length
        self._padded = self._padded if padded is None else padded

    def all_rows(self) -> Split:
        """The texts of ``path`` or ``name`` in their order: blocks, or one row for each document if ``padded``.

        ``val_path`` and ``test_path`` are other texts, and left out. What does not fill the last block has no row;
        the number of its tokens is told.

        Raises:
            FLDDError: If a row has no text or a document is empty, so that rows and documents would not agree, and as
                :meth:`load`.
        """
        path, name, subset, column = (self.source[key] for key in ("path", "name", "subset", "column"))
        corpus = read_corpus(path, name, subset, column, skip_missing=False, cache_dir=self.cache_dir)
        documents = [corpus.splits[name] for name in ("train", "val", "test") if name in corpus.splits]
        separator = "" if self.padded else self.separator
        self._tokenizer = self._given_tokenizer() or found_characters(documents, separator)
        parts = []
        for each in documents:
            rows = self._rows(self._tokenizer)
            parts.append(rows.all_of(each))
            self._check(rows, len(parts[-1]), each.what)
            number, tokens = rows.counts["documents"], rows.counts["tokens"]
            if self.padded and len(parts[-1]) < number:
                raise FLDDError(
                    f"{each.what}: {number - len(parts[-1])} of {number} documents are empty and have no bound. Remove "
                    "them, so that rows and documents agree."
                )
            self._tell(each.what, rows.counts)
            if not self.padded and (rest := tokens - parts[-1].numel()):
                rank_zero_info(f"{each.what}: the last {rest} of {tokens} tokens fill no block of {self.length}.")
        return Split(torch.cat(parts))

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit":
            shown = self.splits.items() if not self.streaming else [*self.splits.items()][1:]
            sizes = ", ".join(f"{name} {len(split)}" for name, split in shown)
            rank_zero_info(f"corpus: {self.corpus.what}; {self.tokenizer.describe()}; examples: {sizes}")

    def _training_loader(self) -> ResumableLoader:
        if not self.streaming:
            return super()._training_loader()
        world, rank = self._world()
        stream = TextStream(self._streams()["train"], self._rows(self.tokenizer), world, rank, self.seed)
        return StreamLoader(
            stream,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            worker_init_fn=outlive_sigterm,
        )

    def load(self) -> dict[str, Split]:
        return self._read_beforehand() if self.streaming else self._whole()

    # ---- everything in memory -------------------------------------------------------------

    def _whole(self) -> dict[str, Split]:
        splits = self.corpus.splits
        self._tokenizer = self._given_tokenizer() or found_characters(
            splits.values(), "" if self.padded else self.separator
        )
        found = {}
        for name, documents in splits.items():
            rows = self._rows(self._tokenizer)
            found[name] = rows.all_of(documents)
            self._check(rows, len(found[name]), f"the {name} split")
            self._tell(name, rows.counts)
        missing = {name: share for name, share in self.shares.items() if name not in found}
        found |= draw_splits(found["train"], missing, self.seed)
        return {name: Split(found[name]) for name in ("train", "val", "test")}

    def _tell(self, name: str, counts: dict[str, int]) -> None:
        """Say what the examples leave out of the texts."""
        if counts["cut"]:
            cut = f"{counts['cut']} of {counts['documents']} texts"
            rank_zero_info(f"{name}: {cut} are longer than {self.length} tokens and were cut.")
        if counts["empty"]:
            rank_zero_info(f"{name}: {counts['empty']} of {counts['documents']} texts are empty and were left out.")
        if counts["unknown"]:
            rank_zero_warn(
                f"{name}: {counts['unknown']} of {counts['tokens']} tokens stand for text that the tokenizer does not "
                "know; the bound is of the text with these gaps. A tokenizer that works on bytes has none."
            )

    def _check(self, rows: Rows, number: int, what: str) -> None:
        if number:
            return
        tokens, documents = rows.counts["tokens"], rows.counts["documents"]
        if tokens == 0:
            raise FLDDError(f"{what} is empty ({documents} documents without a token): give more data.")
        more = "a larger --data.held_out" if self.streaming else "more text"
        raise FLDDError(
            f"{what} has {tokens} tokens, fewer than one block of --data.length {self.length}. Give {more}, "
            "a smaller length, or set --data.padded true to fill up short texts."
        )

    # ---- streaming ------------------------------------------------------------------------

    def _read_beforehand(self) -> dict[str, Split]:
        """Validation and test, and the first training documents, in memory."""
        self._tokenizer = self._given_tokenizer()
        assert self._tokenizer is not None
        streams, splits = self._streams(), {}
        for name in ("train", "val", "test"):
            documents = streams[name]
            if name == "train" or name not in self.corpus.splits:
                documents = replace(documents, table=documents.table.take(self.held_out))
            rows = self._rows(self._tokenizer)
            x = np.concatenate([np.zeros((0, self.length), rows.dtype), *rows.of(documents)])
            self._check(rows, len(x), f"the {name} split")
            self._tell(name, rows.counts)
            splits[name] = Split(torch.from_numpy(x))
        return splits

    def _streams(self) -> dict[str, Documents]:
        """Documents of every split, those that are held out no longer in ``train``."""
        streams = dict(self.corpus.splits)
        for name in self.shares:
            if name not in streams:
                train = streams["train"]
                streams[name] = train
                streams["train"] = replace(train, table=train.table.skip(self.held_out))
        return streams

    # ---- internals ------------------------------------------------------------------------

    @property
    def corpus(self) -> Corpus:
        """The documents, opened once."""
        if self._corpus is None:
            self._corpus = read_corpus(**self.source, streaming=self.streaming, cache_dir=self.cache_dir)
        return self._corpus

    def _given_tokenizer(self) -> Tokenizer | None:
        if self._chosen is not None:
            return self._chosen
        if self._tokenizer_source is not None:
            return HuggingFaceTokenizer.load(self._tokenizer_source)
        return None if self._alphabet is None else CharacterTokenizer(self._alphabet)

    def _rows(self, tokenizer: Tokenizer) -> Rows:
        return Rows(tokenizer, self.length, self.padded, self.separator)
