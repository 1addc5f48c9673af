from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fldd_lightning import FLDDError, Spec
from fldd_lightning.data import ArrayDataModule, DigitsDataModule, split_rows
from fldd_lightning.data.base import _ShareSampler


@pytest.mark.parametrize("ending", ["npy", "npz", "pt"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_reads_every_format(ending: str, dtype: type, tmp_path: Path) -> None:
    x = (np.arange(60) % 7).astype(dtype).reshape(10, 3, 2)
    path = tmp_path / f"x.{ending}"
    if ending == "npy":
        np.save(path, x)
    elif ending == "npz":
        np.savez(path, x=x, other=x)
    else:
        torch.save(torch.from_numpy(x), path)
    data = ArrayDataModule(str(path))
    assert (data.num_classes, data.shape) == (7, (3, 2))
    together = torch.cat([data.splits[name].x for name in ("train", "val", "test")])
    assert len(data.splits["val"]) == len(data.splits["test"]) == 1
    assert sorted(together.flatten(1).tolist()) == sorted(x.reshape(10, -1).tolist())
    again = ArrayDataModule(str(path))
    assert torch.equal(again.splits["train"].x, data.splits["train"].x)
    assert not torch.equal(ArrayDataModule(str(path), seed=1).splits["train"].x, data.splits["train"].x)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([[0, -1], [1, 1], [0, 0]]), "values from -1; integers start at 0"),
        (np.zeros((3, 0), int), "none empty"),
        (np.array([[0, 9], [1, 1], [0, 0]]), "values from 0 to 9"),
        (np.array([[0.5, 1], [1, 1], [0, 0]]), "needs integers"),
        (np.array([[0, 1]]), "at least 3 examples"),
        (np.array([["a"], ["b"], ["c"]]), "needs integers"),
        (np.array([[{}], [None], [1]]), "cannot read"),
        (np.array([[0], [2**63]], np.uint64), "at least 3 examples"),
    ],
)
def test_bad_values(array: np.ndarray, message: str, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(FLDDError, match=message):
        _ = ArrayDataModule(str(tmp_path / "x.npy"), num_classes=4).splits


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(FLDDError, match="no file at"):
        _ = ArrayDataModule(str(tmp_path / "no.npy")).shape
    for name in ("x.npy", "x.npz", "x.pt"):
        for content in (b"", b"junk", b"garbage"):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(FLDDError, match="cannot read"):
                _ = ArrayDataModule(str(tmp_path / name)).shape
    (tmp_path / "x.csv").write_text("1,2")
    with pytest.raises(FLDDError, match="unknown ending"):
        _ = ArrayDataModule(str(tmp_path / "x.csv")).shape
    np.savez(tmp_path / "two.npz", a=np.zeros(3, int), b=np.zeros(3, int))
    with pytest.raises(FLDDError, match="name the one to use 'x'"):
        _ = ArrayDataModule(str(tmp_path / "two.npz")).shape
    torch.save({"x": [1, 2]}, tmp_path / "list.pt")
    with pytest.raises(FLDDError, match="not a tensor"):
        _ = ArrayDataModule(str(tmp_path / "list.pt")).shape


def test_bad_options() -> None:
    for fractions in ((0.9, 0.2), (0.0, 0.2)):
        with pytest.raises(FLDDError, match="fraction"):
            split_rows(torch.zeros(9, 2), *fractions, seed=0)
    with pytest.raises(FLDDError, match="at least 3"):
        split_rows(torch.zeros(2, 2), 0.1, 0.1, seed=0)
    with pytest.raises(FLDDError, match="batch_size"):
        DigitsDataModule(batch_size=0)
    for kwargs in ({"num_classes": 1}, {"shape": ()}, {"num_steps": 0}):
        with pytest.raises(FLDDError):
            Spec(**{"num_classes": 2, "shape": (2,), "num_steps": 2, **kwargs})  # type: ignore[arg-type]


def test_digits_are_the_real_ones_in_a_fixed_stratified_split() -> None:
    for binary, num_classes in ((True, 2), (False, 17)):
        data = DigitsDataModule(binary=binary)
        assert (data.num_classes, data.shape, data.num_labels) == (num_classes, (8, 8), 10)
        assert [len(data.splits[s]) for s in ("train", "val", "test")] == [1257, 270, 270]
        assert int(data.splits["train"].x.max()) == num_classes - 1
        labels = data.splits["test"].labels
        assert labels is not None
        assert (torch.bincount(labels) - 27).abs().max() <= 2
    assert torch.equal(DigitsDataModule(seed=5).splits["val"].x, DigitsDataModule().splits["val"].x)


def test_shares_of_two_processes_are_the_whole() -> None:
    shares = [list(_ShareSampler(7, 2, rank)) for rank in range(2)]
    assert sorted(shares[0] + shares[1]) == list(range(7))
