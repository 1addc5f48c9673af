"""The idx files of MNIST and its kin."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import FLDDError

__all__ = ["idx_folder", "read_idx", "read_idx_images"]


def idx_folder(path: Path) -> Path | None:
    """The folder of files named like MNIST's, given it or one of them; None if it is not one."""
    folder = path.parent if path.is_file() and "-ubyte" in path.name else path
    return folder if folder.is_dir() and any(folder.glob("*-images-idx3-ubyte*")) else None


def read_idx_images(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    """Images and labels of one part.

    Args:
        folder: Where the four files lie.
        part: ``train`` or ``t10k``.

    Returns:
        Grey images ``(N, 1, H, W)``, ``uint8``, and labels ``(N,)``, ``int64``.

    Raises:
        FLDDError: If a file is missing, broken or does not go with the other.
    """
    images = read_idx(folder, f"{part}-images-idx3-ubyte", 3)  # (N, H, W)
    labels = read_idx(folder, f"{part}-labels-idx1-ubyte", 1)
    if len(images) != len(labels):
        raise FLDDError(f"{part} files in '{folder}': {len(images)} images, but {len(labels)} labels.")
    return images.unsqueeze(1), labels.long()


def read_idx(folder: Path, name: str, dims: int) -> Tensor:
    """Read one idx file of bytes, gzipped or not.

    Args:
        folder: Where it lies.
        name: Its name without ``.gz``.
        dims: Number of dimensions it must have.

    Returns:
        Bytes, ``uint8``.

    Raises:
        FLDDError: If the file is missing, cut off or of another kind.
    """
    path = next((p for p in (folder / f"{name}.gz", folder / name) if p.is_file()), None)
    if path is None:
        raise FLDDError(
            f"no file '{name}' or '{name}.gz' in '{folder}'. Set --data.path to a folder with MNIST's files."
        )
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        magic, *shape = struct.unpack(f">{1 + dims}I", raw[: 4 * (1 + dims)])
        if magic != 0x0800 + dims:
            raise FLDDError(f"'{path}' is not an idx file of bytes with {dims} dimensions (it begins {magic:#010x}).")
        array = np.frombuffer(raw, np.uint8, offset=4 * (1 + dims)).reshape(shape)
    except (OSError, EOFError, ValueError, struct.error, zlib.error) as error:
        raise FLDDError(f"cannot read '{path}': {error}. Copy or download it again.") from error
    return torch.from_numpy(array.copy())
