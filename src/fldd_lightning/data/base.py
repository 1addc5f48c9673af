"""What every data source has in common: integer arrays in three splits, and exact loaders."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Sampler

from ..checkpoint import load_data
from ..errors import FLDDError
from .loaders import ResumableLoader, ResumableSampler

__all__ = ["DiscreteDataModule", "Split", "split_rows"]


class Split(Dataset[dict[str, Tensor]]):
    """Examples ``x`` with their ``index`` and, if there are any, their ``label``.

    Args:
        x: Integers ``(N, *shape)``.
        labels: ``(N,)``.
        rows: Where in the source each example stands, ``(N,)``; None if that is not known.
    """

    def __init__(self, x: Tensor, labels: Tensor | None = None, rows: Tensor | None = None) -> None:
        self.x, self.labels, self.rows = x, labels, rows

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        item = {"x": self.x[index], "index": torch.tensor(index)}
        if self.labels is not None:
            item["label"] = self.labels[index]
        return item

    def __getitems__(self, indices: list[int]) -> list[dict[str, Tensor]]:
        return [self[i] for i in indices]


def split_rows(x: Tensor, val_fraction: float, test_fraction: float, seed: int) -> dict[str, Split]:
    """Split examples ``(N, *shape)`` at random; at least one for validation and one for testing.

    Raises:
        FLDDError: If the shares or the number of examples do not give three splits.
    """
    if min(val_fraction, test_fraction) <= 0 or val_fraction + test_fraction >= 1:
        raise FLDDError("val_fraction and test_fraction must be positive and leave examples for training.")
    if len(x) < 3:
        raise FLDDError(f"{len(x)} examples cannot be split in three: give at least 3 examples.")
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    num_val = max(1, round(len(x) * val_fraction))
    num_test = max(1, round(len(x) * test_fraction))
    val, test, train = order[:num_val], order[num_val : num_val + num_test], order[num_val + num_test :]
    return {name: Split(x[rows], rows=rows) for name, rows in (("train", train), ("val", val), ("test", test))}


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
    """

    vocabulary: Sequence[str] | None = None

    def __init__(self, batch_size: int = 128, num_workers: int = 0, seed: int = 0) -> None:
        super().__init__()
        if batch_size < 1 or num_workers < 0:
            raise FLDDError("batch_size must be at least 1 and num_workers at least 0.")
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

        Joins the splits by their ``rows``, which :func:`split_rows` gives. Splits without them come one after the
        other: train, val, test. A subclass overrides this if a single example should do, or if :meth:`load` leaves
        something out.
        """
        splits = [self.splits[name] for name in ("train", "val", "test")]
        x = torch.cat([split.x for split in splits])
        labels = [split.labels for split in splits if split.labels is not None]
        rows = [split.rows for split in splits if split.rows is not None]
        order = torch.cat(rows).argsort() if len(rows) == len(splits) else torch.arange(len(x))
        return Split(x[order], torch.cat(labels)[order] if len(labels) == len(splits) else None)

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
        return tuple(self.splits["train"].x.shape[1:])

    @property
    def padded(self) -> bool:
        """Whether the last class is PAD, see :class:`fldd_lightning.Spec`."""
        return False

    def setup(self, stage: str) -> None:
        _ = self.splits

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        split = self.splits["train"]
        sampler = ResumableSampler(split, *self._world(), shuffle=True, seed=self.seed)
        # A smaller last batch would weigh its examples more; with less than one batch there is only it.
        loader = ResumableLoader(**self._options(split, sampler, drop_last=len(sampler) >= self.batch_size))
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
        return self._evaluation_loader("test")

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
