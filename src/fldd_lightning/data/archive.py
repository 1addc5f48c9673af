"""Arrays from ``.npy``, ``.npz`` and ``.pt`` files: which is which, by its name, and what each holds."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any
from zipfile import ZipFile, is_zipfile

import numpy as np
import torch
from torch import Tensor

from ..categorical import no_integers
from ..errors import FLDDError
from ..memory import check_memory
from .folders import nothing_usable
from .hub import SPLITS
from .mapped import MappedFile

__all__ = ["Examples", "as_tensor", "extremes", "read_arrays", "read_npy"]

_ENDINGS = (".npy", ".npz", ".pt")
_MAPPED = 2**26  # bytes from which a file is mapped; smaller ones may be written anew while a run reads them
_PIECE = 2**24  # numbers looked at at once
_KINDS = {"x": ("", "x", "data", "images"), "labels": ("y", "label", "labels", "target", "targets")}
_NAMES = (
    "Name the examples 'x' and their labels 'y'; or, for splits of your own, 'x_train', 'y_train', 'x_val' and so on."
)


@dataclass(frozen=True)
class Examples:
    """One split as it stands in a file.

    Attributes:
        x: The examples, as the file has them.
        labels: Their labels, if there are any.
        conditions: What else was asked for, by its name.
        name: What to call the examples in a message.
    """

    x: np.ndarray
    labels: np.ndarray | None
    name: str
    conditions: Mapping[str, np.ndarray] = field(default_factory=dict)


def read_arrays(path: Path, conditions: Sequence[str] = ()) -> dict[str, Examples]:
    """The splits of a file; all is ``train`` where it names none.

    Large ``.npy`` and ``.pt`` files are mapped: what is not used stays on disk. Nothing is unpickled.

    Args:
        path: The file. One with several arrays says by their names which is which.
        conditions: Names of further arrays, ``NAME`` or, for splits, ``NAME_train`` and so on.

    Returns:
        Examples for ``train``, and for ``val`` and ``test`` where the file has them.

    Raises:
        FLDDError: If the file is missing or unreadable, or the names of its arrays do not say what they are.
    """
    if path.is_dir():
        arrays = [str(file) for file in sorted(path.iterdir()) if file.suffix in _ENDINGS]
        if not arrays:
            raise nothing_usable(path, f"files {', '.join(_ENDINGS)}")
        raise FLDDError(f"'{path}' is a folder. Set --data.path to one of its files: {', '.join(arrays[:5])}.")
    if not path.is_file():
        raise FLDDError(f"no file at '{path}'. Set --data.path to a .npy, .npz or .pt file of integers.")
    if conditions and path.suffix == ".npy":
        raise FLDDError(f"'{path}' holds one array, and no {', '.join(conditions)}. Put all into one .npz file.")
    is_large = path.stat().st_size > _MAPPED
    try:
        if path.suffix == ".npy":
            return {"train": Examples(_array(read_npy(path, is_large), path), None, str(path))}
        if path.suffix == ".npz":
            if is_zipfile(path):
                _check_size(_unpacked_size(path), path)
            with np.load(path, allow_pickle=False) as arrays:
                return _by_split(arrays, path, conditions)
        if path.suffix == ".pt":
            loaded = torch.load(path, "cpu", weights_only=True, mmap=is_large and is_zipfile(path))
            if isinstance(loaded, dict):
                return _by_split(loaded, path, conditions)
            return {"train": Examples(_array(loaded, path), None, str(path))}
    except FLDDError:
        raise
    except Exception as error:  # the readers raise many kinds
        said = str(error).rstrip(".")
        if path.suffix == ".pt":  # the reader says little, or how to unpickle it all the same
            said = "it is cut off, not of torch.save, or holds objects, which are not unpickled"
        elif "pickle" in said:
            said = "it is of another kind, or holds objects, which are not unpickled"
        raise FLDDError(f"cannot read '{path}': {said}. Save it again as a plain integer array.") from error
    raise FLDDError(f"'{path}' has an unknown ending; .npy, .npz and .pt files are read.")


def read_npy(path: Path, mapped: bool = False) -> Any:
    """The array of a ``.npy`` file; or whatever else numpy finds there.

    Args:
        path: The file.
        mapped: Whether to leave it on disk; else it must fit into memory.

    Raises:
        FLDDError: If it does not fit.
        OSError: If it cannot be read.
        ValueError: If it is of another kind.
    """
    if not mapped:  # a header of a few bytes may speak of any number of them
        with path.open("rb") as file:
            _check_size(_header_size(file), path)
    try:
        return np.load(path, "c" if mapped else None, allow_pickle=False)
    except EOFError as error:
        raise ValueError("it is empty or cut off") from error


def extremes(x: np.ndarray) -> tuple[int, int]:
    """Least and largest value of integers ``(N, *shape)``, looked at in pieces, so that a mapped file is read once."""
    step = max(1, _PIECE // max(1, prod(x.shape[1:])))
    mapped, ranges = MappedFile.of(x), []
    for i in range(0, len(x), step):
        ranges.append((int(x[i : i + step].min()), int(x[i : i + step].max())))
        if mapped is not None:
            mapped.give_back()
    return min(low for low, _ in ranges), max(high for _, high in ranges)


def as_tensor(x: np.ndarray, high: int) -> Tensor:
    """Integers up to ``high`` as a tensor of the same memory; only foreign byte orders are copied.

    Torch computes little with unsigned integers of several bytes, so they are looked at as signed ones if they fit.
    """
    native = x.dtype.newbyteorder("=")
    x = x if x.dtype == native else x.astype(native)
    if native.kind == "b":
        x = x.view(np.uint8)
    elif native.kind == "u" and native.itemsize > 1 and high < 2 ** (8 * native.itemsize - 1):
        x = x.view(f"i{native.itemsize}")
    return torch.from_numpy(x)


def _by_split(arrays: Mapping[str, Any], path: Path, conditions: Sequence[str]) -> dict[str, Examples]:
    """The arrays of a file with several, by what their names say."""
    names = [name for name in arrays if isinstance(name, str)]
    if len(names) == 1 and len(arrays) == 1 and not conditions:
        return {"train": Examples(_array(arrays[names[0]], path), None, str(path))}
    found: dict[tuple[str, str], str] = {}
    for name in names:
        part = _part(name, conditions)
        if part is None:
            continue
        if part in found:
            raise FLDDError(f"'{path}' holds both '{found[part]}' and '{name}', of which one is too many. {_NAMES}")
        found[part] = name
    whole = found.get(("", "x"))
    splits = [split for split in SPLITS if (split, "x") in found]
    if whole is not None and splits:
        raise FLDDError(
            f"'{path}' holds '{whole}', which is to be split, and '{found[splits[0], 'x']}', which is a split. Leave "
            "one of them out."
        )
    if whole is None and "train" not in splits:
        wanted = "has no split 'train'" if splits else "name the one to use 'x'"
        raise FLDDError(f"'{path}' holds {len(arrays)} arrays {[str(name) for name in arrays]}; {wanted}. {_NAMES}")
    examples = {}
    for split, key in [("train", "")] if whole is not None else [(split, split) for split in splits]:
        labels = found.get((key, "labels"))
        x = _array(arrays[found[key, "x"]], path)
        of_it = None if labels is None else _array(arrays[labels], path)
        missing = [name for name in conditions if (key, name) not in found]
        if missing:
            wanted = missing[0] + (f"_{key}" if key else "")
            raise FLDDError(f"'{path}' holds no '{wanted}', which --data.conditions asks for. It holds {names}.")
        further = {name: _array(arrays[found[key, name]], path) for name in conditions}
        examples[split] = Examples(x, of_it, f"'{found[key, 'x']}' in '{path}'", further)
    return examples


def _part(name: str, conditions: Sequence[str]) -> tuple[str, str] | None:
    """The split (or none, '') and the kind that a name like ``x_train`` speaks of; None for other names.

    The kind of a condition is its name.
    """
    for condition in conditions:
        if name == condition:
            return "", condition
        if name.startswith(condition + "_"):
            split = next((split for split, called in SPLITS.items() if name[len(condition) + 1 :] in called), None)
            return None if split is None else (split, condition)
    words = [word for word in re.split(r"[^a-z]+", name.lower()) if word]
    by_word = {word: split for split, called in SPLITS.items() for word in called}
    splits = [by_word[word] for word in words if word in by_word]
    rest = " ".join(word for word in words if word not in by_word)
    kind = next((kind for kind, called in _KINDS.items() if rest in called), None)
    return None if kind is None or len(splits) > 1 or not words else (splits[0] if splits else "", kind)


def _header_size(file: Any) -> int:
    """Bytes of the array that a ``.npy`` file, open in binary, says it holds; 0 if its header says nothing."""
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version[0] == 1 else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
    except (ValueError, EOFError):  # whoever reads it says why
        return 0
    return int(prod(shape)) * dtype.itemsize


def _unpacked_size(path: Path) -> int:
    """Bytes of all arrays in an ``.npz`` file, by their headers and by the archive's own list."""
    with ZipFile(path) as archive:
        total = 0
        for member in archive.infolist():
            with archive.open(member) as file:
                total += max(member.file_size, _header_size(file))
        return total


def _check_size(size: int, path: Path) -> None:
    check_memory(size, f"'{path}', unpacked,", "Save it as a .npy file, which is read piece by piece, or in parts.")


def _array(value: Any, path: Path) -> np.ndarray:
    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, Tensor):
        if value.is_nested or value.is_meta or value.layout != torch.strided or value.is_quantized:
            raise FLDDError(
                f"'{path}' holds a tensor that is nested, sparse, quantised or without data. Save it as a plain tensor "
                "of integers: x.to_dense(), x.int_repr()."
            )
        if value.is_floating_point():  # numpy lacks some of these
            raise no_integers(f"'{path}'", value.dtype)
        array: np.ndarray = value.numpy(force=True)
        return array
    raise FLDDError(f"'{path}' holds a {type(value).__name__}, not a tensor of integers.")
