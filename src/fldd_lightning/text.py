"""The text module: lengths beside the networks, bounds per token and character, samples as text."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from .data import TextDataModule, Tokenizer
from .data.tokenizer import restore_tokenizer
from .errors import FLDDError
from .metrics import TokenBound
from .module import FLDD

__all__ = ["TextFLDD"]


class TextFLDD(FLDD):
    """Sequences of tokens, shape ``(length,)``, with PAD at the end if the problem has it.

    With padding it models the length n and the text given it:

        -log p(text) = -log p(n) - log p(text | n) <= -log p(n) + sum_t E KL,

    p(n) being the smoothed frequencies of the training lengths, which are counted, not trained
    (``*/length_nll``, nats per example). PAD itself is given with n, and costs nothing. Samples
    draw n first.

    Beside what :class:`FLDD` logs: ``*/bits_per_token`` and ``*/bits_per_char``, the whole bound over
    the tokens that are not PAD and over the characters they decode to, and ``*/ppl_bound``, the
    exponential of the bound in nats per token: an upper bound of the perplexity.

    The tokenizer is taken from the :class:`TextDataModule` and goes into the checkpoint; without
    one, :meth:`texts` and bits per character are not available.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if len(self.problem.shape) != 1:
            raise FLDDError(f"TextFLDD needs sequences, shape (length,), not {self.problem.shape}.")
        self.tokenizer: Tokenizer | None = None
        # No buffer: the averaged weights are copied, buffers and all, before anything is counted.
        self.length_log_p: Tensor | None = None

    def setup(self, stage: str) -> None:
        """Takes the tokenizer from the data module and, unless a checkpoint has them, the lengths."""
        super().setup(stage)
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, TextDataModule):
            return
        if data.padded != self.problem.padded:
            raise FLDDError(f"data.padded is {data.padded}, but the model was built with {self.problem.padded}.")
        self.tokenizer = self._same_tokenizer(data.tokenizer)
        if self.problem.padded and (stage == "fit" or self.length_log_p is None):
            self.count_lengths(data.length_counts)

    def count_lengths(self, counts: Tensor) -> None:
        """Set p(n) for n = 1..length.

        Args:
            counts: How many training examples have n tokens, ``(length + 1,)``; one is added to each
                but the 0th.
        """
        counts = counts.double() + 1
        counts[0] = 0
        self.length_log_p = (counts / counts.sum()).log().float()

    def lengths(self, x: Tensor) -> Tensor:
        """Tokens of each example that are not PAD, ``(B,)`` for ``(B, length)``.

        Raises:
            FLDDError: If PAD stands before a token.
        """
        if self.problem.pad is None:
            return torch.full((len(x),), self.problem.num_dims, device=x.device)
        live = x != self.problem.pad
        if bool((live[:, 1:] & ~live[:, :-1]).any()):
            raise FLDDError("PAD stands before a token: pad examples at their end only.")
        return live.sum(1)

    def texts(self, x: Tensor) -> list[str]:
        """Decode integers ``(N, length)``; PAD is left out and MASK shown as ``·``."""
        if self.tokenizer is None:
            raise FLDDError("this model has no tokenizer: train it on a TextDataModule, or set model.tokenizer.")
        size, pad = self.tokenizer.vocab_size, self.problem.pad
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

    # ---- hooks ----------------------------------------------------------------------------

    def to_text(self, x: Tensor) -> list[str] | None:
        r""":meth:`texts` with line breaks as ``\n`` and backslashes doubled; None without a tokenizer."""
        if self.tokenizer is None:
            return None
        return [text.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r") for text in self.texts(x)]

    def sample_padding(self, num_samples: int, generator: torch.Generator) -> Tensor | None:
        if not self.problem.padded:
            return None
        p = self._known_lengths().exp().to(generator.device)
        n = torch.multinomial(p, num_samples, True, generator=generator)
        return torch.arange(self.problem.num_dims, device=n.device) >= n.unsqueeze(1)

    def extra_term_names(self) -> tuple[str, ...]:
        return ("length_nll",) if self.problem.padded else ()

    def extra_terms(self, batch: Any) -> dict[str, Tensor]:
        if not self.problem.padded:
            return {}
        return {"length_nll": -self._known_lengths()[self.lengths(self.data(batch))]}

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
        checkpoint["fldd_length_log_p"] = self.length_log_p

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.length_log_p = checkpoint.get("fldd_length_log_p")
        state = checkpoint.get("fldd_tokenizer")
        if state is not None:
            self.tokenizer = self._same_tokenizer(restore_tokenizer(state))

    def _known_lengths(self) -> Tensor:
        """Log p(n), ``(length + 1,)``."""
        if self.length_log_p is None:
            raise FLDDError("the model knows no lengths yet: train it on a TextDataModule, or call count_lengths.")
        return self.length_log_p.to(self.device)

    def _same_tokenizer(self, other: Tokenizer) -> Tokenizer:
        """``other``, if it does not contradict the tokenizer that is there already."""
        if self.tokenizer is not None and self.tokenizer.fingerprint != other.fingerprint:
            raise FLDDError(
                f"the tokenizer of the data does not match the checkpoint: {self.tokenizer.describe()} against "
                f"{other.describe()}. Use the corpus, --data.alphabet or --data.tokenizer of the training."
            )
        return other
