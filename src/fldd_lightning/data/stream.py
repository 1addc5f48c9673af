"""Training text that is read, tokenised and packed as it is needed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from ..errors import FLDDError
from .corpus import Documents
from .rows import Rows

__all__ = ["TextStream"]


class TextStream(IterableDataset[dict[str, Tensor]]):
    """Rows of an endless stream of documents, shared out over processes and their workers.

    Every pass is shuffled within a buffer, by seed and number of the pass. It does not end, so
    that no process waits for one that has run out: the trainer's ``max_steps`` or ``max_time`` ends the run.

    Args:
        documents: A ``datasets.IterableDataset`` and its column.
        rows: How they become rows.
        world: Number of processes.
        rank: Of this process.
        seed: Of the order.
        buffer: Documents that are shuffled together.

    Attributes:
        start: How many batches of this process the next pass leaves out, and the rows of each: see
            :class:`StreamLoader`. The worker whose turn it is after them comes first.
    """

    def __init__(
        self, documents: Documents, rows: Rows, world: int = 1, rank: int = 0, seed: int = 0, buffer: int = 10_000
    ) -> None:
        self.documents, self.rows = documents, rows
        self.world, self.rank, self.seed, self.buffer = world, rank, seed, buffer
        self.start, self._passed = (0, 1), 0

    def share(self, number: int) -> Iterator[str]:
        """The documents of this process and worker in one pass; those of all make up the corpus, each once.

        All read all documents and keep every so many-th. Files are not dealt out: the library would deal out what
        ``skip`` leaves out with them, so that documents held out of the first file would come back.
        """
        workers, own = self._worker()
        shuffled = self.documents.table.shuffle(seed=self.seed + number, buffer_size=self.buffer)
        documents = replace(self.documents, table=shuffled)
        return islice(documents, self.rank * workers + own, None, self.world * workers)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        (self._passed, size), self.start = self.start, (0, 1)
        workers, own = self._worker()
        handed_out = (self._passed + workers - 1 - own) // workers  # by this worker, as they take turns
        return islice(self._all_rows(), handed_out * size, None)

    def _worker(self) -> tuple[int, int]:
        """How many workers there are, and which of them this one is: the one whose turn it is comes first."""
        info = get_worker_info()
        return (1, 0) if info is None else (info.num_workers, (info.id + self._passed) % info.num_workers)

    def _all_rows(self) -> Iterator[dict[str, Tensor]]:
        number = 0
        while True:
            is_empty = True
            for rows in self.rows.of(self.share(number)):
                for row in rows:
                    is_empty = False
                    yield {"x": torch.from_numpy(row).long()}
            if is_empty:
                raise FLDDError(
                    f"{self.documents.what}: a process or worker has too few documents to fill one example. Give more "
                    "text, fewer --data.num_workers, or a smaller --data.length."
                )
            number += 1
