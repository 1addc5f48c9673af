"""Files that are written whole or not at all: nothing is destroyed by writing its successor."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

if sys.platform != "win32":
    import fcntl

__all__ = ["remove_leftovers", "replacing", "shard_mark"]

_ENDING = ".fldd-part"


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file to write to, which takes the place of ``path`` when the context ends, and not before.

    It lies beside ``path``, as only within a file system one file can replace another at once. What was there stays
    until the new file is on the disk. If writing fails, the new file is deleted. If the process is killed, it is left
    over, and deleted when the next file is written into the folder.

    Args:
        path: Where the file belongs. Its folder is made if it is not there.

    Raises:
        OSError: If it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent)
    part, file = _new_part(path)
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if sys.platform == "win32":  # no file is renamed there while it is open
                file.close()
            part.replace(path)
    except BaseException as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        reason = error.__context__
        if isinstance(error, RuntimeError) and isinstance(reason, OSError):  # torch's writer, which does not say why
            raise OSError(reason.errno, reason.strerror or str(reason)) from error
        raise
    with suppress(OSError):  # some systems cannot open folders
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def shard_mark(rank: int, world: int) -> str:
    """What names of files of one process end in, such as ``-00000-of-00002``; nothing if there is one process."""
    return f"-{rank:05}-of-{world:05}" if world > 1 else ""


def remove_leftovers(folder: Path) -> None:
    """Delete what processes that were killed have left in a folder; files that are being written stay."""
    for part in folder.glob(f".*{_ENDING}"):
        with suppress(OSError):
            if sys.platform == "win32":  # nor is one deleted
                part.unlink()
            else:
                with part.open("r+b") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    part.unlink()


def _new_part(path: Path) -> tuple[Path, IO[bytes]]:
    """A new file beside ``path``, locked for as long as it is open; the lock of a process that is killed is gone."""
    while True:
        part = path.with_name(f".{path.name[:100]}.{secrets.token_hex(4)}{_ENDING}")
        file = part.open("xb")
        if sys.platform != "win32":
            with suppress(OSError):  # not every file system has locks
                fcntl.flock(file, fcntl.LOCK_EX)
        if part.exists():  # nobody took it for a leftover before it was locked
            return part, file
        file.close()
