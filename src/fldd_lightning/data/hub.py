"""Tables from the Hugging Face hub or from local files, with one clear error where there is no network."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import FLDDError
from ..network import answers

__all__ = ["load_hub", "load_local"]

_LOADERS = {".parquet": "parquet", ".csv": "csv", ".json": "json", ".jsonl": "json", ".arrow": "arrow"}
_SPLITS = {"train": ("train", "training"), "test": ("test",), "validation": ("validation", "valid", "val", "dev")}


def load_local(path: Path) -> Any:
    """Read a parquet, csv, jsonl or arrow file, a folder of them, or a folder of images.

    Args:
        path: A file, which is all ``train``, or a folder. The tables of a folder are of the split
            that their name or folder speaks of, or of ``train``. A folder without tables is read as
            an ``imagefolder``, where folders named ``train``, ``test`` and ``validation`` are the
            splits and those below them the labels; a ``metadata.csv`` or ``metadata.jsonl`` beside
            the images gives further columns.

    Returns:
        A ``datasets.DatasetDict``.

    Raises:
        FLDDError: If there is nothing to read or it cannot be read.
    """
    import datasets

    if not path.exists():
        raise FLDDError(f"'{path}' does not exist. Set --data.path to a file or folder with the data.")
    tables = (p for p in path.rglob("*") if p.suffix in _LOADERS and p.stem != "metadata")
    files = [path] if path.is_file() else sorted(tables)
    try:
        with _quiet():
            if not files:
                return datasets.load_dataset("imagefolder", data_dir=str(path))
            kind = files[0].suffix
            if kind not in _LOADERS:
                raise FLDDError(f"'{path}' is of no known kind; known are {', '.join(sorted(_LOADERS))} and folders.")
            by_split: dict[str, list[str]] = {}
            for file in files:
                if file.suffix == kind:
                    by_split.setdefault(_split_of(file.relative_to(path)), []).append(str(file))
            return datasets.load_dataset(_LOADERS[kind], data_files=by_split)
    except FLDDError:
        raise
    except Exception as error:  # the library raises a dozen kinds for files it cannot read
        raise FLDDError(f"cannot read '{path}': {_first_line(error)}") from error


def load_hub(name: str, config: str | None = None) -> Any:
    """Load a data set of the hub, from the cache where there is no network.

    Args:
        name: ``owner/name`` on the hub.
        config: One of the data set's configurations.

    Returns:
        A ``datasets.DatasetDict``.

    Raises:
        FLDDError: If it is neither reachable nor cached, or cannot be read.
    """
    import datasets

    offline = not answers(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    try:
        with _quiet(), _offline(offline):
            return datasets.load_dataset(name, config)
    except Exception as error:
        reason = "the hub cannot be reached and the data set is not cached" if offline else _first_line(error)
        raise FLDDError(
            f"cannot load '{name}' from the hub: {reason}. Set --data.path to a local file or folder instead."
        ) from error


def _split_of(name: Path) -> str:
    """The split a file's name or folder speaks of, as whole words: ``data/train-00000-of-00001.parquet``."""
    words = re.split(r"[^a-z]+", str(name).lower())
    for split, called in _SPLITS.items():
        if any(word in called for word in words):
            return split
    return "train"


@contextmanager
def _offline(wanted: bool) -> Iterator[None]:
    """Make the libraries look into their caches only; without it they try for 20 seconds and more."""
    import datasets.config
    import huggingface_hub.constants

    homes: tuple[Any, ...] = (datasets.config, huggingface_hub.constants)
    before = [home.HF_HUB_OFFLINE for home in homes]
    for home, value in zip(homes, before):
        home.HF_HUB_OFFLINE = value or wanted
    try:
        yield
    finally:
        for home, value in zip(homes, before):
            home.HF_HUB_OFFLINE = value


@contextmanager
def _quiet() -> Iterator[None]:
    import datasets

    was_shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if was_shown:
            datasets.enable_progress_bars()


def _first_line(error: BaseException) -> str:
    cause = error.__cause__ or error
    return (str(cause).splitlines() or [type(cause).__name__])[0]
