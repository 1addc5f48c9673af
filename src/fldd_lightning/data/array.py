"""A user's own integers, from a file."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from ..categorical import no_integers
from ..errors import FLDDError
from ..memory import check_memory
from ..ranges import AT_LEAST_TWO, check_kinds, check_numbers
from .archive import Examples, as_tensor, extremes, read_arrays
from .base import DiscreteDataModule, Split, check_shares, joined, split_rows
from .mapped import MappedFile

__all__ = ["ArrayDataModule"]

_UNKNOWN = 2**64  # no integer of a file is larger
_MOST_CLASSES = 2**18  # as many as the largest vocabularies have; networks have weights for each


class ArrayDataModule(DiscreteDataModule):
    """Any ``.npy``, ``.npz`` or ``.pt`` file of integers ``(N, *shape)``.

    An ``.npz`` file or a ``.pt`` dictionary holds one array, or says by names which is which: ``x``, and ``y`` for its
    labels; or ``x_train``, ``y_train``, ``x_val`` and so on, also ``train``, ``valid`` and ``test``. Splits that a
    file has are used as they are. Missing ones are drawn from ``train``.

    Files are read without unpickling. Values stay in memory in the dtype of the file, and large ``.npy`` and ``.pt``
    files on disk, until a batch is made of them. If K is given, a large ``.npy`` file is not even looked through
    beforehand: values that are out of range are refused in the batch that has them.

    Args:
        path: The file.
        num_classes: K; if not given, the largest value plus one. Checkpoints keep it.
        conditions: Names of further arrays in the file, of integers from 0 on ``(N,)`` or real numbers ``(N, m)``, for
            a :class:`LabelLatent` or :class:`VectorLatent` with that ``key``. For splits add ``_train`` and so on.
        val_fraction: Share of the training examples for validation, where the file has no such split.
        test_fraction: Share of the training examples for testing, where the file has no such split.
        batch_size: Examples per batch and process.
        num_workers: Worker processes of the loaders.
        seed: Seed of the split and of the training order.

    Raises:
        FLDDError: When read: if the file is missing, unreadable, empty or not integers 0..K-1, or its labels are
            not one integer from 0 on for every example.
    """

    classes_option = "num_classes"

    def __init__(
        self,
        path: str,
        num_classes: int | None = None,
        conditions: Sequence[str] = (),
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        batch_size: int = 128,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers, seed)
        check_kinds(locals(), path=str | PathLike)
        self.save_hyperparameters(logger=False)
        check_numbers(locals(), num_classes=AT_LEAST_TWO.or_none)
        check_shares(val_fraction, test_fraction)
        wrong = [name for name in conditions if not name or name in ("x", "index", "label")]
        if wrong:
            raise FLDDError(f"a condition is called '{wrong[0]}', which means something else. Labels are found as 'y'.")
        self.path, self._num_classes, self._conditions = path, num_classes, tuple(conditions)
        self.val_fraction, self.test_fraction = val_fraction, test_fraction

    @property
    def num_classes(self) -> int:
        """K, as given or found."""
        _ = self.splits  # finds it, or checks it
        assert self._num_classes is not None
        return self._num_classes

    def load(self) -> dict[str, Split]:
        parts = self._checked_parts(3)
        return split_rows(parts.pop("train"), self.val_fraction, self.test_fraction, self.seed, parts)

    def all_rows(self) -> Split:
        """The rows of the file, of its splits one after the other: train, val, test."""
        parts = self._checked_parts(1)
        return joined([parts[name] for name in ("train", "val", "test") if name in parts])

    def _checked_parts(self, least: int) -> dict[str, Split]:
        """The splits of the file; where there is one alone, it has ``least`` examples or more."""
        parts = read_arrays(Path(self.path), self._conditions)
        for part in parts.values():
            _check_array(part, least if len(parts) == 1 else 1)
        mapped = {name: MappedFile.of(part.x) for name, part in parts.items()}
        is_searched = self._num_classes is None or not all(mapped.values())
        if is_searched:
            if any(mapped.values()):
                rank_zero_info(f"Looking through {self.path} for its classes; --data.num_classes spares it.")
            ranges = [extremes(part.x) for part in parts.values()]
            self._num_classes = self._classes(min(low for low, _ in ranges), max(high for _, high in ranges))
            self.keep_classes(self._num_classes)
        assert self._num_classes is not None
        high = self._num_classes - 1 if is_searched else _UNKNOWN
        splits: dict[str, Split] = {}
        for name, part in parts.items():
            x = as_tensor(part.x, high)
            x = x[:, None] if x.dim() == 1 else x
            conditions = {key: _condition(part, key) for key in self._conditions}
            splits[name] = Split(x, _labels(part), conditions=conditions, mapped=mapped[name])
        shapes = {name: split.shape for name, split in splits.items()}
        if len(set(shapes.values())) > 1:
            raise FLDDError(f"the splits in '{self.path}' differ in the shape of an example: {shapes}.")
        return splits

    def _classes(self, low: int, high: int) -> int:
        """K for values from ``low`` to ``high``."""
        if low < 0:
            raise FLDDError(
                f"{self.path} has values from {low}; integers start at 0. Shift them, or drop the negative."
            )
        given = self._num_classes
        if given is not None and high >= given:
            raise FLDDError(
                f"{self.path} has values from {low} to {high}, but num_classes is {given}, so values must lie in "
                f"0..{given - 1}. Set --data.num_classes {high + 1} to train a model; one that is trained keeps its "
                "classes."
            )
        if given is None and high == 0:
            raise FLDDError(
                f"{self.path} has no value but 0, which is one class. Set --data.num_classes if others are possible."
            )
        classes = high + 1 if given is None else given
        if classes > _MOST_CLASSES:
            raise FLDDError(
                f"{self.path} has values up to {high}: {classes} classes are more than networks can take. Number the "
                "values that occur: np.unique(x, return_inverse=True)[1].reshape(x.shape)."
            )
        return classes


def _check_array(part: Examples, least: int) -> None:
    """Raise FLDDError unless examples are integers ``(N, *shape)``, N at least ``least``."""
    x = part.x
    if x.ndim < 1 or len(x) < least or x.size == 0:
        raise FLDDError(f"{part.name} has shape {x.shape}; give at least {least} examples (N, *shape), none empty.")
    if x.dtype.kind not in "bui":
        raise no_integers(part.name, x.dtype)
    of_order = 8 * len(x)  # the splits and the order of training
    check_memory(of_order, f"the order of the {len(x):,} examples of {part.name}", "Give fewer of them.")


def _labels(part: Examples) -> Tensor | None:
    """Labels ``(N,)`` of examples, as ``int64``."""
    return None if part.labels is None else _integers(part.labels, f"the labels of {part.name}", part)


def _condition(part: Examples, name: str) -> Tensor:
    """Further labels ``(N,)`` as ``int64``, or vectors ``(N, m)`` as ``float32``."""
    values = part.conditions[name]
    if values.dtype.kind != "f":
        return _integers(values, f"'{name}' of {part.name}", part)
    if values.ndim == 2 and (wrong := np.flatnonzero(~np.isfinite(values).all(1))).size:
        raise FLDDError(
            f"'{name}' of {part.name} has a number that is not finite in row {wrong[0]} (from 0). Replace it, or leave "
            "the example out."
        )
    if values.ndim != 2 or len(values) != len(part.x):
        raise FLDDError(
            f"'{name}' of {part.name} must be numbers (N, m) for {len(part.x)} examples, not {values.shape}. If "
            "these are labels, convert them to integers: array.astype(int)."
        )
    return torch.from_numpy(values.astype(np.float32))


def _integers(y: np.ndarray, called: str, part: Examples) -> Tensor:
    """One integer of every example ``(N,)``, as ``int64``."""
    advice = "Save one integer from 0 on for every example, or leave the labels out of the file."
    if y.shape[:1] != (len(part.x),) or y.size != len(part.x):
        raise FLDDError(f"{called} have shape {y.shape}, but there are {len(part.x)} examples. {advice}")
    if y.dtype.kind not in "bui" or int(y.min()) < 0 or int(y.max()) >= _MOST_CLASSES:
        what = f"values from {y.min()} to {y.max()}" if y.dtype.kind in "bui" else f"dtype {y.dtype}"
        raise FLDDError(f"{called} have {what}. {advice}")
    return torch.from_numpy(y.reshape(-1).astype(np.int64))
