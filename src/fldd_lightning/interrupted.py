"""What a signal raises that ends a run, and SIGTERM where no training is there to save; imports without torch."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["BEFORE", "NOTHING", "Interrupted", "interrupted_by_sigterm", "no_word_of_children"]

BEFORE = " before the first step"
NOTHING = ". Nothing was trained yet: start the run again."


class Interrupted(SystemExit):
    """A signal ended the run; the exit status is 128 plus its number, as shells count.

    Args:
        signum: The signal.
        status: Another exit status.

    Attributes:
        is_told: Whether the user has been told.
    """

    is_told: bool = False

    def __init__(self, signum: int, status: int | None = None) -> None:
        super().__init__(128 + signum if status is None else status)
        self.signum = signum


@contextmanager
def interrupted_by_sigterm() -> Iterator[None]:
    """Raise :class:`Interrupted` on SIGTERM, which by itself ends a process without a word.

    A handler that is there already is left, and so is everything outside of the main thread.
    """
    in_main = threading.current_thread() is threading.main_thread() and sys.platform != "win32"
    if not in_main or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    owner = os.getpid()

    def end(signum: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:  # a process that was forked: it ends as it would have
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
            return
        signal.signal(signum, signal.SIG_IGN)  # one is enough
        no_word_of_children()
        raise Interrupted(signum)

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def no_word_of_children() -> None:
    """Let PyTorch raise nothing when a loader's worker ends: it may have been sent the same signal."""
    if sys.platform != "win32":
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
