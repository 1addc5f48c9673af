"""Files with several arrays, splits and labels of the user's own, large files, and whatever a file may hold."""

from __future__ import annotations

import re
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as numpy_strategies

from fldd_lightning import FLDDError, LabelLatent, Spec
from fldd_lightning.cli import main
from fldd_lightning.data import ArrayDataModule
from tiny import fit, trainer, with_latent

KERAS = ("x_train", "y_train", "x_val", "y_val", "x_test", "y_test")
MEDMNIST = ("train_images", "train_labels", "val_images", "val_labels", "test_images", "test_labels")


def pairs(seed: int, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Two equal ternary coordinates, whose value is the label."""
    labels = np.random.default_rng(seed).integers(3, size=number)
    return np.stack([labels, labels], 1).astype(np.uint8), labels


def write(path: Path, arrays: dict[str, Any]) -> ArrayDataModule:
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    else:
        torch.save({name: torch.from_numpy(array) for name, array in arrays.items()}, path)
    return ArrayDataModule(str(path))


@pytest.mark.parametrize("names", [KERAS, MEDMNIST])
@pytest.mark.parametrize("ending", ["npz", "pt"])
def test_splits_and_labels_of_a_file_are_used_as_they_are(names: tuple[str, ...], ending: str, tmp_path: Path) -> None:
    parts = [pairs(0, 8), pairs(1, 2), pairs(2, 5)]
    arrays = dict(zip(names, (array for part in parts for array in part), strict=True))
    arrays[names[5]] = arrays[names[5]][:, None]  # (N, 1), as some files have them
    data = write(tmp_path / f"x.{ending}", {**arrays, "notes": np.zeros(3)})
    assert (data.num_classes, data.shape, data.num_labels) == (3, (2,), 3)
    for name, (x, labels) in zip(("train", "val", "test"), parts, strict=True):
        split = data.splits[name]
        assert split.labels is not None
        assert split.x.tolist() == x.tolist()
        assert split.labels.tolist() == labels.tolist()
    batch = next(iter(data.val_dataloader()))
    assert batch["label"].tolist() == parts[1][1].tolist()


def test_short_names_and_missing_splits(tmp_path: Path) -> None:
    x = np.arange(20).reshape(10, 2)
    whole = write(tmp_path / "all.npz", {"train": x, "valid": x[:2], "test": x[:3]})
    assert [len(whole.splits[name]) for name in ("train", "val", "test")] == [10, 2, 3]
    some = write(tmp_path / "some.npz", {"x_train": x, "y_train": x[:, 0], "x_test": x[:3], "y_test": x[:3, 0]}).splits
    assert [len(some[name]) for name in ("train", "val", "test")] == [9, 1, 3]
    held_out = some["val"]
    assert held_out.labels is not None
    assert held_out.labels.tolist() == held_out.x[:, 0].tolist()  # drawn together
    assert some["test"].x.tolist() == x[:3].tolist()
    plain = write(tmp_path / "plain.npz", {"images": x, "labels": x[:, 0]}).splits["train"]
    assert plain.labels is not None
    assert plain.labels.tolist() == plain.x[:, 0].tolist()


X = np.zeros((4, 2), int)
Y = np.array([0, 1, 0, 1])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": X, "x_train": X}, "holds 'x', which is to be split, and 'x_train'"),
        ({"val": X, "valid": X, "train": X}, "both 'val' and 'valid'"),
        ({"val": X, "test": X}, "no split 'train'"),
        ({"train": X + 1, "val": X[:, :1], "test": X}, r"differ in the shape.*'val': \(1,\)"),
        ({"train": X + 1, "val": X[:0], "test": X}, r"'val' in .* has shape \(0, 2\)"),
        ({"x": X + 1, "y": Y[:3]}, r"labels of 'x' in .* shape \(3,\), but there are 4"),
        ({"x": X + 1, "y": np.eye(4)}, r"labels of 'x' in .* shape \(4, 4\)"),
        ({"x": X + 1, "y": Y - 1}, "values from -1 to 0"),
        ({"x": X + 1, "y": Y / 2}, "dtype float64"),
        ({"x": X + 1, "y": np.array(list("abca"))}, "dtype <U1"),
    ],
)
def test_files_that_do_not_say_what_they_hold(arrays: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(FLDDError, match=message):
        _ = write(tmp_path / "x.npz", arrays).splits


def test_labels_reach_a_model(tmp_path: Path) -> None:
    x, y = pairs(0, 40)
    data = write(tmp_path / "x.npz", {"x": x, "y": y})
    model = with_latent(latents=partial(LabelLatent, num_labels=data.num_labels))
    run = fit(tmp_path, model, data, max_epochs=2)
    assert "train/kl_label" in run.logged_metrics
    without = write(tmp_path / "without.npz", {"x": x})
    with pytest.raises(FLDDError, match="the data have no 'label'"):
        trainer(tmp_path).test(model, without, verbose=False)


def test_data_without_the_last_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = np.arange(80).reshape(20, 4)
    old, new = tmp_path / "old.npy", tmp_path / "new.npy"
    np.save(old, values % 4)
    np.save(new, values % 3)
    config = ["--config", "configs/array.yaml", "--model.latents", "[]", "--trainer.default_root_dir", str(tmp_path)]
    quiet = ["--trainer.accelerator", "cpu", "--trainer.logger", "false", "--trainer.enable_progress_bar", "false"]
    fast = ["--trainer.max_steps", "1", "--trainer.limit_val_batches", "0"]
    assert main(["fit", *config, *quiet, *fast, "--data.path", str(old)]) == 0
    path = str(next(tmp_path.rglob("final*.ckpt")))
    assert main(["test", "--ckpt_path", path, *quiet, "--data.path", str(new)]) == 0  # the checkpoint knows K
    capsys.readouterr()
    assert main(["test", *config, *quiet, "--ckpt_path", path, "--data.path", str(new)]) == 1
    assert "lack the last of 4 classes, set --data.num_classes 4" in capsys.readouterr().err
    assert main(["test", *config, *quiet, "--ckpt_path", path, "--data.path", str(new), "--data.num_classes", "4"]) == 0
    np.save(new, values % 6)
    assert main(["test", "--ckpt_path", path, *quiet, "--data.path", str(new)]) == 1
    assert "values from 0 to 5, but num_classes is 4" in capsys.readouterr().err
    np.save(new, values * 0)
    assert main(["test", *config, *quiet, "--ckpt_path", path, "--data.path", str(new)]) == 1
    assert "Set --data.num_classes if others are possible" in capsys.readouterr().err


def memory(kind: str) -> int:
    """Bytes of this process: RssAnon, what is not of a file; VmHWM, the peak of all."""
    found = re.search(rf"{kind}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="counts memory as Linux does")
def test_a_large_file_stays_in_its_type_and_on_disk(tmp_path: Path) -> None:
    size = 100 * 2**20
    large = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.uint16, (size // 2048, 1024))
    large[::9, 5] = 7
    large.flush()
    del large
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before, own = memory("VmHWM"), memory("RssAnon")
    data = ArrayDataModule(str(tmp_path / "x.npy"), batch_size=64)
    assert (data.num_classes, data.shape, len(data.splits["val"])) == (8, (1024,), 5120)
    batch = next(iter(data.train_dataloader()))["x"]
    assert (batch.dtype, batch.shape) == (torch.int16, (64, 1024))
    assert memory("RssAnon") - own < size / 4
    assert memory("VmHWM") - before < 1.5 * size


DTYPES = st.sampled_from(
    ["?", "u1", "i1", "<u2", ">u2", "i2", ">i4", "u4", "i8", "u8", "f2", "f4", "f8", ">f8", "c8", "U1"]
)
NAMES = st.sampled_from(["x", "y", "train", "x_train", "y_train", "valid", "val_labels", "test", "X_test", "other"])


@st.composite
def some_array(draw: st.DrawFn) -> np.ndarray:
    """Any values of any type, or small ones that can be classes."""
    dtype = np.dtype(draw(DTYPES))
    shape = draw(numpy_strategies.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5))
    elements = numpy_strategies.from_dtype(dtype, allow_subnormal=False) if dtype.kind in "fc" else None
    if dtype.kind != "U" and draw(st.booleans()):
        elements = st.integers(0, 1 if dtype.kind == "b" else 3).map(dtype.type)
    array: np.ndarray = draw(numpy_strategies.arrays(dtype, shape, elements=elements))
    return array


@settings(max_examples=150, deadline=None, derandomize=True)
@given(some_array(), st.dictionaries(NAMES, some_array(), max_size=4), st.sampled_from([None, 2, 4]))
def test_any_array_is_read_or_refused(
    array: np.ndarray, arrays: dict[str, np.ndarray], given_classes: int | None
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder, "x.npy"), array)
        np.savez(Path(folder, "x.npz"), **arrays)
        for name in ("x.npy", "x.npz"):
            data = ArrayDataModule(str(Path(folder, name)), given_classes, batch_size=3)
            try:
                splits = data.splits
            except FLDDError:
                continue
            spec = Spec(data.num_classes, data.shape, 1)
            loaders = (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())
            batches = [batch["x"].long() for loader in loaders for batch in loader]
            assert all(x.min() >= 0 and x.max() < spec.num_classes for x in batches)
            assert all(x.shape[1:] == spec.shape for x in batches)
            if name == "x.npy":
                read = torch.cat([split.x for split in splits.values()]).long()
                assert sorted(read.flatten(1).tolist()) == sorted(array.reshape(len(array), -1).astype(int).tolist())
