"""Looking at training data apart from training."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset

__all__ = ["apart_from_training"]


def apart_from_training(loader: Any) -> Iterable[Any]:
    """The batches of a loader in random order, from a loader of its own.

    Iterating over the trainer's would start its workers' epoch anew. In every process it is the whole data set, in
    the same order, but for streams, of which each process has its share.
    """
    if not isinstance(loader, DataLoader):
        return loader  # type: ignore[no-any-return]
    return DataLoader(
        loader.dataset,
        batch_size=loader.batch_size,
        shuffle=not isinstance(loader.dataset, IterableDataset),
        collate_fn=loader.collate_fn,
        generator=torch.Generator().manual_seed(0),
    )
