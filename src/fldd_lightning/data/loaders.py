"""Looking at training data apart from training."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, RandomSampler, SequentialSampler

from ..errors import FLDDError

__all__ = ["apart_from_training"]


def apart_from_training(loader: Any) -> Iterable[Any]:
    """The batches of a loader from a loader of its own, in random order.

    Iterating over the trainer's would start its workers' epoch anew. In every process it is the whole data set in
    the same order, but for streams and for samplers of the user's own, which are kept.

    Raises:
        FLDDError: If the loader is an iterator, which could be gone through only once, or several loaders.
    """
    if not isinstance(loader, DataLoader):
        if isinstance(loader, (dict, list, tuple)) or iter(loader) is loader:
            raise FLDDError(
                f"cannot look at the training data apart from training, as they are a {type(loader).__name__}. "
                "Train on one DataLoader, or do without a code and without CollapseMonitor."
            )
        return loader  # type: ignore[no-any-return]
    options: dict[str, Any] = {"collate_fn": loader.collate_fn, "generator": torch.Generator().manual_seed(0)}
    sampler = loader.sampler
    is_usual = isinstance(sampler, (RandomSampler, SequentialSampler)) or (
        isinstance(sampler, DistributedSampler) and getattr(sampler, "dataset", loader.dataset) is loader.dataset
    )
    if loader.batch_size is None and loader.batch_sampler is not None:
        options["batch_sampler"] = loader.batch_sampler
    else:
        options["batch_size"] = loader.batch_size
        if not isinstance(loader.dataset, IterableDataset):
            options.update({"shuffle": True} if is_usual else {"sampler": sampler})
    return DataLoader(loader.dataset, **options)
