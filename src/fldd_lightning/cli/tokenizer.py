"""``tokenizer``: trains a byte-pair encoding on a corpus."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jsonargparse import auto_cli

from ..data.corpus import read_corpus
from ..errors import FLDDError
from .mistakes import OptionParser

__all__ = ["tokenizer_command", "train_tokenizer"]


def train_tokenizer(
    output: str,
    vocab_size: int = 2_048,
    path: str | None = None,
    name: str | None = None,
    subset: str | None = None,
    column: str | None = None,
) -> None:
    """Train a byte-level BPE (Sennrich et al., 2016; as in GPT-2) on the training split of a corpus.

    It covers every text: what has no longer token is written in bytes. Needs
    pip install "fldd-lightning[text]".

    Args:
        output: Where to write the tokenizer.json, for --data.tokenizer.
        vocab_size: Tokens, the 256 bytes included.
        path: Corpus, as --data.path of fit; without path and name the one that Python carries.
        name: A data set of the Hugging Face hub.
        subset: One of its configurations.
        column: Column with the texts.
    """
    if vocab_size < 257:
        raise FLDDError(f"vocab_size is {vocab_size}, but 256 are bytes alone. Use 257 or more, or characters.")
    try:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    except ImportError as error:
        raise FLDDError('the subcommand tokenizer needs: pip install "fldd-lightning[text]"') from error
    corpus = read_corpus(path, name, subset, column)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(iter(corpus.splits["train"]), trainer)
    file = Path(output)
    file.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(file))
    print(f"wrote {output}: {tokenizer.get_vocab_size()} tokens from {corpus.what}")


def tokenizer_command(args: Sequence[str]) -> None:
    """Parse the options of ``tokenizer`` and run it."""
    auto_cli(
        train_tokenizer,
        args=list(args),
        as_positional=False,
        prog="fldd-lightning tokenizer",
        parser_class=OptionParser,
    )
