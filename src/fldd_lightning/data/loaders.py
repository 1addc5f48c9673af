"""Loaders: one that a resumed run goes on with, and training data looked at apart from training."""

from __future__ import annotations

import atexit
import signal
import sys
from collections.abc import Iterable, Iterator
from multiprocessing import active_children
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, RandomSampler, SequentialSampler

from ..errors import FLDDError
from ..interrupted import no_word_of_children

__all__ = [
    "ResumableLoader",
    "ResumableSampler",
    "StreamLoader",
    "Visit",
    "apart_from_training",
    "outlive_sigterm",
    "whole_batches",
]


_AT_ONCE = 2**12  # places turned into Python's integers at once


class Visit(int):
    """The place of an example in its split, at its turn in an epoch of training; what is drawn then goes by both.

    Attributes:
        epoch: The epoch.
    """

    epoch: int

    def generator(self, seed: int) -> torch.Generator:
        """Noise that depends on a seed, the example and the epoch, whatever process asks for it."""
        mixed = np.random.SeedSequence((seed, self.epoch, int(self))).generate_state(1, np.uint64)
        return torch.Generator().manual_seed(int(mixed[0]) % 2**63)


class ResumableSampler(DistributedSampler[dict[str, Tensor]]):
    """Every epoch in an order of its own, which depends on the seed and the epoch alone.

    It is the order of a shuffling DistributedSampler. That takes 40 bytes for every example of an epoch, this 8.

    :class:`ResumableLoader` sets the epoch and where in it to start.
    """

    start = 0  # examples of this process that are left out

    def __iter__(self) -> Iterator[Any]:
        number = len(self.dataset)  # type: ignore[arg-type]
        order = torch.randperm(number, generator=torch.Generator().manual_seed(self.seed + self.epoch))
        if self.total_size > number:  # some come twice, so that all processes have as many
            order = order.repeat(-(-self.total_size // number))
        order = order[self.rank : self.total_size : self.num_replicas]
        for first in range(self.start, len(order), _AT_ONCE):
            for index in order[first : first + _AT_ONCE].tolist():
                visit = Visit(index)
                visit.epoch = self.epoch
                yield visit

    def set_epoch(self, epoch: int) -> None:
        """Ignored: Lightning counts an epoch that a stopped run was in the middle of as a whole one."""


class ResumableLoader(DataLoader[dict[str, Tensor]]):
    """A loader whose place in the data is kept in checkpoints.

    Lightning saves :meth:`state_dict` of a training loader and hands it to :meth:`load_state_dict` when a run is
    resumed. Batches count when they are handed out, whatever worker processes have fetched in advance.

    Attributes:
        sampler: A :class:`ResumableSampler`.
        epoch: The present epoch, or the last one if none has begun since.
        batches: Batches of it that were handed out.
        trainer: Says where an epoch ends that ``limit_train_batches`` cuts short.
        is_restored: Whether it is to go on from a state and has not handed out a batch since.
    """

    sampler: ResumableSampler
    epoch = 0
    batches = 0
    trainer: Trainer | None = None
    is_restored = False

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        if self.batches and not self.is_restored:
            self.epoch, self.batches = self.epoch + 1, 0
        self.sampler.epoch = self.epoch
        self.sampler.start = self.batches * int(self.batch_size or 1)
        return self._counted(super().__iter__())

    def _counted(self, batches: Iterator[Any]) -> Iterator[Any]:
        for batch in batches:
            self.batches, self.is_restored = self.batches + 1, False
            yield batch

    def state_dict(self) -> dict[str, int]:
        """The epoch, and the batches of it that were handed out; an epoch at its end is the next at its start."""
        limit = len(self) if self.trainer is None else min(len(self), self.trainer.num_training_batches)
        is_whole = self.batches >= limit
        return {"epoch": self.epoch + is_whole, "batches": 0 if is_whole else self.batches}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Make the next iteration go on where the state was taken."""
        self.epoch, self.batches = state["epoch"], state["batches"]
        self.is_restored = True


class StreamLoader(ResumableLoader):
    """A :class:`ResumableLoader` of a :class:`TextStream`, whose epochs all start at its beginning.

    To go on, the stream is read again up to its place: only so is it known what the next example is.
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        self.batches = self.batches if self.is_restored else 0
        if self.batches:
            rank_zero_info(f"Reading over {self.batches} batches of the stream, to go on where training was.")
        stream: Any = self.dataset
        stream.start = self.batches, int(self.batch_size or 1)
        batches = DataLoader.__iter__(self)  # its workers have copies of the stream
        stream.start = 0, 1
        return self._counted(batches)

    def state_dict(self) -> dict[str, int]:
        """The batches that were trained on, and how the stream is dealt out, which the place in it depends on.

        Those handed out may be one more: Lightning looks whether there is a next one where nobody knows the length.
        """
        batches = self.batches if self.trainer is None else self.trainer.fit_loop.batch_idx + 1
        is_whole = self.trainer is not None and batches >= self.trainer.num_training_batches
        return {"epoch": self.epoch + is_whole, "batches": 0 if is_whole else batches, **self._dealt()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from a place, unless the stream is dealt out otherwise now: then it begins anew, and that is said."""
        if all(state.get(name) == number for name, number in self._dealt().items()):
            super().load_state_dict(state)
        else:
            rank_zero_warn(
                "the stream begins anew: the checkpoint was written with another batch_size, num_workers or number of "
                "processes, which examples are dealt out by. Give the ones of before to go on exactly."
            )

    def _dealt(self) -> dict[str, int]:
        stream: Any = self.dataset
        return {"batch_size": int(self.batch_size or 1), "workers": self.num_workers, "world": stream.world}


def whole_batches(length: int, size: int, rank: int, world: int) -> range:
    """Which examples one of several processes takes: neighbouring whole batches, as even in number as can be.

    Args:
        length: How many examples there are.
        size: Of a batch; the last one may have fewer.
        rank: Number of the process, from 0.
        world: How many processes there are.
    """
    number = -(-length // size)
    first, last = (min(length, i * number // world * size) for i in (rank, rank + 1))
    return range(first, last)


def outlive_sigterm(worker: int) -> None:
    """Let a worker ignore the first SIGTERM: schedulers send it to all processes, and the step at hand needs batches.

    The training process ends its workers without signals, but at its own end; see :func:`_end_workers`.

    Args:
        worker: Its number, which does not matter.
    """
    if sys.platform != "win32":
        signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))


@atexit.register
def _end_workers() -> None:
    """End workers whose loader is still held when the program ends: Python sends them one SIGTERM, and then waits."""
    no_word_of_children()
    for child in active_children():
        for _ in range(10):
            if child.daemon and child.is_alive():
                child.terminate()
                child.join(0.1)


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
                "Train on one DataLoader, or do without fitted latents and without CollapseMonitor."
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
