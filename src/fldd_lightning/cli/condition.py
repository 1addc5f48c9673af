"""What ``sample --condition`` asks for: labels and vectors, by the names of their latents."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import FLDDError
from ..latents import ConditionLatent
from ..module import FLDD
from .given import read_numbers

__all__ = ["condition_words", "read_condition"]

_HOW = "Write --condition 3, --condition label=3, --condition label=0 1 2, or --condition NAME=FILE.npy."


def condition_words(args: Sequence[str]) -> list[str]:
    """The options with all words of every ``--condition`` as one list, which the parser takes."""
    args, others, values, is_given = list(args), [], [], False
    while args:
        word = args.pop(0)
        name, equals, value = word.partition("=")
        if name != "--condition":
            others.append(word)
            continue
        is_given = True
        values += [value] if equals else []
        while args and not re.match(r"--|-[a-z]", args[0]):  # -0.5 is a number
            values.append(args.pop(0))
    return [*others, "--condition", json.dumps(values)] if is_given else others


def read_condition(model: FLDD, words: Sequence[object]) -> dict[str, Tensor]:
    """The values of each latent, by its name.

    Args:
        model: The model.
        words: ``NAME=VALUE``, and further values of the same latent. A model with a single one needs no name. A value
            is a number, or a ``.npy`` file of them.

    Raises:
        FLDDError: If there is no value, the name is missing and not clear, a value is no number, or a file cannot be
            read.
    """
    possible = [latent.name for latent in model.latents if isinstance(latent, ConditionLatent)]
    values: dict[str, list[str]] = {}
    name = possible[0] if len(possible) == 1 else None
    for word in map(str, words):
        before, equals, after = word.partition("=")
        if equals:
            name = before
            if name in values:
                raise FLDDError(f"--condition names '{name}' twice. {_HOW}")
        if name is None:
            if not possible:
                raise FLDDError(
                    "--condition is given, but this model has no LabelLatent and no VectorLatent: leave it out."
                )
            named = " ".join(f"{each}={'FILE.npy' if index else word}" for index, each in enumerate(possible))
            raise FLDDError(
                f"--condition {word} does not say of what; this model has several: {', '.join(possible)}. "
                f"Write --condition {possible[0]}={word}, or --condition {named} for more than one."
            )
        values.setdefault(name, []).append(after if equals else word)
    if not values:
        raise FLDDError(f"--condition has no value. {_HOW}")
    return {name: _numbers(name, each) for name, each in values.items()}


def _numbers(name: str, words: list[str]) -> Tensor:
    """Numbers of a file, or those that stand there themselves."""
    if len(words) == 1 and words[0].endswith(".npy"):
        array = read_numbers(Path(words[0]), "--condition", "iuf", "numbers", "numbers, which --condition takes")
        return torch.from_numpy(array.astype(np.float32 if array.dtype.kind == "f" else np.int64))
    for kind in (int, float):
        try:
            return torch.tensor([kind(word) for word in words])
        except ValueError:
            continue
    wrong = next((word for word in words if not _is_number(word)), "")
    raise FLDDError(f"--condition {name} has the value '{wrong}', which is no number. {_HOW}")


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
