"""``tokenizer``: trains a byte-pair encoding or a list of words on a corpus."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..data.corpus import read_corpus
from ..errors import FLDDError
from .checkpoint_data import check_free, check_output, run_options, write_whole
from .processes import one_process

__all__ = ["tokenizer_command", "train_tokenizer"]


_MOST = 2**24
_UNKNOWN = "[UNK]"
_PIECES = r"\n| ?\w+| ?[^\s\w]+|\s"  # a line break, a word or punctuation with the space before it, other space


def train_tokenizer(
    output: str,
    vocab_size: int = 2_048,
    words: bool = False,
    path: str | None = None,
    name: str | None = None,
    subset: str | None = None,
    column: str | None = None,
) -> None:
    """Train a tokenizer on the training split of a corpus: a byte-level BPE, or a list of words.

    The byte-level BPE (Sennrich et al., 2016; as in GPT-2) covers every text: what has no longer token is written in
    bytes. With words, a token is a word or punctuation, with the space before it; a line break is a token, too. What is
    not among the most frequent is one token, [UNK]. All else comes back as it was. Needs
    pip install "fldd-lightning[text]".

    Args:
        output: Where to write the tokenizer.json, for --data.tokenizer.
        vocab_size: Tokens, the 256 bytes or [UNK] and the line break included.
        words: Words as tokens, in place of a BPE.
        path: Corpus, as --data.path of fit; without path and name the one that Python carries.
        name: A data set of the Hugging Face hub.
        subset: One of its configurations.
        column: Column with the texts.
    """
    least = 3 if words else 257
    if vocab_size < least:
        own = "the line break and [UNK] are two" if words else "256 are bytes"
        raise FLDDError(f"vocab_size is {vocab_size}, but {own} alone. Use {least} or more.")
    if vocab_size > _MOST:
        raise FLDDError(f"vocab_size is {vocab_size}, but more than {_MOST:,} tokens are more than networks can take.")
    try:
        import tokenizers  # noqa: F401
    except ImportError as error:
        raise FLDDError('the subcommand tokenizer needs: pip install "fldd-lightning[text]"') from error
    file = Path(output)
    check_output(file)
    if file.is_dir():
        raise FLDDError(f"'{file}' is a folder. Give the name of a file as --output.")
    check_free(file)
    corpus = read_corpus(path, name, subset, column)
    tokenizer, trainer = _words(vocab_size) if words else _bytes(vocab_size)
    tokenizer.train_from_iterator(iter(corpus.splits["train"]), trainer)
    write_whole(file, tokenizer.to_str(pretty=True))
    print(f"wrote {output}: {tokenizer.get_vocab_size()} tokens from {corpus.what}")


def _bytes(vocab_size: int) -> tuple[Any, Any]:
    """An untrained byte-level BPE and its trainer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return tokenizer, trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)


def _words(vocab_size: int) -> tuple[Any, Any]:
    """An untrained list of words and its trainer. The line break joins documents, so it is there in any case."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.WordLevel({}, unk_token=_UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_PIECES), "isolated")
    tokenizer.decoder = decoders.Fuse()
    special = [_UNKNOWN, "\n"]
    return tokenizer, trainers.WordLevelTrainer(vocab_size=vocab_size, special_tokens=special, show_progress=False)


def tokenizer_command(args: Sequence[str]) -> None:
    """Parse the options of ``tokenizer`` and run it."""
    one_process("tokenizer")
    run_options(train_tokenizer, "tokenizer", args)
