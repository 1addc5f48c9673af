"""Large files that stay on disk: what reading has brought into memory is given back."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np

__all__ = ["MappedFile"]

_AROUND = 2**21  # bytes that the system brings into memory around one that is read, at most
_MOST = 2**28  # bytes in memory at which they are given back


class MappedFile:
    """A mapped file, which takes little memory however much of it is read.

    The system keeps what a process has read of a mapped file, and counts it as memory of the process. On a cluster the
    scheduler may end a job for it. Whoever reads calls :meth:`read`, and all is given back before it can be more than
    256 MiB and one batch. It stays in the system's cache, so that reading it again is fast. What was written into the
    array is lost then.

    Args:
        pages: The mapping.
    """

    def __init__(self, pages: mmap.mmap) -> None:
        self._pages: mmap.mmap | None = pages
        self._held = 0

    @classmethod
    def of(cls, x: np.ndarray) -> MappedFile | None:
        """The mapped file that an array, or the array that it is a view of, lies in; None if it lies in memory."""
        base: Any = x
        while base is not None and not isinstance(base, mmap.mmap):
            base = getattr(base, "base", None)
        return None if base is None else cls(base)

    def read(self, examples: int, size: int) -> None:
        """Say that some examples were read, each from a place of its own.

        Args:
            examples: How many.
            size: Bytes of each.
        """
        more = examples * (size + _AROUND)
        if self._held + more > _MOST:
            self.give_back()
        self._held += more

    def give_back(self) -> None:
        """Let go of what is in memory; systems that cannot do so keep it as long as they like."""
        self._held = 0
        if self._pages is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._pages.madvise(mmap.MADV_DONTNEED)

    def __getstate__(self) -> dict[str, Any]:
        """Another process that does not share the mapping has a copy of the array, and nothing to give back."""
        return {"_pages": None, "_held": 0}
