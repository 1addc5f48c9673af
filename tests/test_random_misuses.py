"""Whatever the options, arrays and bytes are: a model is made, trained on and sampled, or there is one FLDDError."""

from __future__ import annotations

import warnings
from contextlib import suppress
from functools import partial
from math import inf, nan
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays, from_dtype

from conftest import PROCESSES, small_mlp
from fldd_lightning import (
    FLDD,
    RLOO,
    Ancestral,
    ArrayDataModule,
    FLDDError,
    Reinforce,
    TrainedMixtureLatent,
    load_model,
)
from misused import write_files

DTYPES = ("i1", "u1", "i4", ">i8", "u8", "bool", "f4", "f8", "c8", "U2", "M8[D]", "O")
ODD: st.SearchStrategy[Any] = st.sampled_from([0, -1, 1.5, nan, inf, True, "a word", None, 2**40, [1]])


@st.composite
def any_array(draw: st.DrawFn) -> np.ndarray:
    """Mostly integers that fit, else anything that numpy holds."""
    shape = tuple(draw(st.lists(st.integers(0, 4), max_size=3)))
    if draw(st.integers(0, 3)):
        return draw(
            arrays(
                draw(st.sampled_from(("i1", "u1", ">i4", "i8"))),
                (draw(st.integers(5, 20)), *shape),
                elements=st.integers(0, 3),
            )
        )
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    if dtype.kind == "O":
        return np.full(shape, draw(ODD), dtype)
    return draw(arrays(dtype, shape, elements=from_dtype(dtype)))


def or_odd(fitting: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """A fitting value, one in ten times an odd one."""
    return st.integers(0, 9).flatmap(lambda n: ODD if n == 0 else fitting)


OF_DATA = st.fixed_dictionaries(
    {},
    optional={
        "num_classes": or_odd(st.integers(2, 5)),
        "val_fraction": or_odd(st.floats(0.1, 0.4)),
        "test_fraction": or_odd(st.floats(0.1, 0.4)),
        "batch_size": or_odd(st.integers(1, 8)),
        "seed": or_odd(st.integers(0, 9)),
    },
)
OF_MODEL = st.fixed_dictionaries(
    {"num_steps": or_odd(st.integers(1, 3))},
    optional={
        "lr": or_odd(st.floats(1e-4, 1e-2)),
        "freeze_steps": or_odd(st.integers(0, 3)),
        "observed": or_odd(st.floats(0, 0.9)),
        "estimator": or_odd(st.sampled_from([Reinforce, RLOO])),
        "latents": or_odd(st.just(partial(TrainedMixtureLatent, size=2))),
        "denoiser": or_odd(st.just(small_mlp)),
    },
)
OF_SAMPLE = st.fixed_dictionaries(
    {"num_samples": or_odd(st.integers(1, 3))},
    optional={
        "seed": or_odd(st.integers(0, 9)),
        "batch_size": or_odd(st.integers(1, 3)),
        "best_of": or_odd(st.integers(1, 2)),
        "num_steps": or_odd(st.integers(1, 3)),
        "decoding": or_odd(st.just(Ancestral())),
        "given": or_odd(st.just(None)),
    },
)
RUNS = st.tuples(
    any_array(), st.sampled_from(["npy", "npz", "pt"]), OF_DATA, st.sampled_from(sorted(PROCESSES)), OF_MODEL, OF_SAMPLE
)


def run(case: Any) -> None:
    """From a file to samples."""
    array, ending, of_data, process, of_model, of_sample = case
    with TemporaryDirectory() as folder:
        file = Path(folder) / f"x.{ending}"
        if ending == "npy":
            np.save(file, array, allow_pickle=True)
        elif ending == "npz":
            np.savez(file, x=array, allow_pickle=True)
        else:
            torch.save(torch.from_numpy(array) if array.dtype.kind in "iufb" and array.dtype.isnative else array, file)
        data = ArrayDataModule(str(file), **of_data)
        made = {"denoiser": small_mlp, **of_model}
        model = FLDD(data.num_classes, data.shape, PROCESSES[process], **made)
        batch = next(iter(data.train_dataloader()))
        loss = model.training_step(batch, 0)
        assert loss is None or torch.isfinite(loss["loss"] if isinstance(loss, dict) else loss)
        assert torch.isfinite(model.nelbo(data.splits["val"].x).nelbo).all()
        x = model.sample(**of_sample)
        assert ((x >= 0) & (x < model.spec.num_classes)).all()


def only_one_error(case: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with suppress(FLDDError):
            run(case)


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(RUNS)
def test_a_model_or_one_error(case: Any) -> None:
    only_one_error(case)


@pytest.mark.slow
@settings(max_examples=600, deadline=None, database=None)
@given(RUNS)
def test_a_model_or_one_error_many_times(case: Any) -> None:
    only_one_error(case)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    write_files(folder)
    return folder


@pytest.mark.parametrize("name", ["ok.npy", "labels.npz", "dictionary.pt", "run.ckpt"])
@pytest.mark.filterwarnings("ignore")
def test_bytes_that_have_changed(name: str, files: Path, tmp_path: Path) -> None:
    """A byte changed, or the end cut off, at forty random places."""
    whole = (files / name).read_bytes()
    draw = np.random.default_rng(0)
    for _ in range(40):
        place = int(draw.integers(min(len(whole), 2000)))  # where headers are
        changed = whole[:place] + (bytes([draw.integers(256)]) + whole[place + 1 :] if draw.random() < 0.8 else b"")
        (tmp_path / name).write_bytes(changed)
        with suppress(FLDDError):
            if name.endswith("ckpt"):
                load_model(tmp_path / name)
            else:
                _ = ArrayDataModule(str(tmp_path / name)).splits
