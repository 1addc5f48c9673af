"""Tables from the Hugging Face hub or from local files, with one clear error where they cannot be had."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import FLDDError
from .folders import ending, nothing_usable

__all__ = ["SPLITS", "TABLES", "download", "hub_error", "load_hub", "load_local", "quiet", "split_names"]

TABLES = {".parquet": "parquet", ".csv": "csv", ".json": "json", ".jsonl": "json", ".arrow": "arrow"}
_ABOUT_IMAGES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
_ABOUT = (*_ABOUT_IMAGES, "dataset_dict.json", "dataset_info.json", "state.json")  # and what save_to_disk writes
_NO_DATA = re.compile(r'Instruction "(\w+)" corresponds to no data')
SPLITS = {"train": ("train", "training"), "val": ("validation", "valid", "val", "dev"), "test": ("test",)}


def load_local(
    path: Path,
    kinds: Mapping[str, Any] = TABLES,
    folder_kind: str | None = None,
    folder_holds: str = "",
    streaming: bool = False,
    one_split: bool = False,
    cache_dir: str | None = None,
) -> Any:
    """Read a file or a folder of files.

    Args:
        path: A file, which is all ``train``, or a folder. The files of a folder are of the split that
            their name or folder speaks of, or of ``train``, and of one kind; those that
            describe others, such as ``metadata.csv``, are left out.
        kinds: For each ending a loader of the ``datasets`` library, or a builder class of our own. Files may be
            gzipped beside it.
        folder_kind: Loader for a folder without such files. For ``imagefolder``, folders named
            ``train``, ``test`` and ``validation`` are the splits and those below them are the labels;
            a ``metadata.csv`` or ``metadata.jsonl`` beside the images gives further columns.
        folder_holds: What else a folder may hold, in words.
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
    listed = (p for p in path.rglob("*") if ending(p) in kinds and p.name not in _ABOUT)
    files = [path] if path.is_file() else sorted(listed)
    known = ", ".join(sorted(kinds))
    if files and ending(files[0]) not in kinds:
        raise FLDDError(f"'{path}' is of no known kind; known are {known} and folders of them.")
    wanted = f"{folder_holds + ', or ' if folder_holds else ''}files {known}, gzipped or not"
    if not files and folder_kind is None:
        raise nothing_usable(path, wanted)
    endings = sorted({ending(file) for file in files})
    if len({kinds[each] for each in endings}) > 1:
        raise FLDDError(
            f"'{path}' holds files of several kinds, {', '.join(endings)}: set --data.path to one of a kind."
        )
    try:
        with quiet():
            if not files:
                return datasets.load_dataset(str(folder_kind), data_dir=str(path), cache_dir=cache_dir)
            by_split: dict[str, list[str]] = {}
            for file in files:
                split = "train" if one_split else _split_of(file.relative_to(path))
                by_split.setdefault(split, []).append(str(file))
            return _loaded(kinds[endings[0]], by_split, streaming, cache_dir)
    except Exception as error:  # the library raises a dozen kinds for files it cannot read
        mistake = error if isinstance(error, FLDDError) else error.__cause__
        if isinstance(mistake, FLDDError):  # of our own readers
            raise mistake from None
        is_empty = _NO_DATA.search(str(error))
        if not files and (is_empty or isinstance(error, FileNotFoundError)):
            raise nothing_usable(path, wanted) from error
        if is_empty:
            raise FLDDError(
                f"the split '{is_empty[1]}' of '{path}' is empty, or has a header alone: give more data."
            ) from error
        is_encoding = isinstance(error.__cause__ or error, UnicodeDecodeError)
        advice = ". Convert it to UTF-8" if is_encoding else ""
        if not advice and len(files) > 1:
            advice = (
                ". The files of a folder must have the same columns; if they do, read each alone to find the broken one"
            )
        raise FLDDError(f"cannot read '{path}': {_first_line(error)}{advice}") from error


def _loaded(kind: Any, files: dict[str, list[str]], streaming: bool, cache_dir: str | None) -> Any:
    """The tables of files of one kind, by split."""
    import datasets

    if isinstance(kind, str):
        how: dict[str, Any] = {"data_files": files, "streaming": streaming, "cache_dir": cache_dir}
        if kind == "json" and (encoding := _one_encoding([each for part in files.values() for each in part])):
            how["encoding"] = encoding
        return datasets.load_dataset(kind, **how)
    builder = kind(cache_dir=cache_dir, dataset_name=kind.__name__.lower(), data_files=files)
    if streaming:
        return builder.as_streaming_dataset()
    builder.download_and_prepare()
    return builder.as_dataset()


def _one_encoding(files: list[str]) -> str | None:
    """What files are written in if it is not UTF-8: the library's reader of JSON takes one encoding for all."""
    from .readers import encoding_of

    encodings = {encoding_of(file) for file in files}
    if len(encodings) > 1:
        raise FLDDError(f"files are written in {', '.join(sorted(encodings))}: convert all of them to UTF-8.")
    return None if encodings == {"utf-8-sig"} else encodings.pop()


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
        f"cannot load {what} from the hub: {_first_line(error).rstrip('.')}. {instead} Without a network, set "
        "HF_HUB_OFFLINE=1: what is cached is then found at once."
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
