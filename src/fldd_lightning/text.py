"""The text module: bounds per token and character, samples as text."""

from __future__ import annotations

import re
from itertools import zip_longest
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from .data import TextDataModule, Tokenizer
from .data.tokenizer import CharacterTokenizer, restore_tokenizer
from .errors import FLDDError
from .metrics import TokenBound
from .module import FLDD

__all__ = ["TextFLDD"]


class TextFLDD(FLDD):
    """Sequences of tokens, shape ``(length,)``, with PAD at the end if the problem has it.

    Padded sequences have a :class:`LengthLatent`: with n tokens that are not PAD,
    -log p(text) <= -log p(n) + sum_t E KL given n.

    Beside what :class:`FLDD` logs: ``*/bits_per_token`` and ``*/bits_per_char``, the whole bound over
    the tokens that are not PAD and over the characters they decode to, and ``*/ppl_bound``, the
    exponential of the bound in nats per token: an upper bound of the perplexity.

    The tokenizer is taken from the :class:`TextDataModule` and goes into the checkpoint; without
    one, :meth:`texts` and bits per character are not available.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if len(self.spec.shape) != 1:
            raise FLDDError(f"TextFLDD needs sequences, shape (length,), not {self.spec.shape}.")
        self.tokenizer: Tokenizer | None = None

    def adopt(self, data: Any) -> None:
        """Takes the tokenizer, too."""
        super().adopt(data)
        if not isinstance(data, TextDataModule):
            return
        if data.padded != self.spec.padded:
            raise FLDDError(f"data.padded is {data.padded}, but the model was built with {self.spec.padded}.")
        self.tokenizer = self._same_tokenizer(data.tokenizer)

    def lengths(self, x: Tensor) -> Tensor:
        """Tokens of each example that are not PAD, ``(B,)`` for ``(B, length)``."""
        if self.spec.pad is None:
            return torch.full((len(x),), self.spec.num_dims, device=x.device)
        return (x != self.spec.pad).sum(1)

    def texts(self, x: Tensor) -> list[str]:
        """Decode integers ``(N, length)``; PAD is left out and MASK shown as ``·``."""
        if self.tokenizer is None:
            raise FLDDError("this model has no tokenizer: train it on a TextDataModule, or set model.tokenizer.")
        size, pad = self.tokenizer.vocab_size, self.spec.pad
        texts = []
        for row in x.tolist():
            text, run = "", []
            for token in row:
                if token < size:
                    run.append(token)
                elif token != pad:
                    text, run = text + self.tokenizer.decode(run) + "·", []
            texts.append(text + self.tokenizer.decode(run))
        return texts

    def given_text(self, text: str) -> Tensor:
        """What a text with blanks gives, for :meth:`sample`: ``(length,)``, -1 where nothing is given.

        A blank is a run of three underscores or more, and stands for as many tokens: of the tokenizer of characters, as
        many characters. What follows the text is not given either. The parts between blanks are tokens each by itself.

        Args:
            text: A prompt, such as ``"The"``, or a text with blanks, such as ``"a ___ b"``.

        Raises:
            FLDDError: If the text is longer than the model's, has a character or a word without a token, or there is
                no tokenizer.
        """
        if self.tokenizer is None:
            raise FLDDError("this model has no tokenizer: train it on a TextDataModule, or set model.tokenizer.")
        parts = re.split(r"(_{3,})", text)
        known = self.tokenizer.alphabet if isinstance(self.tokenizer, CharacterTokenizer) else "_"
        if "_" not in known and any("_" in part and not _is_blank(part) for part in parts):
            raise FLDDError(
                f"a blank is a run of three underscores or more, and {shorten(text, 60)!r} has a shorter one."
            )
        encoded = self.tokenizer.encode([part for part in parts if not _is_blank(part)])
        blanks = [torch.full((len(part),), -1) for part in parts if _is_blank(part)]
        tokens = [torch.from_numpy(each.astype("int64")) for each in encoded]
        given = torch.cat([each for pair in zip_longest(tokens, blanks) for each in pair if each is not None])
        if self.tokenizer.unknown in given.tolist():
            raise FLDDError(
                f"the text {shorten(text, 60)!r} has a word that {self.tokenizer.describe()} does not know, and "
                "the model would not be given it. Use words of the training text, or a blank of three underscores."
            )
        if len(given) > self.spec.num_dims:
            raise FLDDError(f"the text has {len(given)} tokens, but the model's have {self.spec.num_dims}: shorten it.")
        return torch.cat([given, torch.full((self.spec.num_dims - len(given),), -1)])

    # ---- hooks ----------------------------------------------------------------------------

    def to_text(self, x: Tensor) -> list[str] | None:
        r""":meth:`texts` with line breaks as ``\n`` and backslashes doubled; None without a tokenizer."""
        if self.tokenizer is None:
            return None
        return [text.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r") for text in self.texts(x)]

    def make_metrics(self) -> dict[str, Metric]:
        return {"tokens": TokenBound()}

    def update_metrics(self, metrics: dict[str, Metric], batch: Any, nelbo: Tensor) -> None:
        x = self.data(batch)
        characters = 0
        if self.tokenizer is not None:
            size, count = self.tokenizer.vocab_size, self.tokenizer.count_characters
            characters = sum(count([token for token in row if token < size]) for row in x.tolist())
        metrics["tokens"].update(nelbo, self.lengths(x), characters)

    # ---- checkpoints ----------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["fldd_tokenizer"] = None if self.tokenizer is None else self.tokenizer.state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        state = checkpoint.get("fldd_tokenizer")
        if state is not None:
            self.tokenizer = self._same_tokenizer(restore_tokenizer(state))

    def _same_tokenizer(self, other: Tokenizer) -> Tokenizer:
        """``other``, if it does not contradict the tokenizer that is there already."""
        if self.tokenizer is not None and self.tokenizer.fingerprint != other.fingerprint:
            raise FLDDError(
                f"the tokenizer of the data does not match the checkpoint: {self.tokenizer.describe()} against "
                f"{other.describe()}. Use the corpus, --data.alphabet or --data.tokenizer of the training."
            )
        return other


def _is_blank(part: str) -> bool:
    """Whether a part of a text stands for tokens that are not given."""
    return part.startswith("___") and not part.strip("_")
