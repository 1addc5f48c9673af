"""Statistics of real images on disk: found by content, written whole or not at all."""

from __future__ import annotations

import hashlib
import os
import pickle
import tempfile
from pathlib import Path

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from ..metrics import FeatureExtractor

__all__ = ["load_statistics", "save_statistics", "statistics_path"]


def statistics_path(folder: Path | None, x: Tensor, rendering: str, extractor: FeatureExtractor) -> Path | None:
    """Where the statistics of a split are kept.

    The name is a hash of every pixel, the way they are rendered and the extractor's weights:
    statistics of another data set, split, preprocessing or extractor are never taken by mistake.

    Args:
        folder: Of all statistics, or None.
        x: Images ``(N, *shape)``.
        rendering: Names how integers become pictures.
        extractor: Of the features.
    """
    if folder is None:
        return None
    digest = hashlib.sha256(f"{rendering} {tuple(x.shape)} {extractor.fingerprint()}".encode())
    digest.update(x.cpu().contiguous().numpy().astype("int64").tobytes())
    return folder / f"{extractor.metric_name}-{digest.hexdigest()[:24]}.pt"


def load_statistics(path: Path | None, num_features: int, num_real: int) -> dict[str, Tensor] | None:
    """Read statistics, or return None (and warn, if the file is broken) when they must be computed."""
    if path is None or not path.is_file():
        return None
    try:
        statistics: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
        fits = statistics["real_features_sum"].shape == (num_features,)
        if not fits or int(statistics["real_features_num_samples"]) != num_real:
            raise ValueError("it is of other images or features")
    except (RuntimeError, EOFError, ValueError, KeyError, TypeError, OSError, pickle.UnpicklingError) as error:
        rank_zero_warn(f"the statistics in '{path}' cannot be used ({error}); they are computed anew.")
        return None
    return statistics


def save_statistics(path: Path | None, statistics: dict[str, Tensor]) -> None:
    """Write statistics under another name and rename: a run that is killed leaves no broken file."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            torch.save(statistics, file)
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)
