"""Warnings and notes that a user of the command line can do nothing about."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from lightning.fabric.utilities.warnings import PossibleUserWarning

__all__ = ["quiet"]

# Lightning's modules that set up a run. What they say is about loggers and devices that are not there, callbacks
# that a checkpoint also had, and checkpoints that are averaged, as ours are.
_SETUP = (
    "call",
    "callback_connector",
    "checkpoint_connector",
    "data_connector",
    "logger_connector",
    "setup",
    "weight_averaging",
)


_NOTES = logging.getLogger("lightning.pytorch.utilities.rank_zero")


@contextmanager
def quiet() -> Iterator[None]:
    """Leave out Lightning's advice about what this package decides, and deprecations between other packages."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=PossibleUserWarning)
        for category in (DeprecationWarning, FutureWarning):
            warnings.filterwarnings("ignore", category=category, module=r"lightning\.")
        for module in _SETUP:
            warnings.filterwarnings("ignore", module=rf"lightning\..*\.{module}$")
        _NOTES.addFilter(_is_wanted)
        try:
            yield
        finally:
            _NOTES.removeFilter(_is_wanted)


def _is_wanted(record: logging.LogRecord) -> bool:
    return record.levelno > logging.INFO or record.module not in _SETUP
