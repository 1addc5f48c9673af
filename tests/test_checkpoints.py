"""What checkpoints hold, what they can be loaded into, and where a resumed run goes on."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint

from conftest import small_mlp
from fldd_lightning import FLDDError
from fldd_lightning.checkpoint import load_model
from fldd_lightning.data import ArrayDataModule
from fldd_lightning.estimators import RLOO, Reinforce
from fldd_lightning.forward import LearnedMaskProcess, ResidualUniformProcess
from fldd_lightning.networks import MLP, Backbone
from fldd_lightning.problem import Problem
from test_module import Pairs, build, fit, trainer


def make_network(problem: Problem, num_inputs: int, num_outputs: int, width: int = 16) -> Backbone:
    return MLP(problem, num_inputs, num_outputs, width=width, depth=1)


class Seen(Callback):
    """Which examples were trained on, batch after batch."""

    def __init__(self) -> None:
        self.index: list[list[int]] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.index.append(batch["index"].tolist())


@pytest.mark.parametrize(
    "options",
    [
        {"denoiser": make_network},
        {"denoiser": partial(make_network, width=24)},
        {"forward_process": partial(ResidualUniformProcess, network=make_network)},
        {"num_classes": np.int64(3), "lr": np.float64(1e-3), "shape": np.array([2])},
    ],
)
def test_whatever_a_model_is_made_of_its_checkpoint_can_be_loaded(tmp_path: Path, options: dict[str, Any]) -> None:
    np.save(tmp_path / "data.npy", np.arange(120).reshape(60, 2) % 3)
    model = build(**options)
    run = fit(tmp_path, model, ArrayDataModule(tmp_path / "data.npy", batch_size=8), max_steps=2)  # type: ignore[arg-type]
    run.save_checkpoint(tmp_path / "model.ckpt")
    loaded = load_model(str(tmp_path / "model.ckpt"))
    assert torch.equal(loaded.sample(5), model.sample(5))
    again = fit(tmp_path, loaded, Pairs(batch_size=8), max_steps=2)
    again.save_checkpoint(tmp_path / "again.ckpt")
    assert torch.equal(load_model(str(tmp_path / "again.ckpt")).sample(5), loaded.sample(5))


def test_what_no_checkpoint_could_name_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for options in (
        {"denoiser": lambda *given: make_network(*given)},
        {"forward_process": partial(ResidualUniformProcess, network=lambda *given: make_network(*given))},
    ):
        with pytest.raises(FLDDError, match="cannot be found by its name"):
            build(**options)
    monkeypatch.setattr(make_network, "__module__", "__main__")
    with pytest.warns(UserWarning, match="make_network is defined in the script itself"):
        build(denoiser=make_network)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("limit", [1.0, 5])
def test_a_resumed_run_goes_on_within_an_epoch(tmp_path: Path, workers: int, limit: float) -> None:
    """In the middle of one and at its end, when it is not counted yet."""
    saving = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    seen = Seen()
    options: dict[str, Any] = {"max_steps": 18, "limit_val_batches": 0, "limit_train_batches": limit}
    data = {"batch_size": 8, "num_workers": workers}
    seed_everything(1)
    fit(tmp_path, whole := build(), Pairs(**data), callbacks=[saving, seen], enable_checkpointing=True, **options)
    for step in (3, 8, 10, 11) if workers == 0 else (8, 10):
        seed_everything(1)
        resumed, rest = build(), Seen()
        fit(tmp_path, resumed, Pairs(**data), str(tmp_path / f"step={step}.ckpt"), callbacks=[rest], **options)
        assert rest.index == seen.index[step:]
        assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters()))


def test_the_estimator_does_not_matter_to_a_trained_model(tmp_path: Path) -> None:
    path = str(tmp_path / "model.ckpt")
    options: dict[str, Any] = {"forward_process": partial(LearnedMaskProcess, network=small_mlp)}
    fit(tmp_path, build(**options, estimator=Reinforce), Pairs(batch_size=16), max_steps=4).save_checkpoint(path)
    values = [
        trainer(tmp_path).test(build(**options, estimator=each), Pairs(), ckpt_path=path, verbose=False)
        for each in (Reinforce, RLOO)
    ]
    assert values[0] == values[1]
    resumed = build(**options, estimator=RLOO)
    fit(tmp_path, resumed, Pairs(batch_size=16), path, max_steps=8)
    assert bool(resumed.estimator.mean.isfinite().any())


@pytest.mark.parametrize(
    ("network", "message"), [(partial(make_network, width=8), "size mismatch"), (partial(MLP, depth=5), "Missing key")]
)
def test_other_networks_are_one_sentence(tmp_path: Path, network: Any, message: str) -> None:
    path = str(tmp_path / "model.ckpt")
    fit(tmp_path, build(denoiser=make_network), Pairs(batch_size=16), max_steps=2).save_checkpoint(path)
    with pytest.raises(FLDDError, match=rf"the checkpoint is of other networks \({message}.* Use the config"):
        trainer(tmp_path).test(build(denoiser=network), Pairs(), ckpt_path=path)
