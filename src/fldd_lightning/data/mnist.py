"""MNIST and its kin from the original idx files, binarised, at any pooled size."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import FLDDError
from .base import DiscreteDataModule, Split

__all__ = ["MNISTDataModule"]


class MNISTDataModule(DiscreteDataModule):
    """Binarised MNIST, Fashion-MNIST or KMNIST from a folder with the original ``idx`` files.

    Images are padded to 32x32, averaged down to ``size`` and set to 1 where they exceed
    ``threshold``; ``size=28`` keeps the original pixels. Validation images are drawn from the
    training files, test images are those of the test files.

    Args:
        path: Folder with ``train-images-idx3-ubyte[.gz]`` and the three other files.
        size: Height and width: 28, or a divisor of 32.
        threshold: Grey level, between 0 and 1, above which a pixel is 1.
        num_val: Training images held out for validation.
        batch_size: Images per batch and process.
        num_workers: Worker processes of the loaders.
        seed: Seed of the split and of the training order.

    Raises:
        FLDDError: If ``size`` or ``threshold`` is out of range, or (when read) a file is missing or broken.
    """

    def __init__(
        self,
        path: str,
        size: int = 16,
        threshold: float = 0.5,
        num_val: int = 5_000,
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers, seed)
        if size != 28 and (size < 1 or 32 % size):
            raise FLDDError(f"size is {size}, but it must be 28 or a divisor of 32 (16, 8, 4, ...).")
        if not 0 < threshold < 1:
            raise FLDDError(f"threshold is {threshold}, but it must lie strictly between 0 and 1.")
        self.save_hyperparameters(logger=False)
        self.path, self.size, self.threshold, self.num_val = Path(path), size, threshold, num_val

    @property
    def num_classes(self) -> int:
        return 2

    @property
    def num_labels(self) -> int:
        """10 classes."""
        return 10

    def load(self) -> dict[str, Split]:
        x, labels = self._read("train")
        if not 0 < self.num_val < len(x):
            raise FLDDError(f"num_val is {self.num_val}, but there are {len(x)} training images to choose from.")
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(self.seed))
        val, train = order[: self.num_val], order[self.num_val :]
        return {
            "train": Split(x[train], labels[train]),
            "val": Split(x[val], labels[val]),
            "test": Split(*self._read("t10k")),
        }

    def _read(self, part: str) -> tuple[Tensor, Tensor]:
        images = read_idx(self.path, f"{part}-images-idx3-ubyte", 3)  # (N, 28, 28)
        labels = read_idx(self.path, f"{part}-labels-idx1-ubyte", 1)
        if len(images) != len(labels) or images.shape[1:] != (28, 28):
            raise FLDDError(f"{part} files in '{self.path}': {tuple(images.shape)} images, {len(labels)} labels.")
        grey = images.float() / 255
        if self.size != 28:
            grey = F.avg_pool2d(F.pad(grey, (2, 2, 2, 2)), 32 // self.size)
        return (grey > self.threshold).long(), labels.long()


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
    except (OSError, EOFError, ValueError, struct.error) as error:
        raise FLDDError(f"cannot read '{path}': {error}. Copy or download it again.") from error
    return torch.from_numpy(array.copy())
