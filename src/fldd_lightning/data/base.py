"""What every data source has in common: integer arrays in three splits, and exact loaders."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Sampler

from ..checkpoint import load_data
from ..errors import FLDDError
from ..ranges import BETWEEN, NATURAL, SEED, Range, check_numbers
from .loaders import ResumableLoader, ResumableSampler, outlive_sigterm, whole_batches
from .mapped import MappedFile

__all__ = ["DiscreteDataModule", "Split", "joined", "split_rows"]


_BATCH = Range(1, 2**31 - 1, is_whole=True)


class Split(Dataset[dict[str, Tensor]]):
    """Examples ``x`` with their ``index`` and, if there are any, their ``label`` and other conditions.

    Args:
        x: Integers ``(N, *shape)``, of any integer type; batches have the same, or signed ones for unsigned.
        labels: Labels ``(N,)``.
        rows: Which of the N examples are of this split ``(n,)``; all if None. No example is copied before it is used.
        conditions: Further labels ``(N,)`` and vectors ``(N, m)``, by the names that batches have for them.
        mapped: The file that ``x`` is in, if it is on disk.
    """

    def __init__(
        self,
        x: Tensor,
        labels: Tensor | None = None,
        rows: Tensor | None = None,
        conditions: Mapping[str, Tensor] | None = None,
        mapped: MappedFile | None = None,
    ) -> None:
        self._x, self._labels, self._rows, self._conditions = x, labels, rows, dict(conditions or {})
        self._mapped = mapped

    @property
    def x(self) -> Tensor:
        """The examples of this split ``(n, *shape)``; a copy where they are some of many."""
        return _usable(self._x if self._rows is None else self._x[self._rows])

    @property
    def labels(self) -> Tensor | None:
        """Their labels ``(n,)``, if there are any."""
        return self._labels if self._labels is None or self._rows is None else self._labels[self._rows]

    @property
    def conditions(self) -> dict[str, Tensor]:
        """Their further labels ``(n,)`` and vectors ``(n, m)``."""
        return {name: c if self._rows is None else c[self._rows] for name, c in self._conditions.items()}

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return tuple(self._x.shape[1:])

    @property
    def source(self) -> tuple[Tensor, Tensor | None]:
        """The examples it is taken from ``(N, *shape)``, and which of them it has ``(n,)``; None for all."""
        return self._x, self._rows

    def part(self, rows: Tensor) -> Split:
        """A split of some examples of this one, whose ``rows`` ``(n,)`` are given; it shares their memory."""
        rows = rows if self._rows is None else self._rows[rows]
        return Split(self._x, self._labels, rows, self._conditions, self._mapped)

    def __len__(self) -> int:
        return len(self._x if self._rows is None else self._rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.look_up([index])[0]

    def __getitems__(self, indices: list[int]) -> list[dict[str, Tensor]]:
        if type(self).__getitem__ is not Split.__getitem__:  # a subclass's own
            return [self[i] for i in indices]
        return self.look_up(indices)

    def look_up(self, indices: list[int]) -> list[dict[str, Tensor]]:
        """The examples of a batch, all at once: one at a time they take longer than a small network."""
        if self._mapped is not None:
            self._mapped.read(len(indices), self._x[0].nbytes)
        index = torch.tensor(indices)  # (n,)
        rows = index if self._rows is None else self._rows[index]
        columns = {"x": _usable(self._x[rows]), "index": index}
        if self._labels is not None:
            columns["label"] = self._labels[rows]
        columns |= {name: c[rows] for name, c in self._conditions.items()}
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _usable(x: Tensor) -> Tensor:
    """Integers that torch computes with."""
    if x.dtype == torch.uint16:
        return x.int()
    return x.long() if x.dtype in (torch.uint32, torch.uint64) else x


def check_shares(val_fraction: float, test_fraction: float) -> None:
    """Raise FLDDError unless both are positive and leave examples for training."""
    check_numbers(locals(), val_fraction=BETWEEN, test_fraction=BETWEEN)
    if val_fraction + test_fraction >= 1:
        raise FLDDError(
            f"val_fraction is {val_fraction} and test_fraction {test_fraction}, but they must leave examples to train."
        )


def split_rows(
    x: Tensor | Split, val_fraction: float, test_fraction: float, seed: int, given: Mapping[str, Split] | None = None
) -> dict[str, Split]:
    """Split examples at random; at least one for validation and one for testing. They are not copied.

    Args:
        x: Examples ``(N, *shape)``, or a split of them with their labels.
        val_fraction: Share of them for validation.
        test_fraction: Share of them for testing.
        seed: Decides which.
        given: Splits ``val`` or ``test`` that there are already. They are used as they are, and nothing is drawn for
            them.

    Raises:
        FLDDError: If the shares or the number of examples do not give three splits.
    """
    check_shares(val_fraction, test_fraction)
    train = Split(x) if isinstance(x, Tensor) else x
    splits = dict(given or {})
    shares = {"val": val_fraction, "test": test_fraction}
    missing = {name: share for name, share in shares.items() if name not in splits}
    if len(train) <= len(missing):
        raise FLDDError(
            f"{len(train)} examples cannot be split in {len(missing) + 1}: give at least {len(missing) + 1}."
        )
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed)) if missing else None
    for name, share in missing.items():
        assert order is not None
        number = max(1, round(len(train) * share))
        splits[name], order = train.part(order[:number]), order[number:]
    return {"train": train if order is None else train.part(order), "val": splits["val"], "test": splits["test"]}


def joined(splits: Sequence[Split], order: Tensor | None = None) -> Split:
    """The examples of splits one after the other, or in an order ``(N,)``; with what all of them have beside ``x``."""
    x = torch.cat([split.x for split in splits])
    labels = [split.labels for split in splits if split.labels is not None]
    conditions = [split.conditions for split in splits]
    shared = [name for name in conditions[0] if all(name in each for each in conditions)]
    further = {name: torch.cat([each[name] for each in conditions]) for name in shared}
    whole = Split(x, torch.cat(labels) if len(labels) == len(splits) else None, conditions=further)
    return whole if order is None else whole.part(order)


class DiscreteDataModule(LightningDataModule):
    """Base class of data sources held in memory.

    A subclass gives :meth:`load`; ``num_classes``, ``shape`` and ``num_labels`` follow from it or
    are overridden. Training order depends on ``seed`` and the epoch alone, and a resumed run
    goes on with it; evaluation splits are shared out over processes without padding.

    Args:
        batch_size: Examples per batch and process.
        num_workers: Worker processes of the loaders.
        seed: Seed of the splits and of the training order.

    Attributes:
        vocabulary: What the K integers stand for, if they have names; set by :meth:`load`. Models take it
            over and keep it in their checkpoints.
        classes_option: Name of the option that says K where data lack the last classes; None if there is none.
    """

    vocabulary: Sequence[str] | None = None
    classes_option: str | None = None

    def __init__(self, batch_size: int = 128, num_workers: int = 0, seed: int = 0) -> None:
        check_numbers(locals(), batch_size=_BATCH, num_workers=NATURAL, seed=SEED)
        super().__init__()
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed
        self._splits: dict[str, Split] | None = None
        self._place: dict[str, int] | None = None  # where a resumed run goes on

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls, checkpoint_path: Any, map_location: Any = None, trusted: Sequence[Any] = (), **overrides: Any
    ) -> Any:
        """Make the data module that ``fldd-lightning fit`` trained with. Nothing in the file is run.

        Args:
            checkpoint_path: The file.
            map_location: An argument of Lightning's; no data are on a device.
            trusted: Your own classes that the file may name.
            overrides: Options in place of those in the file.

        Raises:
            FLDDError: If the file is not a checkpoint of this package, does not say its data, is of another class, or
                names a class that is neither this package's nor trusted.
        """
        return load_data(cls, checkpoint_path, trusted, overrides)

    @abstractmethod
    def load(self) -> dict[str, Split]:
        """Read the data and return the splits ``train``, ``val`` and ``test``."""

    def all_rows(self) -> Split:
        """Every example in the order of the source, without splits; what ``fldd-lightning score`` goes through.

        Splits that were drawn from one source, as :func:`split_rows` draws them, are put back in its order. Others come
        one after the other: train, val, test. A subclass overrides this if a single example should do, or if
        :meth:`load` leaves something out.
        """
        splits = [self.splits[name] for name in ("train", "val", "test")]
        sources, rows = zip(*(split.source for split in splits), strict=True)
        known = [each for each in rows if each is not None]
        one_source = len(known) == len(splits) and all(each is sources[0] for each in sources)
        return joined(splits, torch.cat(known).argsort() if one_source else None)

    @property
    def splits(self) -> dict[str, Split]:
        """The three splits, read once."""
        if self._splits is None:
            splits = self.load()
            for name in ("train", "val", "test"):
                if len(splits[name]) == 0:
                    raise FLDDError(f"the {name} split is empty: give more data or a larger share for it.")
            self._splits = splits
        return self._splits

    @property
    def num_classes(self) -> int:
        """K."""
        return int(max(split.x.max() for split in self.splits.values())) + 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return self.splits["train"].shape

    @property
    def num_labels(self) -> int:
        """Number of class labels, 0 if there are none."""
        labels = [split.labels for split in self.splits.values() if split.labels is not None]
        return max((int(each.max()) + 1 for each in labels), default=0)

    @property
    def condition_sizes(self) -> dict[str, int]:
        """What comes with every example, and its size; see :class:`fldd_lightning.Spec`."""
        sizes = {"label": self.num_labels} if self.num_labels else {}
        for split in self.splits.values():
            for name, c in split.conditions.items():
                size = c.shape[1] if c.is_floating_point() else int(c.max()) + 1
                sizes[name] = max(sizes.get(name, 0), size)
        return sizes

    def keep_classes(self, num_classes: int) -> None:
        """Keep K as the option that says it, if it was found in the data: checkpoints know it, other data may not."""
        if self.classes_option in self.hparams:
            self.hparams[self.classes_option] = num_classes

    @property
    def padded(self) -> bool:
        """Whether the last class is PAD, see :class:`fldd_lightning.Spec`."""
        return False

    @property
    def num_values(self) -> Sequence[int] | None:
        """How many values each coordinate has, if they differ; see :class:`fldd_lightning.Spec`."""
        return None

    def setup(self, stage: str) -> None:
        _ = self.splits

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        loader = self._training_loader()
        if self.trainer is None:
            return loader
        # loaders may be made anew in the middle of a run, and also before it goes on
        loader.trainer, loader.epoch = self.trainer, self.trainer.current_epoch
        before = self.trainer.train_dataloader
        if isinstance(before, ResumableLoader) and before.is_restored:
            self._place = before.state_dict()
        if self._place is not None:
            loader.load_state_dict(self._place)
        self._place = None
        return loader

    def _training_loader(self) -> ResumableLoader:
        split, (world, rank) = self.splits["train"], self._world()
        # without padding: so that an epoch has as many whole batches for any number of processes
        cut = len(split) >= world
        sampler = ResumableSampler(split, world, rank, shuffle=True, seed=self.seed, drop_last=cut)
        # A smaller last batch would weigh its examples more; with less than one batch there is only it.
        return ResumableLoader(**self._options(split, sampler, drop_last=len(sampler) >= self.batch_size))

    def state_dict(self) -> dict[str, int]:
        """Where training stands in the data, for checkpoints.

        Lightning would keep the loader's own state. It does not restore that of a loader that is there early, because
        a learning rate depends on the number of steps.
        """
        loader = None if self.trainer is None else self.trainer.train_dataloader
        return loader.state_dict() if isinstance(loader, ResumableLoader) else {}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Make the next training loader go on where the checkpoint was written, if training is resumed."""
        if self.trainer is not None and self.trainer.state.fn == TrainerFn.FITTING:
            self._place = state_dict

    def val_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        return self._evaluation_loader("val")

    def test_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        return self._evaluation_loader("test")

    def predict_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """The test data, in order. Each process has neighbouring batches, the same ones that a single process has."""
        split = self.splits["test"]
        sampler = _PartSampler(len(split), *self._world(), self.batch_size)
        return DataLoader(**self._options(split, sampler, drop_last=False))

    def _evaluation_loader(self, name: str) -> DataLoader[dict[str, Tensor]]:
        split = self.splits[name]
        return DataLoader(**self._options(split, _ShareSampler(len(split), *self._world()), drop_last=False))

    def _options(self, split: Split, sampler: Sampler[Any], drop_last: bool) -> dict[str, Any]:
        return {
            "dataset": split,
            "batch_size": self.batch_size,
            "sampler": sampler,
            "drop_last": drop_last,
            "num_workers": self.num_workers,
            "persistent_workers": self.num_workers > 0,
            "worker_init_fn": outlive_sigterm,
        }

    def _world(self) -> tuple[int, int]:
        trainer = self.trainer
        return (1, 0) if trainer is None else (trainer.world_size, trainer.global_rank)


class _ShareSampler(DistributedSampler[int]):
    """Every ``world``-th example from ``rank`` on: no example twice, none left out.

    A DistributedSampler by type, so that Lightning does not put its padding one in its place.
    """

    def __init__(self, length: int, world: int, rank: int) -> None:
        self.indices = range(rank, length, world)

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)

    def __len__(self) -> int:
        return len(self.indices)

    def set_epoch(self, epoch: int) -> None:
        """Evaluation order does not change."""


class _PartSampler(_ShareSampler):
    """Neighbouring whole batches for each process, so that each is the batch that one process has; none twice.

    If there are fewer batches than processes, the examples are shared out in place of batches.

    Raises:
        FLDDError: If there are fewer examples than processes.
    """

    def __init__(self, length: int, world: int, rank: int, batch_size: int) -> None:
        if length < world:
            raise FLDDError(f"{world} processes cannot share {length} test examples: start fewer, --trainer.devices.")
        size = batch_size if length > (world - 1) * batch_size else 1
        self.indices = whole_batches(length, size, rank, world)
