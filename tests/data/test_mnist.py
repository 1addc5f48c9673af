from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from fldd_lightning import FLDDError
from fldd_lightning.data import MNISTDataModule


def write_idx(path: Path, array: np.ndarray) -> None:
    raw = struct.pack(f">{1 + array.ndim}I", 0x0800 + array.ndim, *array.shape) + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for part, num, ending in (("train", 30, ".gz"), ("t10k", 7, "")):
        write_idx(tmp_path / f"{part}-images-idx3-ubyte{ending}", rng.integers(0, 256, (num, 28, 28)))
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte{ending}", rng.integers(0, 10, num))
    return tmp_path


def test_pools_and_splits(folder: Path) -> None:
    full = MNISTDataModule(str(folder), size=28, num_val=10)
    assert full.shape == (28, 28)
    assert [len(full.splits[name]) for name in ("train", "val", "test")] == [20, 10, 7]
    raw = np.frombuffer((folder / "t10k-images-idx3-ubyte").read_bytes(), np.uint8, offset=16).reshape(7, 28, 28)
    assert np.array_equal(full.splits["test"].x.numpy(), raw / 255 > 0.5)
    pooled = MNISTDataModule(str(folder), size=8, num_val=10).splits["test"].x
    padded = np.pad(raw.astype(float), ((0, 0), (2, 2), (2, 2)))
    assert np.array_equal(pooled.numpy(), padded.reshape(7, 8, 4, 8, 4).mean((2, 4)).round() > 127.5)
    one_file = MNISTDataModule(str(folder / "train-labels-idx1-ubyte.gz"), num_val=10)
    assert torch.equal(one_file.splits["val"].x, full.splits["val"].x)
    labels = full.splits["test"].labels
    assert labels is not None
    assert labels.dtype == torch.long


def test_nothing_is_written_beside_the_files(folder: Path) -> None:
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.iterdir()}
    folder.chmod(0o500)
    try:
        _ = MNISTDataModule(str(folder), num_val=10).splits
    finally:
        folder.chmod(0o700)
    assert {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.iterdir()} == before


def test_bad_files_and_options(folder: Path) -> None:
    with pytest.raises(FLDDError, match="size is 9"):
        MNISTDataModule(str(folder), size=9)
    with pytest.raises(FLDDError, match=r"threshold of .* is 1"):
        MNISTDataModule(str(folder), threshold=1.0)
    with pytest.raises(FLDDError, match="num_val is 30"):
        _ = MNISTDataModule(str(folder), num_val=30).splits
    with pytest.raises(FLDDError, match="does not exist"):
        _ = MNISTDataModule(str(folder / "nowhere")).splits
    labels = folder / "t10k-labels-idx1-ubyte"
    labels.rename(folder / "away")
    with pytest.raises(FLDDError, match="no file 't10k-labels"):
        _ = MNISTDataModule(str(folder), num_val=10).splits
    (folder / "away").rename(labels)
    path = folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(FLDDError, match="cannot read"):
        _ = MNISTDataModule(str(folder), num_val=10).splits
    path.write_bytes(gzip.compress(b"\0" * 100))
    with pytest.raises(FLDDError, match=r"cannot read '.*: it is no idx file"):
        _ = MNISTDataModule(str(folder), num_val=10).splits
    for wrong in (b"", b"\0\0\x08\x01" + (7).to_bytes(4, "big") + bytes(7), b"\0\0\x0d\x03" + bytes(16)):
        path.write_bytes(gzip.compress(wrong))  # nothing, labels, and numbers that are no bytes
        with pytest.raises(FLDDError, match=r"cannot read '.*train-images-idx3-ubyte\.gz': .+Copy or download"):
            _ = MNISTDataModule(str(folder), num_val=10).splits
    write_idx(path, np.zeros((29, 28, 28)))
    with pytest.raises(FLDDError, match="29 images, but 30 labels"):
        _ = MNISTDataModule(str(folder), num_val=10).splits
