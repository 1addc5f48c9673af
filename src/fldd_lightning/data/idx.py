"""The idx files of MNIST and its kin, read by torchvision."""

from __future__ import annotations

import gzip
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from ..errors import FLDDError

__all__ = ["idx_folder", "read_idx_images"]


def idx_folder(path: Path) -> Path | None:
    """The folder of files named like MNIST's, given it or one of them; None if it is not one."""
    folder = path.parent if path.is_file() and "-ubyte" in path.name else path
    return folder if folder.is_dir() and any(folder.glob("*-images-idx3-ubyte*")) else None


def read_idx_images(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    """Images and labels of one part, from files that may be gzipped.

    Args:
        folder: Where the four files lie; nothing is written there.
        part: ``train`` or ``t10k``.

    Returns:
        Grey images ``(N, 1, H, W)``, ``uint8``, and labels ``(N,)``, ``int64``.

    Raises:
        FLDDError: If a file is missing, broken or does not go with the other.
    """
    from torchvision.datasets.mnist import read_image_file, read_label_file

    images = _read(folder, f"{part}-images-idx3-ubyte", read_image_file)  # (N, H, W)
    labels = _read(folder, f"{part}-labels-idx1-ubyte", read_label_file)
    if len(images) != len(labels):
        raise FLDDError(f"{part} files in '{folder}': {len(images)} images, but {len(labels)} labels.")
    return images.unsqueeze(1), labels


def _read(folder: Path, name: str, reader: Callable[[str], Tensor]) -> Tensor:
    path = next((p for p in (folder / f"{name}.gz", folder / name) if p.is_file()), None)
    if path is None:
        raise FLDDError(
            f"no file '{name}' or '{name}.gz' in '{folder}'. Set --data.path to a folder with MNIST's files."
        )
    try:
        if path.suffix != ".gz":
            return reader(str(path))
        with tempfile.TemporaryDirectory() as place, gzip.open(path) as packed:
            plain = Path(place) / name
            plain.write_bytes(packed.read())
            return reader(str(plain))
    except (OSError, EOFError, ValueError, TypeError, AssertionError, RuntimeError, zlib.error) as error:
        reason = str(error) or "it is no idx file of bytes"
        raise FLDDError(f"cannot read '{path}': {reason}. Copy or download it again.") from error
