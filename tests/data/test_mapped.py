"""Files that are larger than memory: mapped, not looked through if K is given, and given back as they are read."""

from __future__ import annotations

import sys
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from torch.utils.data import DistributedSampler

from fldd_lightning import FLDD, MLP, AbsorbingProcess, FLDDError
from fldd_lightning.data import ArrayDataModule, archive, array
from fldd_lightning.data.loaders import ResumableSampler
from fldd_lightning.data.mapped import MappedFile


def held() -> int:
    """Bytes of mapped files that this process has in memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssFile"))


@pytest.fixture
def mapped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "_MAPPED", 0)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems do not say what is held")
def test_what_was_read_is_given_back(tmp_path: Path, mapped: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fldd_lightning.data.mapped._MOST", 2**26)
    size = 2**28
    x = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.uint8, (2**18, size // 2**18))
    x[:, 0] = 1
    del x
    data = ArrayDataModule(str(tmp_path / "x.npy"))
    before = held()
    assert data.num_classes == 2
    assert held() - before < size / 4
    data.batch_size, before, most = 32, held(), 0
    for batch in islice(data.train_dataloader(), 200):
        assert bool((batch["x"][:, 0] == 1).all())
        most = max(most, held() - before)
    assert 0 < most < 0.75 * size


def test_a_copy_for_another_process_gives_nothing_back(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(10))
    file = MappedFile.of(np.load(tmp_path / "x.npy", "c")[2:].view(np.uint64))
    assert file is not None
    state: dict[str, Any] = file.__getstate__()
    other = MappedFile.__new__(MappedFile)
    other.__dict__.update(state)
    assert state["_pages"] is None
    other.read(10**6, 10**6)  # does nothing, and does not fail
    assert MappedFile.of(np.arange(10)) is None


def test_a_file_is_not_looked_through_if_its_classes_are_known(
    tmp_path: Path, mapped: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "x.npy", np.arange(40).reshape(20, 2) % 5)

    def looked(x: np.ndarray) -> tuple[int, int]:
        raise AssertionError("looked through")

    monkeypatch.setattr(array, "extremes", looked)
    with pytest.raises(AssertionError, match="looked through"):
        _ = ArrayDataModule(str(tmp_path / "x.npy")).num_classes
    assert ArrayDataModule(str(tmp_path / "x.npy"), num_classes=5).num_classes == 5


def test_a_value_out_of_range_is_refused_in_its_batch(tmp_path: Path, mapped: None) -> None:
    np.save(tmp_path / "x.npy", np.arange(40).reshape(20, 2) % 5)
    data = ArrayDataModule(str(tmp_path / "x.npy"), num_classes=4, batch_size=4)
    model = FLDD(4, (2,), num_steps=2, forward_process=AbsorbingProcess, denoiser=MLP, latents=[])
    trainer = Trainer(max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    with pytest.raises(FLDDError, match=r"values from 0 to 4, but the model has 4 classes"):
        trainer.fit(model, data)


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_the_value_that_is_refused_is_that_of_the_file(tmp_path: Path, mapped: None, dtype: type) -> None:
    np.save(tmp_path / "x.npy", np.full((20, 2), np.iinfo(dtype).max, dtype))
    batch = next(iter(ArrayDataModule(str(tmp_path / "x.npy"), num_classes=5, batch_size=4).train_dataloader()))
    with pytest.raises(FLDDError, match=f"values from {np.iinfo(dtype).max} to"):
        FLDD(5, (2,), num_steps=2, forward_process=AbsorbingProcess, denoiser=MLP).nelbo(batch)


@pytest.mark.parametrize("on_disk", [True, False])
def test_tokens_of_two_bytes_are_not_copied(tmp_path: Path, on_disk: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "_MAPPED", 0 if on_disk else 2**26)
    x = np.random.default_rng(0).integers(50_257, size=(30, 4)).astype(np.uint16)
    x[0] = 50_256
    np.save(tmp_path / "x.npy", x)
    data = ArrayDataModule(str(tmp_path / "x.npy"), batch_size=3)
    assert data.num_classes == 50_257
    assert data.splits["train"].source[0].element_size() == 2
    rows = torch.cat([data.splits[name].x for name in ("train", "val", "test")])
    assert sorted(rows.tolist()) == sorted(x.tolist())
    batches = torch.cat([batch["x"] for batch in data.train_dataloader()])
    assert not batches.dtype.is_floating_point
    assert int(batches.max()) >= 2**15
    assert {tuple(row) for row in batches.tolist()} <= {tuple(row) for row in x.tolist()}


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("world", [1, 3, 7])
def test_the_order_of_training_is_that_of_torch(world: int, drop_last: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fldd_lightning.data.loaders._AT_ONCE", 2)
    rows: Any = range(5 if not drop_last else 23)
    for rank in range(world):
        options: dict[str, Any] = {"num_replicas": world, "rank": rank, "seed": 4, "drop_last": drop_last}
        usual, own = DistributedSampler(rows, **options), ResumableSampler(rows, **options)
        usual.set_epoch(3)
        own.epoch, own.start = 3, 1
        places = list(own)
        assert [int(place) for place in places] == list(usual)[1:]
        assert all(place.epoch == 3 for place in places)
        assert len(own) == len(usual)
