"""What to say of a folder that holds nothing to read."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from ..errors import FLDDError

__all__ = ["ending", "nothing_usable"]

_SHOWN = 5  # kinds of files in a message


def ending(file: Path) -> str:
    """``.txt`` of ``a.txt``, ``A.TXT`` and ``a.txt.gz``."""
    suffix = file.suffix.lower()
    return file.with_suffix("").suffix.lower() if suffix == ".gz" else suffix


def nothing_usable(folder: Path, wanted: str) -> FLDDError:
    """What to raise for a folder without a file that can be read.

    Args:
        folder: It was searched, with the folders below it.
        wanted: What was looked for.
    """
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    kinds = Counter(ending(file) for file in files).most_common()
    first = {ending(file): file.name for file in reversed(files)}
    found = [f"{count} {kind or 'without ending'} (such as '{first[kind]}')" for kind, count in kinds[:_SHOWN]]
    if len(kinds) > _SHOWN:
        found.append("others")
    return FLDDError(
        f"the folder '{folder}' holds no file that can be used. Looked for: {wanted}. Found: "
        f"{', '.join(found) or 'no file at all'}. Set --data.path to the right folder or file."
    )
