"""A user's own integers, from a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..categorical import check_integers, check_states
from ..errors import FLDDError
from .base import DiscreteDataModule, Split, split_rows
from .folders import nothing_usable

__all__ = ["ArrayDataModule"]


class ArrayDataModule(DiscreteDataModule):
    """Any ``.npy``, ``.npz`` or ``.pt`` file of integers ``(N, *shape)``.

    An ``.npz`` file or a ``.pt`` dictionary must hold one array, or one called ``x``. Files are
    read without unpickling.

    Args:
        path: The file.
        num_classes: K; if not given, the largest value plus one.
        val_fraction: Share of the examples for validation.
        test_fraction: Share of the examples for testing.
        batch_size: Examples per batch and process.
        num_workers: Worker processes of the loaders.
        seed: Seed of the split and of the training order.

    Raises:
        FLDDError: When read: if the file is missing, unreadable, empty or not integers 0..K-1.
    """

    def __init__(
        self,
        path: str,
        num_classes: int | None = None,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        batch_size: int = 128,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers, seed)
        self.save_hyperparameters(logger=False)
        self.path, self._given_classes = path, num_classes
        self.val_fraction, self.test_fraction = val_fraction, test_fraction

    @property
    def num_classes(self) -> int:
        _ = self.splits  # checks the values against the classes given
        return super().num_classes if self._given_classes is None else self._given_classes

    def load(self) -> dict[str, Split]:
        x = _read(Path(self.path))
        if x.dim() < 1 or len(x) < 3 or x.numel() == 0:
            raise FLDDError(
                f"{self.path} has shape {tuple(x.shape)}; give at least 3 examples (N, *shape), none empty."
            )
        if x.dim() == 1:
            x = x[:, None]
        check_integers(x, self.path)
        low, high = map(int, x.aminmax())
        if low < 0:
            raise FLDDError(
                f"{self.path} has values from {low}; integers start at 0. Shift them, or drop the negative."
            )
        upper = self._given_classes or max(2, high + 1)
        check_states(x, upper, x.shape[1:], self.path)
        return split_rows(x.long(), self.val_fraction, self.test_fraction, self.seed)


def _read(path: Path) -> Tensor:
    if path.is_dir():
        arrays = [str(file) for file in sorted(path.iterdir()) if file.suffix in (".npy", ".npz", ".pt")]
        if not arrays:
            raise nothing_usable(path, "files .npy, .npz, .pt")
        raise FLDDError(f"'{path}' is a folder. Set --data.path to one of its files: {', '.join(arrays[:5])}.")
    if not path.is_file():
        raise FLDDError(f"no file at '{path}'. Set --data.path to a .npy, .npz or .pt file of integers.")
    try:
        if path.suffix == ".npy":
            return torch.from_numpy(_integers(np.load(path, allow_pickle=False)))
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                return torch.from_numpy(_integers(archive[_only(archive.files, path)]))
        if path.suffix == ".pt":
            loaded = torch.load(path, weights_only=True, map_location="cpu")
            value = loaded[_only(list(loaded), path)] if isinstance(loaded, dict) else loaded
            if isinstance(value, Tensor):
                return value
            raise FLDDError(f"'{path}' holds a {type(value).__name__}, not a tensor of integers.")
    except FLDDError:
        raise
    except Exception as error:  # the readers raise many kinds
        raise FLDDError(f"cannot read '{path}': {error}. Save it again as a plain integer array.") from error
    raise FLDDError(f"'{path}' has an unknown ending; .npy, .npz and .pt files are read.")


def _integers(array: np.ndarray) -> np.ndarray:
    # torch lacks the wider unsigned types; values beyond int64 are out of range for any K anyway.
    return array.astype(np.int64) if array.dtype.kind == "u" else array


def _only(names: list[str], path: Path) -> str:
    if "x" in names:
        return "x"
    if len(names) == 1:
        return names[0]
    raise FLDDError(f"'{path}' holds {len(names)} arrays {names}; name the one to use 'x'.")
