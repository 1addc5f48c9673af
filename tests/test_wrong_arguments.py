"""What the methods of a model are given by mistake is told in one sentence; no error of Python or PyTorch gets out."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import small_mlp
from fldd_lightning import FLDD, FLDDError, LabelLatent, LearnedMaskProcess, VectorLatent
from tiny import build

X = torch.tensor([[0, 1], [2, 0], [1, 1]])
BATCH = {"x": X, "label": torch.tensor([0, 1, 2]), "vector": torch.zeros(3, 2), "index": torch.arange(3)}

ODD: tuple[Any, ...] = ("3", 2.5, [1], {}, object(), torch.ones(2))  # what no argument below takes
NUMBER = (*ODD, None, True, 0, -1)
OPTIONAL_NUMBER = (*ODD, True, 0, -1)
SEED = (*ODD, None, True, -1)
FLAG = (*ODD, None, 1)
PATH = (2.5, [1], {}, object(), None, 3, b"digits")
NO_VALUES = (None, "a", [None], [[0, 1], [1]], {}, object())

# method, argument, wrong values, and what the sentence says where that is not the argument's name
WRONG: list[tuple[str, str, tuple[Any, ...], str]] = [
    ("sample", "num_samples", NUMBER, ""),
    ("sample", "seed", SEED, ""),
    ("sample", "num_steps", OPTIONAL_NUMBER, ""),
    ("sample", "trajectory", FLAG, ""),
    ("sample", "batch_size", NUMBER, ""),
    ("sample", "progress", FLAG, ""),
    ("sample", "decoding", (*ODD, True, 0), ""),
    ("sample", "given", ("3", 2.5, [1], {}, object(), torch.ones(2), torch.tensor(1), np.zeros((1, 2), int)), ""),
    ("sample", "best_of", NUMBER, ""),
    ("sample", "condition", ("3", 2.5, [1], object(), torch.ones(2), True, 0), ""),
    ("sample", "condition", tuple({"label": each} for each in (*NO_VALUES, 1.5, 7, [], [[0, 1]])), "label"),
    ("sample", "condition", tuple({"vector": each} for each in (*NO_VALUES, 1j, 3, [], [1, 2, 3])), "vector"),
    ("sample", "condition", ({"other": 1}, {3: 1}, {None: 1}), "can be asked for label, vector"),
    ("sample", "share", (*ODD, None, 3, (1,), (0, 0), (1, 1), (-1, 2), ("0", 1), (0.0, 1.0)), ""),
    ("nelbo", "batch", ("3", 2.5, True, None, object(), {}, [], (), X.numpy(), X.tolist()), "a batch is a tensor"),
    ("nelbo", "batch", tuple({**BATCH, "x": each} for each in ("a", None, 3, X.tolist())), "'x' is a"),
    ("nelbo", "batch", ({**BATCH, "x": X.float()}, {**BATCH, "x": X[0]}, {**BATCH, "x": torch.tensor(3)}), "x has"),
    ("nelbo", "batch", tuple({**BATCH, "index": each} for each in (None, 3, [0, 1, 2], torch.ones(3), X)), "index"),
    ("nelbo", "batch", tuple({**BATCH, "label": each} for each in (None, "a", [0, 1, 2], torch.tensor(1))), "label"),
    ("nelbo", "batch", ({**BATCH, "label": torch.tensor([0, 1])}, {**BATCH, "label": torch.ones(3)}), "label"),
    ("nelbo", "batch", tuple({**BATCH, "vector": each} for each in (None, 3, np.ones((3, 2)))), "vector"),
    ("nelbo", "batch", ({**BATCH, "vector": torch.ones(2, 2)}, {**BATCH, "vector": torch.ones(3)}), "vector"),
    ("nelbo", "draws", NUMBER, ""),
    ("nelbo", "seed", SEED, ""),
    ("nelbo", "batch_size", NUMBER, ""),
    ("evaluate", "batches", (None, 3, object()), ""),
    ("evaluate", "batches", (["a"], [None], [3], "ab", BATCH), "a batch is a tensor"),
    ("evaluate", "batches", ([], iter(()), {}), "there was no example to evaluate"),
    ("evaluate", "stage", (None, 3, "train", ["val"]), ""),
    ("with_num_steps", "num_steps", NUMBER, ""),
    ("save_pretrained", "save_directory", PATH, ""),
    ("save_pretrained", "save_directory", ("", "a\0b"), "no folder to save a model in"),
    ("save_pretrained", "options", ({"notes": "x"}, {"lisence": "mit"}), "has no option"),
    ("save_pretrained", "options", tuple({"push_to_hub": each} for each in (3, "yes", [1])), "push_to_hub"),
    ("save_pretrained", "options", tuple({"model_card_kwargs": each} for each in ("x", 3, [1])), "model_card_kwargs"),
    ("save_pretrained", "options", ({"model_card_kwargs": {"lisence": "mit"}},), "a model card says data, bound"),
    ("save_pretrained", "options", ({"model_card_kwargs": {"license": 3}},), "license"),
    ("from_pretrained", "pretrained_model_name_or_path", PATH, ""),
    ("from_pretrained", "map_location", ("x", [1], object(), {}), ""),
    ("from_pretrained", "trusted", (None, 3, object(), [3]), ""),
    ("from_pretrained", "force_download", FLAG, ""),
    ("from_pretrained", "cache_dir", (3, [1], object()), ""),
    ("from_pretrained", "local_files_only", FLAG, ""),
    ("from_pretrained", "revision", (3, [1], object()), ""),
    ("from_pretrained", "overrides", ({"nothing": 1},), "cannot be made with nothing"),
    ("from_pretrained", "overrides", ({"lr": "x"}, {"lr": None}), "lr of"),
    ("load_from_checkpoint", "checkpoint_path", PATH, ""),
]
UNCHECKED = {("from_pretrained", "token")}  # a secret, which no message should show


@pytest.fixture(scope="module")
def model() -> FLDD:
    torch.manual_seed(0)
    latents = [partial(LabelLatent, num_labels=3), partial(VectorLatent, size=2)]
    process = partial(LearnedMaskProcess, network=small_mlp)
    return build(forward_process=process, latents=latents, budgets=[1, 2, 4]).eval()


@pytest.fixture(scope="module")
def calls(model: FLDD, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Callable[..., Any]]:
    """The methods, with arguments that are right."""
    folder = tmp_path_factory.mktemp("models")
    model.save_pretrained(folder / "right")
    return {
        "sample": partial(model.sample, num_samples=3),
        "nelbo": partial(model.nelbo, batch=BATCH),
        "evaluate": partial(model.evaluate, batches=[BATCH]),
        "with_num_steps": partial(model.with_num_steps, num_steps=1),
        "save_pretrained": partial(model.save_pretrained, save_directory=folder / "new"),
        "from_pretrained": partial(FLDD.from_pretrained, pretrained_model_name_or_path=folder / "right"),
        "load_from_checkpoint": FLDD.load_from_checkpoint,
    }


@pytest.mark.parametrize(
    ("method", "argument", "values", "said"), WRONG, ids=[f"{each[0]}.{each[1]}-{each[3]}" for each in WRONG]
)
def test_wrong_arguments(
    calls: dict[str, Callable[..., Any]], method: str, argument: str, values: tuple[Any, ...], said: str
) -> None:
    for value in values:
        with pytest.raises(FLDDError) as refused:
            calls[method](**(value if argument in ("options", "overrides") else {argument: value}))
        assert (said or argument) in str(refused.value), f"{value!r}: {refused.value}"


def test_every_argument_is_in_the_table() -> None:
    for method in {each[0] for each in WRONG} - {"load_from_checkpoint"}:
        names = {name for name in inspect.signature(getattr(FLDD, method)).parameters if name not in ("self", "cls")}
        tried = {
            argument for other, argument, _, _ in [*WRONG, *((*each, (), "") for each in UNCHECKED)] if other == method
        }
        assert names <= tried, method


def test_what_is_right_is_taken(calls: dict[str, Callable[..., Any]], model: FLDD, tmp_path: Path) -> None:
    assert calls["sample"](condition={}).shape == (3, 2)
    assert calls["sample"](num_steps=np.int64(4), condition={"label": [0, 1, 2], "vector": [0.5, 1]}).shape == (3, 2)
    assert calls["nelbo"](draws=np.int64(2)).nelbo.shape == (3,)
    assert "nelbo" in calls["evaluate"](stage="val")
    model.save_pretrained(str(tmp_path / "a"), model_card_kwargs={"license": "mit", "notes": ""})
    assert "mit" in (tmp_path / "a" / "README.md").read_text()
    assert isinstance(FLDD.from_pretrained(str(tmp_path / "a"), map_location="cpu"), FLDD)
