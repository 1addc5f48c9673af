"""Statistics of real images on disk: found by content, written whole or not at all."""

from __future__ import annotations

import hashlib
import os
import pickle
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from ..metrics import FeatureExtractor

__all__ = ["load_statistics", "save_statistics", "statistics_path"]


def statistics_path(folder: Path, pictures: Iterable[Tensor], extractor: FeatureExtractor) -> Path:
    """Where the statistics of a split are kept.

    The name is a hash of every pixel and of the extractor's weights:
    statistics of another data set, split, preprocessing or extractor are never taken by mistake.

    Args:
        folder: Of all statistics.
        pictures: All of the split as floats, a few at a time, ``(n, C, H, W)`` each.
        extractor: Of the features.
    """
    digest = hashlib.sha256(extractor.fingerprint().encode())
    for each in pictures:
        digest.update(f"{tuple(each.shape)}".encode())
        digest.update(each.cpu().contiguous().float().numpy().tobytes())
    return folder / f"{extractor.metric_name}-{digest.hexdigest()[:24]}.pt"


def load_statistics(path: Path, take: Callable[[dict[str, Tensor], int], None], num_real: int) -> bool:
    """Read statistics and hand them over; warn if that cannot be done.

    Args:
        path: Where they may be kept.
        take: Takes statistics of so many images, or raises if they are not what it needs.
        num_real: Images they must be of.

    Returns:
        Whether they were taken; if not, they must be computed.
    """
    if not path.is_file():
        return False
    try:
        take(torch.load(path, map_location="cpu", weights_only=True), num_real)
    except (RuntimeError, EOFError, ValueError, KeyError, TypeError, OSError, pickle.UnpicklingError) as error:
        rank_zero_warn(f"the statistics in '{path}' cannot be used ({error}); they are computed anew.")
        return False
    return True


def save_statistics(path: Path, statistics: dict[str, Tensor]) -> None:
    """Write statistics under another name and rename: a run that is killed leaves no broken file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            torch.save(statistics, file)
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)
