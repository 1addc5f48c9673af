"""What ``sample`` is given: a file of an array or of rows, a prompt, or a text with blanks."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..data.archive import read_npy
from ..errors import FLDDError
from ..module import FLDD
from ..table import TableFLDD
from ..text import TextFLDD

__all__ = ["CLAMPED", "read_given", "read_numbers"]

CLAMPED = (
    "What is given was clamped: the model was not trained to complete examples, and samples may not follow it as they "
    "should. Train with model.observed=0.5 for that."
)


def read_given(model: FLDD, file: str | None, prompt: str | None, infill: str | None) -> Tensor | None:
    """What the options of ``sample`` give, as ``model.sample`` takes it; None if none of them is there.

    Args:
        model: The model.
        file: A ``.npy`` of integers ``shape`` or ``(n, *shape)``, -1 where nothing is given; for models of tables also
            a ``.csv`` of rows.
        prompt: How texts start.
        infill: A text with blanks.

    Raises:
        FLDDError: If more than one is there, the file cannot be read, or the model writes no text.
    """
    named = {"--given": file, "--prompt": prompt, "--infill": infill}
    used = [name for name, value in named.items() if value is not None]
    if len(used) > 1:
        raise FLDDError(f"{' and '.join(used)} say the same thing: use one of them.")
    if file is not None:
        is_table = file.lower().endswith((".csv", ".csv.gz"))
        return _read_rows(Path(file), model) if is_table else _read(Path(file))
    text = prompt if prompt is not None else infill
    if text is None:
        return None
    if not text:
        raise FLDDError(f"{used[0]} is empty: give a text, or leave it out.")
    if not isinstance(model, TextFLDD):
        raise FLDDError(f"{used[0]} is for models of text, not {type(model).__name__}: use --given FILE.")
    if (infill is not None) == (text.count("___") == 0):
        raise FLDDError(
            f"the blanks of --infill are runs of three underscores or more, as in 'a ___ b'; --prompt has none. This "
            f"is {text!r}."
        )
    return model.given_text(text)


def _read_rows(path: Path, model: FLDD) -> Tensor:
    """What the rows of a table give."""
    if not isinstance(model, TableFLDD):
        raise FLDDError(f"--given takes a .csv for models of tables, not {type(model).__name__}: give a .npy.")
    opened = gzip.open if path.name.lower().endswith(".gz") else open
    try:
        with opened(path, "rt", newline="", encoding="utf-8-sig") as file:
            head, *rows = [*csv.reader(file, strict=True)] or [[]]
    except (OSError, ValueError, csv.Error) as error:
        raise FLDDError(
            f"cannot read '{path}': {_reason(error)}. --given takes a .csv in UTF-8, with a header."
        ) from error
    head = [name.strip() for name in head]
    # a blank line is an entry that is missing, where there is one column alone
    rows = [row or [""] for row in rows if row or len(head) == 1]
    if len(set(head)) < len(head):
        raise FLDDError(f"'{path}' has a column twice: {', '.join(head)}. Leave one of them out.")
    for i, row in enumerate(rows):
        if len(row) != len(head):
            raise FLDDError(
                f"'{path}': row {i} (from 0) has {len(row)} fields, and the header {len(head)}. Correct it."
            )
    try:
        return model.given_rows([dict(zip(head, row, strict=True)) for row in rows])
    except FLDDError as error:
        raise FLDDError(f"'{path}': {error}") from error


def _read(path: Path) -> Tensor:
    """The integers of a file."""
    integers = "integers, which --given takes; -1 stands for what is not known"
    return torch.from_numpy(read_numbers(path, "--given", "iu", "integers", integers).astype(np.int64))


def read_numbers(path: Path, option: str, kinds: str, what: str, wanted: str) -> np.ndarray:
    """The array of a ``.npy`` file that an option names.

    Args:
        path: The file.
        option: The option.
        kinds: Numpy's letters of the kinds of numbers that it takes.
        what: What these are called.
        wanted: What to say that the file does not hold.

    Raises:
        FLDDError: If the file cannot be read, or holds something else.
    """
    try:
        array = read_npy(path)
    except FLDDError:
        raise
    except (OSError, ValueError) as error:
        said = _reason(error)
        said = "it is no array of numbers" if "pickle" in said else said.rstrip(".")  # numpy's advice is not safe
        raise FLDDError(f"cannot read '{path}': {said}. {option} takes a .npy file of {what}.") from error
    if not isinstance(array, np.ndarray):
        raise FLDDError(f"'{path}' is no .npy file with one array: {option} takes one of {what}.")
    if array.dtype.kind not in kinds:
        raise FLDDError(f"'{path}' holds no array of {wanted}.")
    return array


def _reason(error: Exception) -> str:
    """Why a file cannot be read, without its name."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
