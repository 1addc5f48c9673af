"""What a part of a model takes of memory, known before it is made: the system would end the program for it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from functools import partial
from itertools import chain
from math import prod
from typing import Any

import torch
from torch import nn

from .memory import check_memory
from .spec import Spec

__all__ = ["check_size"]

_LARGE = 2**28  # numbers, from which a part is looked at: 1 GiB in float32
_USUAL = (1024, 64)  # widths that no option may say
_on_trial = ContextVar("on_trial", default=False)


class _UnknownSizeError(Exception):
    """A part is not this package's own."""


def check_size(make: Callable[..., Any], is_ours: bool, *args: Any) -> None:
    """Make a part of a model without memory, to see how large its weights are.

    They are made on PyTorch's ``meta`` device, where tensors have a size and no values. This takes a while, and is done
    only where an option is large. What needs values is not known beforehand, and passes. So does what a user has
    written, which is called no more often than asked for.

    Args:
        make: Makes a module.
        is_ours: Whether it is one of this package.
        *args: Given to it by position.

    Raises:
        FLDDError: If the weights need more memory than the machine has left.
    """
    if _on_trial.get():
        if not is_ours:
            raise _UnknownSizeError
        return
    if not is_ours or prod(sorted([*_USUAL, *_numbers(make), *_numbers(args)])[-3:]) < _LARGE:
        return
    token = _on_trial.set(True)
    try:
        with torch.random.fork_rng([]), warnings.catch_warnings(), torch.device("meta"):
            warnings.simplefilter("ignore")
            trial = make(*args)
    except Exception:  # what is wrong with it is told where it is made
        return
    finally:
        _on_trial.reset(token)
    if isinstance(trial, nn.Module):
        needed = sum(each.numel() * each.element_size() for each in chain(trial.parameters(), trial.buffers()))
        name = type(trial).__name__
        check_memory(needed, f"{name} with its weights", "Make it smaller, or the number of classes or of coordinates.")


def _numbers(options: Any) -> Iterator[int]:
    """All whole numbers in options, also in those of parts of a part."""
    if isinstance(options, int):
        yield options
    elif isinstance(options, Spec):
        yield from (options.num_classes, options.num_dims, options.num_steps)
    elif isinstance(options, partial):
        yield from _numbers(options.keywords)
    elif isinstance(options, Mapping):
        yield from _numbers(tuple(options.values()))
    elif isinstance(options, (list, tuple)):
        yield from chain.from_iterable(map(_numbers, options))
