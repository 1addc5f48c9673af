"""Warnings that a user of the command line can do nothing about."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from lightning.fabric.utilities.warnings import PossibleUserWarning

__all__ = ["quiet"]


@contextmanager
def quiet() -> Iterator[None]:
    """Leave out Lightning's advice to its users, which is about what this package decides."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=PossibleUserWarning)
        yield
