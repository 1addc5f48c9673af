"""A resumed run sees the batches that the uninterrupted one would have seen."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from fldd_lightning.data import DiscreteDataModule, Split
from fldd_lightning.data.loaders import ResumableLoader, ResumableSampler, apart_from_training


class Numbers(DiscreteDataModule):
    """Seventy examples to train on: eight batches of eight, and six examples that each epoch leaves out."""

    def load(self) -> dict[str, Split]:
        x = torch.arange(90).unsqueeze(1) % 3
        return {"train": Split(x[:70]), "val": Split(x[70:80]), "test": Split(x[80:])}


class Recorder(LightningModule):
    """Remembers which examples it was trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[list[int]] = []

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        self.seen.append(batch["index"].tolist())
        return self.weight**2

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.log("loss", batch["x"].float().mean())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["done"] = len(self.seen)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def run(folder: Path, path: str | None = None, workers: int = 0, **options: Any) -> list[list[int]]:
    """Train, from a checkpoint or from the start; the examples of every batch."""
    defaults = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    model = Recorder()
    defaults |= {"default_root_dir": folder, "max_steps": 27, "enable_checkpointing": "callbacks" in options}
    trainer = Trainer(**{**defaults, **options})
    trainer.fit(model, Numbers(batch_size=8, num_workers=workers), ckpt_path=path)
    return model.seen


def test_training_order_is_of_the_seed_and_the_epoch(tmp_path: Path) -> None:
    seen = run(tmp_path)
    assert len(seen) == 27
    epochs = [list(chain(*seen[i : i + 8])) for i in (0, 8, 16)]
    assert all(len(set(epoch)) == 64 for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert run(tmp_path, limit_val_batches=0) == seen
    assert run(tmp_path, workers=2) == seen
    loader = Numbers(batch_size=8).train_dataloader()
    assert [batch["index"].tolist() for _ in range(2) for batch in loader] == seen[:16]


@pytest.mark.parametrize(
    ("steps", "workers", "options"),
    [
        (range(1, 18), 0, {"limit_val_batches": 0}),
        ((3, 8, 10, 16), 2, {"limit_val_batches": 0}),
        (range(1, 18), 0, {}),  # with validation at the end of an epoch
        ((3, 4, 8, 9, 16), 0, {"val_check_interval": 4}),
        ((3, 5, 7, 10), 0, {"limit_train_batches": 5}),
        ((3, 5, 10), 2, {"limit_train_batches": 5}),
        ((2, 4, 6, 8), 0, {"accumulate_grad_batches": 2, "max_steps": 11}),
        ((1, 2, 3, 4, 6), 0, {"accumulate_grad_batches": 3, "max_steps": 11}),
        ((2, 4, 5), 0, {"reload_dataloaders_every_n_epochs": 1, "limit_train_batches": 5}),
    ],
)
def test_resuming_from_any_step(tmp_path: Path, steps: Any, workers: int, options: dict[str, Any]) -> None:
    saving = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    seen = run(tmp_path, workers=workers, callbacks=[saving], **options)
    for step in steps:
        path = str(tmp_path / f"step={step}.ckpt")
        done = torch.load(path, weights_only=True)["done"]
        assert run(tmp_path, path, workers, **options) == seen[done:], step


@pytest.mark.parametrize("saving", [{"save_on_train_epoch_end": True}, {"monitor": "loss"}])
@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_from_the_end_of_an_epoch(tmp_path: Path, saving: dict[str, Any], workers: int) -> None:
    """Where Lightning has counted the epoch, and after its validation."""
    callback = ModelCheckpoint(tmp_path, filename="{epoch}", every_n_epochs=1, save_top_k=-1, **saving)
    seen = run(tmp_path, workers=workers, callbacks=[callback])
    for epoch in range(3):
        assert run(tmp_path, str(tmp_path / f"epoch={epoch}.ckpt"), workers) == seen[8 * epoch + 8 :]


@pytest.mark.parametrize("stop", [3, 8, 11, 16])
def test_resuming_a_run_that_has_ended(tmp_path: Path, stop: int) -> None:
    seen = run(tmp_path)
    trainer = Trainer(
        accelerator="cpu", logger=False, max_steps=stop, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=tmp_path, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(Recorder(), Numbers(batch_size=8))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    assert run(tmp_path, str(tmp_path / "last.ckpt")) == seen[stop:]


def test_two_processes_share_an_epoch_and_resume_in_it() -> None:
    split = Numbers().splits["train"]

    def loader(rank: int) -> ResumableLoader:
        return ResumableLoader(split, batch_size=8, sampler=ResumableSampler(split, 2, rank, seed=3), drop_last=True)

    shares = []
    for rank in range(2):
        whole = loader(rank)
        epochs = [[batch["index"].tolist() for batch in whole] for _ in range(2)]
        partial, resumed = loader(rank), loader(rank)
        list(partial)
        second = iter(partial)
        got = [next(second)["index"].tolist() for _ in range(2)]
        resumed.load_state_dict(partial.state_dict())
        assert got + [batch["index"].tolist() for batch in resumed] == epochs[1]
        shares.append(epochs[0])
    assert [len(share) for share in shares] == [4, 4]
    assert len(set(chain(*shares[0], *shares[1]))) == 64


def test_looking_at_the_data_apart_from_training_moves_nothing() -> None:
    loader = Numbers(batch_size=8, num_workers=2).train_dataloader()
    expected = [batch["index"].tolist() for batch in Numbers(batch_size=8).train_dataloader()]
    batches = iter(loader)
    seen = [next(batches)["index"].tolist() for _ in range(3)]
    apart = torch.cat([batch["index"] for batch in apart_from_training(loader)])
    assert sorted(apart.tolist()) == list(range(70))
    assert seen + [batch["index"].tolist() for batch in batches] == expected
    assert isinstance(loader, ResumableLoader)
    assert loader.state_dict() == {"epoch": 1, "batches": 0}


class Negated(Split):
    """Examples of a class of one's own."""

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        item = super().__getitem__(index)
        return {**item, "x": -item["x"]}


def test_a_split_of_ones_own_is_asked_for_each_example() -> None:
    x, rows = torch.arange(12).view(6, 2), torch.tensor([4, 1, 3])
    plain, own = Split(x, torch.arange(6), rows), Negated(x, torch.arange(6), rows)
    for split, sign in ((plain, 1), (own, -1)):
        (batch,) = torch.utils.data.DataLoader(split, 3)
        assert torch.equal(batch["x"], sign * x[rows])
        assert (batch["index"].tolist(), batch["label"].tolist()) == ([0, 1, 2], [4, 1, 3])
        assert torch.equal(split[2]["x"], sign * x[3])
