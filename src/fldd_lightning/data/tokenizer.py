"""Tokenizers: characters, and those of the Hugging Face ``tokenizers`` library."""

from __future__ import annotations

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import FLDDError
from ..factory import build
from .hub import download

__all__ = ["CharacterTokenizer", "HuggingFaceTokenizer", "Tokenizer", "restore_tokenizer"]


class Tokenizer(ABC):
    """Text to integers 0..``vocab_size``-1 and back."""

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """One more than the largest token."""

    @property
    def unknown(self) -> int | None:
        """The token that stands for what has none, if there is such a token."""
        return None

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Integers of each text, ``(tokens,)``.

        Raises:
            FLDDError: If a text cannot be written in these tokens.
        """

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """The text of integers."""

    def count_characters(self, ids: Sequence[int]) -> int:
        """Characters of the text that integers were made from; one of which only a part is there does not count."""
        return len(self.decode(ids))

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """All it consists of, as a recipe of plain values: what checkpoints hold. See :func:`restore_tokenizer`."""

    @cached_property
    def fingerprint(self) -> str:
        """Changes whenever a token does."""
        return hashlib.sha256(json.dumps(self.state(), sort_keys=True).encode()).hexdigest()[:16]

    @abstractmethod
    def describe(self) -> str:
        """What to call it in messages."""


def restore_tokenizer(state: dict[str, Any]) -> Tokenizer:
    """The tokenizer of a :meth:`Tokenizer.state`.

    Raises:
        FLDDError: If it names a class that is not trusted: states come from checkpoints, which others may have made.
    """
    return build(state, Tokenizer)


class CharacterTokenizer(Tokenizer):
    """One token for every character of an alphabet.

    Args:
        alphabet: The characters; token i is the i-th of them.

    Raises:
        FLDDError: If a character occurs twice, or there are fewer than two.
    """

    def __init__(self, alphabet: str) -> None:
        if len(set(alphabet)) != len(alphabet) or len(alphabet) < 2:
            raise FLDDError(f"the alphabet {alphabet!r} needs two characters or more, each of them once.")
        self.alphabet = alphabet
        codes = np.array([ord(c) for c in alphabet])
        self._table = np.full(codes.max() + 2, -1)  # the last entry stands for all characters beyond
        self._table[codes] = np.arange(len(codes))

    @classmethod
    def of(cls, texts: Iterable[str]) -> CharacterTokenizer:
        """With the characters that occur in texts, in order of their code points."""
        found: set[str] = set()
        for text in texts:
            found.update(text)
        if len(found) < 2:
            raise FLDDError(f"the corpus holds {len(found)} different characters: there is nothing to learn from it.")
        return cls("".join(sorted(found)))

    @property
    def vocab_size(self) -> int:
        return len(self.alphabet)

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [self._encode(text) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self.alphabet[i] for i in ids)

    def state(self) -> dict[str, Any]:
        return {"class_path": "fldd_lightning.data.CharacterTokenizer", "init_args": {"alphabet": self.alphabet}}

    def describe(self) -> str:
        return f"{len(self.alphabet)} characters {self.alphabet!r}"

    def _encode(self, text: str) -> np.ndarray:
        # lone surrogates have no encoding of their own, but a code point all the same
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        ids = self._table[np.minimum(codes, len(self._table) - 1)]
        if len(ids) and ids.min() < 0:
            at = int(ids.argmin())
            raise FLDDError(
                f"the character {text[at]!r} (in {text[max(0, at - 20) : at + 20]!r}) is not among the "
                f"{self.describe()}. Remove it from the text, or train with --data.alphabet, all characters there are."
            )
        return ids


class HuggingFaceTokenizer(Tokenizer):
    """Any tokenizer of the ``tokenizers`` library, from the text of its ``tokenizer.json``.

    Special tokens are not added. Needs ``pip install "fldd-lightning[text]"``.

    Args:
        definition: Contents of a ``tokenizer.json``.

    Raises:
        FLDDError: If the library is missing or the text is no such definition.
    """

    def __init__(self, definition: str) -> None:
        try:
            from tokenizers import Tokenizer as Library
        except ImportError as error:
            raise FLDDError('this tokenizer needs: pip install "fldd-lightning[text]"') from error
        try:
            self.library = Library.from_str(definition)
        except Exception as error:  # the library raises plain Exceptions
            raise FLDDError(f"this is no tokenizer.json: {error}") from error
        self.library.no_padding()
        self.library.no_truncation()
        self.definition = definition
        self._vocab_size = max(self.library.get_vocab().values(), default=-1) + 1  # numbers may be left out
        name = getattr(self.library.model, "unk_token", None)
        # Unigram models know theirs by number, which the library does not hand out
        number = json.loads(definition)["model"].get("unk_id")
        self._unknown: int | None = number if name is None else self.library.token_to_id(name)
        self._covered: set[str] = set()  # characters that have been seen to have a token

    @classmethod
    def load(cls, source: str) -> HuggingFaceTokenizer:
        """Read a tokenizer.

        Args:
            source: A ``tokenizer.json``, a folder with one, or a name on the hub.

        Raises:
            FLDDError: If there is none, or it cannot be read.
        """
        path = Path(source).expanduser()
        if path.is_dir():
            path = path / "tokenizer.json"
        elif not path.is_file():
            looks_local = path.suffix == ".json" or source.startswith((".", "~", os.sep)) or source.count("/") > 1
            if looks_local:
                raise FLDDError(f"there is no tokenizer at '{source}'. 'fldd-lightning tokenizer' trains one.")
            path = download(source, "tokenizer.json", "Set --data.tokenizer to a local tokenizer.json instead.")
        try:
            return cls(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, FLDDError) as error:
            raise FLDDError(
                f"cannot read the tokenizer '{path}': {error}. 'fldd-lightning tokenizer' trains one, and "
                "save_pretrained of a fast tokenizer in transformers writes one."
            ) from error

    @property
    def vocab_size(self) -> int:
        return self._vocab_size

    @property
    def unknown(self) -> int | None:
        return self._unknown

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        parts = [list(_pieces(text)) for text in texts]
        try:
            encoded = iter(self.library.encode_batch([p for part in parts for p in part], add_special_tokens=False))
        except Exception as error:  # the library raises plain Exceptions
            raise FLDDError(f"the {self.describe()} cannot write this text: {error}. {_OTHERS}") from error
        results = []
        for part in parts:
            rows = [np.zeros(0, np.int64)]
            for piece in part:
                ids = next(encoded).ids
                self._check_covered(piece, ids)
                rows.append(np.array(ids, np.int64))
            results.append(np.concatenate(rows))
        return results

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.library.decode(list(ids), skip_special_tokens=False))

    def count_characters(self, ids: Sequence[int]) -> int:
        known = [i for i in ids if i != self._unknown]
        if self.library.decoder is None:  # decode would put spaces in between
            text = "".join(self.library.id_to_token(i) or "" for i in known)
        else:
            text = self.decode(known)  # pieces of a character that a block's end has cut decode to U+FFFD
        return len(text) - text.count("\ufffd") + len(ids) - len(known)

    def state(self) -> dict[str, Any]:
        return {
            "class_path": "fldd_lightning.data.HuggingFaceTokenizer",
            "init_args": {"definition": self.definition},
        }

    def describe(self) -> str:
        return f"{type(self.library.model).__name__} tokenizer of {self.vocab_size} tokens"

    def _check_covered(self, text: str, ids: list[int]) -> None:
        """Raise for a character that was left out without a word, as BPE does; others put their unknown token there."""
        if self._unknown is not None or self._covered.issuperset(text):
            return
        normalizer = self.library.normalizer
        wanted = text if normalizer is None else normalizer.normalize_str(text)
        for character in sorted(set(wanted) - set(self.decode(ids))):
            if not character.isspace():
                at = wanted.index(character)
                raise FLDDError(
                    f"the {self.describe()} has no token for {character!r} (in {wanted[max(0, at - 20) : at + 20]!r}) "
                    f"and leaves it out. {_OTHERS}"
                )
        self._covered.update(text)


_OTHERS = (
    "Train one on this corpus with 'fldd-lightning tokenizer', or take one that works on bytes or has a token for what "
    "is unknown."
)
_PIECE = 1_000_000  # characters; the library needs some hundred bytes for each


def _pieces(text: str) -> Iterator[str]:
    """Long texts in parts, cut before a space where there is one."""
    start = 0
    while len(text) - start > _PIECE:
        cut = text.rfind(" ", start + 1, start + _PIECE)
        cut = cut if cut > 0 else start + _PIECE
        yield text[start:cut]
        start = cut
    if start < len(text):
        yield text[start:]
