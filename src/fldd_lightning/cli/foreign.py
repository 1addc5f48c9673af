"""Which errors of other libraries are mistakes of the user, and what to say of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from ..errors import FLDDError
from ..memory import told_bytes
from .words import WRONG_TYPE, in_words

__all__ = ["causes", "mistakes_first"]

# Libraries that are handed options as they stand: what they raise themselves is about these.
_TAKE_OPTIONS = ("jsonargparse", "lightning", "lightning_utilities", "yaml")
_NO_MEMORY = ("can't allocate memory", "not enough memory", "overflow when unpacking", "out of memory")
_BYTES = re.compile(r"allocate (\d+) bytes")
_WHERE = "FLDD_TRACEBACK=1 shows where."
_ALTERNATIVE = re.compile(r"^\s*- (?!Expected a <class|Problem with)(.+)$", re.MULTILINE)  # of a union of types


@contextmanager
def mistakes_first() -> Iterator[None]:
    """Raise the user's mistake behind an error, which the argument parser wraps in errors of its own.

    What a network or a class of the user's raises is left as it is, with its traceback: it may be a bug.
    """
    try:
        yield
    except FLDDError:
        raise
    except Exception as error:
        mistake = _mistake_in(error)
        if mistake is None:
            raise
        raise mistake from error


def _mistake_in(error: Exception) -> FLDDError | None:
    chain = list(causes(error))
    for step in chain:
        if isinstance(step, FLDDError):
            return step
        if isinstance(step, MisconfigurationException):
            return FLDDError(str(step))
    if _raised_by(error) != "jsonargparse":
        said = _told(error)
        return None if said is None else FLDDError(said)
    if WRONG_TYPE.match(str(chain[-1])) and (other := _ALTERNATIVE.search("\n".join(map(str, chain)))):
        return FLDDError(f"{_ended(other[1])} {_WHERE}")  # a class that could not be made, where a list would do, too
    said = _told(chain[-1])
    return None if said is None else FLDDError(in_words(said))


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, that behind it, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _told(error: BaseException) -> str | None:
    """A paragraph on an error; None if it may be a bug."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or any(sign in str(error) for sign in _NO_MEMORY):
        number = _BYTES.search(str(error))
        wanted = f": {told_bytes(int(number[1]))} were asked for at once" if number else f": {lines[0].rstrip('.')}"
        return f"the memory does not suffice{wanted}. Make the model, --data.batch_size or the data smaller."
    if isinstance(error, OSError):
        named = f" '{error.filename}'" if error.filename else ""
        reason = _ended(error.strerror or lines[0])
        return f"cannot read or write{named}: {reason} Choose another path, or make room. {_WHERE}"
    if _raised_by(error) in _TAKE_OPTIONS:
        return f"{_ended(' '.join(lines))} {_WHERE}"
    return None


def _raised_by(error: BaseException) -> str:
    """The package that raised an error."""
    trace, package = error.__traceback__, ""
    while trace is not None:
        package = str(trace.tb_frame.f_globals.get("__name__", "")).partition(".")[0]
        trace = trace.tb_next
    return package


def _ended(sentence: str) -> str:
    return sentence.rstrip(".") + "."
