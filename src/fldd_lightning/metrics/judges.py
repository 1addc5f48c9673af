"""Judges of text: language models in whose eyes samples are more or less likely."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from math import log
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.hub import hub_error
from ..errors import FLDDError
from ..ranges import AT_LEAST_TWO, COUNT, check_numbers

__all__ = ["CausalLMJudge", "Judge", "Judgement", "NGramJudge"]


@dataclass(frozen=True)
class Judgement:
    """What a judge says of N texts; every token but the first of a text is judged, given those before.

    Attributes:
        nats: -log p of the judged tokens, ``(N,)``.
        tokens: Judged tokens, in the judge's own units, ``(N,)``.
        characters: That they stand for, ``(N,)``.
        unknown: Those of them that the judge's vocabulary lacks, ``(N,)``.
    """

    nats: Tensor
    tokens: Tensor
    characters: Tensor
    unknown: Tensor


class Judge(nn.Module, ABC):
    """Base class; a new judge is one subclass with :meth:`forward` and a name.

    Attributes:
        name: Of the judge, in the names of metrics.
    """

    name: str

    def prepare(self, texts: Iterable[str], alphabet: str | None) -> None:
        """Learn from training texts, where a judge does; called once before any judgement.

        Args:
            texts: Training texts, in the order of the data.
            alphabet: All characters there are, if they are known.
        """

    @abstractmethod
    def forward(self, texts: Sequence[str]) -> Judgement:
        """Judge texts."""

    def features(self, texts: Sequence[str]) -> Tensor:
        """One vector per text, ``(N, F)``, for MAUVE."""
        raise FLDDError(f"{type(self).__name__} has no features for MAUVE; use CausalLMJudge, or set mauve to false.")

    def describe(self) -> str:
        """What to say beside the number."""
        return type(self).__name__


class NGramJudge(Judge):
    """Interpolated n-grams of characters, fitted on the training texts; needs ``pip install "fldd-lightning[text]"``.

    NLTK's Witten-Bell smoothing (1991), mixed with a thousandth of a uniform distribution over the alphabet, so
    that nothing is impossible. It knows spelling and short words and nothing of meaning, and a
    model that repeats one likely phrase pleases it: read it beside entropy and distinct n-grams, and
    beside what it says of real text.

    Args:
        order: n.
        max_characters: Of the training text; a million take about 5 seconds and 400 MB.

    Raises:
        FLDDError: If a number is out of range, or NLTK is missing.
    """

    def __init__(self, order: int = 5, max_characters: int = 1_000_000) -> None:
        check_numbers(locals(), order=AT_LEAST_TWO, max_characters=COUNT)
        super().__init__()
        self.order, self.max_characters, self.name = order, max_characters, f"{order}gram"
        self._alphabet: frozenset[str] = frozenset()
        self._fitted_on = 0
        self._nats: Any = None

    def prepare(self, texts: Iterable[str], alphabet: str | None) -> None:
        try:
            from nltk.lm import Vocabulary, WittenBellInterpolated
            from nltk.util import ngrams
        except ImportError as error:
            raise FLDDError('the n-gram judge needs: pip install "fldd-lightning[text]"') from error
        chosen, self._fitted_on = [], 0
        for text in texts:
            if self._fitted_on >= self.max_characters:
                break
            chosen.append(text)
            self._fitted_on += len(text)
        self._alphabet = frozenset(alphabet if alphabet is not None else "".join(chosen))
        model = WittenBellInterpolated(self.order, vocabulary=Vocabulary(sorted(self._alphabet)))
        model.counts.update([gram for n in range(1, self.order + 1) for gram in ngrams(text, n)] for text in chosen)
        uniform = 1 / max(len(self._alphabet), 1)

        @lru_cache(maxsize=1_000_000)
        def nats(character: str, context: tuple[str, ...]) -> float:
            p = model.unmasked_score(character, context) if character in self._alphabet else 0.0
            return -log((1 - _FLOOR) * float(p) + _FLOOR * uniform)

        self._nats = nats

    def forward(self, texts: Sequence[str]) -> Judgement:
        if self._nats is None:
            raise FLDDError("the n-gram judge has seen no text yet: call prepare with the training texts first.")
        reach = self.order - 1
        nats = [sum(self._nats(c, tuple(text[max(0, i - reach) : i])) for i, c in _judged(text)) for text in texts]
        unknown = [sum(c not in self._alphabet for _, c in _judged(text)) for text in texts]
        tokens = torch.tensor([max(0, len(text) - 1) for text in texts])
        return Judgement(torch.tensor(nats, dtype=torch.float64), tokens, tokens, torch.tensor(unknown))

    def describe(self) -> str:
        return f"Witten-Bell {self.order}-grams of {self._fitted_on} training characters"


class CausalLMJudge(Judge):
    """Any causal language model of ``transformers``, such as ``gpt2-large`` (Lou et al., 2024).

    Args:
        source: A local folder with model and tokenizer, or a name on the hub.
        batch_size: Texts at once.
        dtype: Of its weights, such as ``float32`` or ``bfloat16``; logarithms are in float32.

    Raises:
        FLDDError: If ``transformers`` is missing, the model cannot be read, or its tokenizer is of
            another vocabulary.
    """

    def __init__(self, source: str, batch_size: int = 8, dtype: str = "float32") -> None:
        check_numbers(locals(), batch_size=COUNT)
        super().__init__()
        if dtype not in ("float32", "bfloat16", "float16"):
            raise FLDDError(f"dtype is {dtype!r}, but it must be float32, bfloat16 or float16.")
        try:
            from transformers import AutoModelForCausalLM, AutoTokenizer
        except ImportError as error:
            raise FLDDError('this judge needs: pip install "fldd-lightning[text]"') from error
        self.source, self.batch_size, self.dtype = source, batch_size, dtype
        self.name = Path(source).name
        is_local = Path(source).expanduser().is_dir()
        place = str(Path(source).expanduser()) if is_local else source
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(place, local_files_only=is_local)
            self.model: Any = AutoModelForCausalLM.from_pretrained(
                place, local_files_only=is_local, torch_dtype=getattr(torch, dtype)
            )
        except Exception as error:  # the library raises many kinds
            instead = "Give a local folder that save_pretrained of model and tokenizer has written."
            raise hub_error(f"the judge '{source}'", error, instead) from error
        model: Any = self.model  # a module by assignment, of a class unknown here
        model.eval().requires_grad_(False)
        size = int(model.get_input_embeddings().weight.shape[0])
        if len(self.tokenizer) > size:
            raise FLDDError(
                f"the judge '{source}' is of another vocabulary than its tokenizer: {size} tokens in the model, "
                f"{len(self.tokenizer)} in the tokenizer. Save both of the same model."
            )
        self.max_length = int(getattr(model.config, "max_position_embeddings", None) or 1_024)

    @torch.no_grad()
    def forward(self, texts: Sequence[str]) -> Judgement:
        parts: list[Tensor] = []
        for ids, mask in self._batches(texts):
            log_p = self.model(input_ids=ids, attention_mask=mask).logits[:, :-1].float().log_softmax(-1)
            nats = -log_p.gather(-1, ids[:, 1:].unsqueeze(-1)).squeeze(-1)  # (B, L - 1)
            judged = mask[:, 1:].bool()
            unknown = judged & (ids[:, 1:] == self._unknown)
            characters = torch.tensor([self._characters(row[kept]) for row, kept in zip(ids, mask.bool(), strict=True)])
            sums = (torch.where(judged, nats, 0.0).double().sum(1), judged.sum(1), characters, unknown.sum(1))
            parts.append(torch.stack([value.double().cpu() for value in sums]))
        nats, tokens, characters, unknown = torch.cat([torch.zeros(4, 0, dtype=torch.float64), *parts], 1)
        return Judgement(nats, tokens.long(), characters.long(), unknown.long())

    @torch.no_grad()
    def features(self, texts: Sequence[str]) -> Tensor:
        """Hidden state of the last token, as in Pillutla et al. (2021)."""
        parts = [torch.zeros(0, self.model.config.hidden_size)]
        for ids, mask in self._batches(texts):
            hidden = self.model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states[-1]
            last = (mask.sum(1) - 1).clamp_min(0)
            parts.append(hidden[torch.arange(len(ids), device=ids.device), last].float().cpu())
        return torch.cat(parts)

    def describe(self) -> str:
        return f"{self.source} in {self.dtype}, at most {self.max_length} tokens a text"

    @property
    def _unknown(self) -> int:
        """The token for what has none; -1 where it has a use of its own, as in GPT-2, which writes all bytes."""
        tokenizer = self.tokenizer
        is_own = tokenizer.unk_token_id is not None and tokenizer.unk_token_id != tokenizer.eos_token_id
        return int(tokenizer.unk_token_id) if is_own else -1

    def _characters(self, ids: Tensor) -> int:
        """Characters of tokens, those of the first left out."""
        decode = self.tokenizer.decode
        return len(decode(ids, clean_up_tokenization_spaces=False)) - len(decode(ids[:1]))

    def _batches(self, texts: Sequence[str]) -> Iterable[tuple[Tensor, Tensor]]:
        """Tokens and their mask, ``(B, L)`` each, on the model's device; short texts are filled up."""
        device = self.model.device
        iterator = iter(texts)
        while batch := list(islice(iterator, self.batch_size)):
            encoded = self.tokenizer(batch, add_special_tokens=False, truncation=True, max_length=self.max_length)
            rows = [torch.tensor(ids, dtype=torch.long) for ids in encoded["input_ids"]]
            length = max(1, *(len(row) for row in rows))
            ids = torch.stack([F.pad(row, (0, length - len(row))) for row in rows])
            mask = torch.stack([F.pad(torch.ones_like(row), (0, length - len(row))) for row in rows])
            yield ids.to(device), mask.to(device)


_FLOOR = 1e-3


def _judged(text: str) -> Iterable[tuple[int, str]]:
    return islice(enumerate(text), 1, None)
