"""What a signal raises that ends a run, and signals where no training is there to save; imports without torch."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

__all__ = [
    "BEFORE",
    "NAMES",
    "NOTHING",
    "Interrupted",
    "interrupted_by_signals",
    "no_word_of_children",
    "takes_signals",
]

BEFORE = " before the first step"
NOTHING = ". Nothing was trained yet: start the run again."
NAMES: dict[int, str] = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}

_ORIGINAL: dict[signal.Signals, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
_PATIENCE = 1  # seconds
_LEFT = 0  # no signal has this number
_pipes: list[int] = []  # that signals are written to; forked processes have the same ones


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
def interrupted_by_signals(tell: Callable[[int], None]) -> Iterator[None]:
    """Raise :class:`Interrupted` on SIGTERM, which by itself ends a process without a word, and on Ctrl-C.

    Where the program is inside of a library for longer than a second, as when processes wait for one another to start,
    nothing can be raised: it ends at once then, and the processes that it started with it.

    Handlers that are there already are left, and so is everything outside of the main thread.

    Args:
        tell: Says that a signal has ended the program, where that is done without an error to catch.
    """
    owner, is_heard = os.getpid(), threading.Event()

    def end(signum: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:  # a process that was forked: it ends as it would have
            signal.signal(signum, _ORIGINAL[signal.Signals(signum)])
            os.kill(os.getpid(), signum)
            return
        is_heard.set()  # the handler stays: a library may drop the error, and be told again
        no_word_of_children()
        raise Interrupted(signum)

    taken = [each for each, usual in _ORIGINAL.items() if takes_signals() and signal.getsignal(each) == usual]
    if not taken:
        yield
        return
    for each in taken:
        signal.signal(each, end)
    heard, written = os.pipe()
    os.set_blocking(written, False)
    _pipes.append(written)

    def watch() -> None:
        while (signum := os.read(heard, 1)[0]) != _LEFT:
            if signum in taken and signal.getsignal(signum) == end and not is_heard.wait(_PATIENCE):
                tell(signum)
                _end_children()
                os._exit(128 + signum)
        os.close(heard)

    before = signal.set_wakeup_fd(written, warn_on_full_buffer=False)
    threading.Thread(target=watch, daemon=True, name="signals").start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        _pipes.remove(written)
        os.write(written, bytes([_LEFT]))  # ends the thread
        os.close(written)
        for each in taken:
            signal.signal(each, _ORIGINAL[each])


def _leave_pipe() -> None:
    """In a process that was forked: its signals are not this one's."""
    if _pipes:
        signal.set_wakeup_fd(-1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_pipe)


def _end_children() -> None:
    """End the processes that this one has started, where the system says which they are."""
    for each in Path("/proc/self/task").glob("*/children"):
        for number in each.read_text().split():
            with suppress(OSError):
                os.kill(int(number), signal.SIGTERM)


def takes_signals() -> bool:
    """Whether handlers of signals can be set here: in the main thread, and not on Windows."""
    return threading.current_thread() is threading.main_thread() and sys.platform != "win32"


def no_word_of_children() -> None:
    """Let PyTorch raise nothing when a loader's worker ends: it may have been sent the same signal."""
    if sys.platform != "win32":
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
