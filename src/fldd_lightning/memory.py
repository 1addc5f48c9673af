"""How much memory the machine has left, asked before much of it is taken."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from .errors import FLDDError

__all__ = ["available_memory", "check_memory", "told_bytes"]

_GROUP = Path("/sys/fs/cgroup")  # of a container
_UNITS = ("bytes", "kB", "MB", "GB", "TB", "PB", "EB")


def available_memory() -> int | None:
    """Bytes that can be taken without swapping; None where the system does not say.

    Linux says it in ``/proc/meminfo``. A container may have less, which its control group says. What it keeps of files
    that were read long ago counts as free.
    """
    found: list[int] = []
    with suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    with suppress(OSError, ValueError):  # where there is no limit, it is called "max"
        most, used = (int((_GROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        counted = dict(line.split() for line in (_GROUP / "memory.stat").read_text().splitlines())
        found.append(most - used + int(counted.get("inactive_file", 0)))
    return max(0, min(found)) if found else None


def check_memory(needed: int, what: str, advice: str) -> None:
    """Refuse what does not fit into memory, before the system ends the program for it.

    Args:
        needed: Bytes.
        what: What they are for, with its verb left out: ``"'x.npz', unpacked,"``.
        advice: What to do instead.

    Raises:
        FLDDError: If fewer bytes are available.
    """
    available = available_memory()
    if available is not None and needed > available:
        raise FLDDError(
            f"{what} needs {told_bytes(needed)} of memory, but {told_bytes(available)} are available. {advice}"
        )


def told_bytes(number: int) -> str:
    """Bytes in the largest unit that leaves one digit or more before the point."""
    power = min(max(0, (len(str(number)) - 1) // 3), len(_UNITS) - 1)
    return f"{number} bytes" if power == 0 else f"{number / 1000**power:.3g} {_UNITS[power]}"
