"""Tables from the Hugging Face hub or from local files, with one clear error where they cannot be had."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import FLDDError

__all__ = ["SPLITS", "TABLES", "download", "hub_error", "load_hub", "load_local", "quiet", "split_names"]

TABLES = {".parquet": "parquet", ".csv": "csv", ".json": "json", ".jsonl": "json", ".arrow": "arrow"}
_ABOUT = ("metadata", "dataset_dict", "dataset_info", "state")  # of images, and of what save_to_disk writes
SPLITS = {"train": ("train", "training"), "val": ("validation", "valid", "val", "dev"), "test": ("test",)}


def load_local(
    path: Path,
    kinds: Mapping[str, str] = TABLES,
    folder_kind: str | None = None,
    streaming: bool = False,
    one_split: bool = False,
    cache_dir: str | None = None,
) -> Any:
    """Read a file or a folder of files.

    Args:
        path: A file, which is all ``train``, or a folder. The files of a folder are of the split that
            their name or folder speaks of, or of ``train``, and of one kind; those that
            describe others, such as ``metadata.csv``, are left out.
        kinds: Loader of the ``datasets`` library for each ending; files may be gzipped beside it.
        folder_kind: Loader for a folder without such files. For ``imagefolder``, folders named
            ``train``, ``test`` and ``validation`` are the splits and those below them are the labels;
            a ``metadata.csv`` or ``metadata.jsonl`` beside the images gives further columns.
        streaming: Read the files as they are needed, not now.
        one_split: All files are ``train``, whatever they are called.
        cache_dir: Where the library keeps tables; its own folder if None.

    Returns:
        A ``datasets.DatasetDict`` or ``IterableDatasetDict``.

    Raises:
        FLDDError: If there is nothing to read, files are of several kinds, or they cannot be read.
    """
    import datasets

    if not path.exists():
        raise FLDDError(f"'{path}' does not exist. Set --data.path to a file or folder with the data.")
    listed = (p for p in path.rglob("*") if _ending(p) in kinds and p.stem not in _ABOUT)
    files = [path] if path.is_file() else sorted(listed)
    kind = _ending(files[0]) if files else None
    if kind not in kinds and (files or folder_kind is None):
        raise FLDDError(f"'{path}' is of no known kind; known are {', '.join(sorted(kinds))} and folders of them.")
    endings = sorted({_ending(file) for file in files})
    if len({kinds[ending] for ending in endings}) > 1:
        raise FLDDError(
            f"'{path}' holds files of several kinds, {', '.join(endings)}: set --data.path to one of a kind."
        )
    try:
        with quiet():
            if kind is None:
                return datasets.load_dataset(str(folder_kind), data_dir=str(path), cache_dir=cache_dir)
            by_split: dict[str, list[str]] = {}
            for file in files:
                split = "train" if one_split else _split_of(file.relative_to(path))
                by_split.setdefault(split, []).append(str(file))
            return datasets.load_dataset(kinds[kind], data_files=by_split, streaming=streaming, cache_dir=cache_dir)
    except Exception as error:  # the library raises a dozen kinds for files it cannot read
        if "corresponds to no data" in str(error):
            raise FLDDError(f"a split in '{path}' is empty ({_first_line(error)}): give more data.") from error
        is_encoding = isinstance(error.__cause__ or error, UnicodeDecodeError)
        advice = ". Convert it to UTF-8" if is_encoding else ""
        raise FLDDError(f"cannot read '{path}': {_first_line(error)}{advice}") from error


def load_hub(name: str, config: str | None = None, streaming: bool = False, cache_dir: str | None = None) -> Any:
    """Load a data set of the hub, or what of it is cached.

    Args:
        name: ``owner/name`` on the hub.
        config: One of the data set's configurations.
        streaming: Fetch examples as they are needed, not now.
        cache_dir: Where the library keeps tables; its own folder if None.

    Returns:
        A ``datasets.DatasetDict`` or ``IterableDatasetDict``.

    Raises:
        FLDDError: If it is neither reachable nor cached, or cannot be read.
    """
    import datasets

    try:
        with quiet():
            return datasets.load_dataset(name, config, streaming=streaming, cache_dir=cache_dir)
    except Exception as error:  # the library raises many kinds
        raise hub_error(f"'{name}'", error, "Set --data.path to a local file or folder instead.") from error


def download(name: str, file: str, instead: str) -> Path:
    """Fetch one file of a repository of the hub, or its cached copy.

    Args:
        name: ``owner/name`` on the hub.
        file: Its name in the repository.
        instead: What to do without it; goes into the message.

    Raises:
        FLDDError: If it is neither reachable nor cached.
    """
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, file))
    except Exception as error:  # the library raises many kinds
        raise hub_error(f"'{file}' of '{name}'", error, instead) from error


def hub_error(what: str, error: Exception, instead: str) -> FLDDError:
    """What to raise where the hub's libraries have failed.

    Args:
        what: They were to load.
        error: That they raised.
        instead: What to do without it.
    """
    return FLDDError(
        f"cannot load {what} from the hub: {_first_line(error)}. {instead} Without a network, set HF_HUB_OFFLINE=1: "
        "what is cached is then found at once."
    )


def split_names(tables: Any) -> dict[str, Any]:
    """The tables of a data set as ``train``, ``val`` and ``test``, as far as there are such.

    Raises:
        FLDDError: If there is no ``train``.
    """
    found = {split: tables[key] for split, called in SPLITS.items() for key in reversed(called) if key in tables}
    if "train" not in found:
        raise FLDDError(f"the data set has no split 'train', only {', '.join(tables)}.")
    return found


def _ending(file: Path) -> str:
    """``.txt`` of both ``a.txt`` and ``a.txt.gz``."""
    return (file.with_suffix("") if file.suffix == ".gz" else file).suffix


def _split_of(name: Path) -> str:
    """The split a file's name or folder speaks of, as whole words: ``data/train-00000-of-00001.parquet``."""
    words = re.split(r"[^a-z]+", str(name).lower())
    for split, called in SPLITS.items():
        if any(word in called for word in words):
            return split
    return "train"


@contextmanager
def quiet() -> Iterator[None]:
    """Without progress bars of the ``datasets`` library."""
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
