"""What checkpoints hold, what they can be loaded into, and where a resumed run goes on."""

from __future__ import annotations

import pickle
import runpy
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.utils.data import DataLoader

from conftest import small_mlp
from fldd_lightning import FLDD, FLDDError
from fldd_lightning.checkpoint import load_model
from fldd_lightning.cli import main
from fldd_lightning.data import ArrayDataModule
from fldd_lightning.estimators import RLOO, Reinforce
from fldd_lightning.forward import LearnedMaskProcess, ResidualUniformProcess
from fldd_lightning.networks import MLP, Backbone
from fldd_lightning.spec import Spec
from tiny import Pairs, build, fit, trainer


def make_network(spec: Spec, num_inputs: int, num_outputs: int, width: int = 16) -> Backbone:
    return MLP(spec, num_inputs, num_outputs, width=width, depth=1)


Nets = Sequence[Callable[[Spec, int, int], Backbone]]
OWN = [make_network, torch.tanh]  # what checkpoints may name here, beside Several


class Several(MLP):
    """Takes recipes in a list, numbers in an array, and a function."""

    def __init__(self, *given: Any, nets: Nets, sizes: Any, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__(*given, width=8, depth=len(sizes))
        self.nets, self.act = torch.nn.ModuleList(net(*given) for net in nets), act

    def forward(self, state: Tensor, t: Tensor, condition: tuple[Tensor, ...] = ()) -> Tensor:
        return self.act(super().forward(state, t, condition)) + sum(net(state, t) for net in self.nets)


class Own(FLDD):
    """Has an optimiser of its own."""

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD([{"params": list(self.parameters()), "name": "reverse"}], lr=0.1)


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
        {"denoiser": partial(Several, nets=[make_network, partial(MLP, width=8)], sizes=np.ones(2), act=torch.tanh)},
    ],
)
def test_whatever_a_model_is_made_of_its_checkpoint_can_be_loaded(tmp_path: Path, options: dict[str, Any]) -> None:
    np.save(tmp_path / "data.npy", np.arange(120).reshape(60, 2) % 3)
    model = build(**options)
    run = fit(tmp_path, model, ArrayDataModule(tmp_path / "data.npy", batch_size=8), max_steps=2)  # type: ignore[arg-type]
    run.save_checkpoint(tmp_path / "model.ckpt")
    loaded = load_model(str(tmp_path / "model.ckpt"), trusted=[Several, *OWN])
    assert torch.equal(loaded.sample(5), model.sample(5))
    again = fit(tmp_path, loaded, Pairs(batch_size=8), max_steps=2)
    again.save_checkpoint(tmp_path / "again.ckpt")
    assert torch.equal(load_model(str(tmp_path / "again.ckpt"), trusted=[Several, *OWN]).sample(5), loaded.sample(5))


def test_what_no_checkpoint_could_name_is_refused_at_once() -> None:
    for options in (
        {"denoiser": lambda *given: make_network(*given)},
        {"forward_process": partial(ResidualUniformProcess, network=lambda *given: make_network(*given))},
        {"denoiser": make_network(Spec(3, (2,), 2), 3, 3)},
    ):
        with pytest.raises(FLDDError, match="cannot be imported by its name"):
            build(**options)


SCRIPT = """
from functools import partial
from pathlib import Path

from conftest import small_mlp
from fldd_lightning import FLDD, LearnedMaskProcess, load_model
from fldd_lightning.networks import MLP
from tiny import Pairs, build, fit

class Net(MLP):
    pass

class Own(FLDD):
    pass

def save(model, name):
    fit(Path(name).parent, model, Pairs(batch_size=64), max_steps=1, limit_val_batches=0).save_checkpoint(name)
"""


def test_a_class_of_the_script_itself_is_warned_of_when_it_is_saved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, script = tmp_path / "model.ckpt", tmp_path / "script.py"
    process = "partial(LearnedMaskProcess, network=partial(Net, width=8))"
    for model, names in (
        (f"build(forward_process={process})", "Net"),
        ("build(Own)", "Own"),
        ("build(Own, denoiser=Net)", "Net, Own"),
    ):
        script.write_text(f"{SCRIPT}\nsave({model}, '{path}')\nload_model('{path}', trusted=[Net, Own])\n")
        with pytest.warns(
            UserWarning, match=rf"no other program will find it: {names}\. .*'from parts import {names}'"
        ):
            runpy.run_path(str(script), run_name="__main__")
        assert main(["sample", "--ckpt_path", str(path)]) == 1
        assert "defined in the script that wrote the checkpoint" in capsys.readouterr().err


def test_classes_of_files_are_not_warned_of(tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        run = fit(tmp_path, build(Own, denoiser=make_network), Pairs(batch_size=64), max_steps=1, limit_val_batches=0)
        run.save_checkpoint(tmp_path / "model.ckpt")
    assert not any("script itself" in str(one.message) for one in warned)


def test_a_class_of_a_function_can_be_trained_and_loaded_from_python(tmp_path: Path) -> None:
    class Local(FLDD):
        pass

    model = build(Local)
    run = trainer(tmp_path, max_steps=2)
    run.fit(model, DataLoader(Pairs().splits["train"], 8))  # no module of data
    run.save_checkpoint(tmp_path / "model.ckpt")
    saved = torch.load(tmp_path / "model.ckpt", weights_only=True)
    assert "datamodule_hyper_parameters" not in saved
    loaded = Local.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    assert torch.equal(loaded.sample(5), model.sample(5))


def test_a_trained_model_can_be_pickled(tmp_path: Path) -> None:
    model = build(Own, forward_process=partial(LearnedMaskProcess, network=small_mlp))
    fit(tmp_path, model, Pairs(batch_size=8), max_epochs=1)
    assert model.evaluations
    copy = pickle.loads(pickle.dumps(model))
    assert not copy.evaluations
    assert torch.equal(copy.sample(5), model.sample(5))


def test_a_loader_outside_of_training_is_whole(tmp_path: Path) -> None:
    data = Pairs(batch_size=8)
    fit(tmp_path, build(), data, max_steps=3, limit_val_batches=0)
    assert len(list(data.train_dataloader())) == len(data.train_dataloader()) == 8


def test_resuming_with_a_plain_loader(tmp_path: Path) -> None:
    path = str(tmp_path / "model.ckpt")
    fit(tmp_path, build(), Pairs(batch_size=8), max_steps=3, limit_val_batches=0).save_checkpoint(path)
    run = trainer(tmp_path, max_steps=5)
    run.fit(build(), DataLoader(Pairs().splits["train"], 8), ckpt_path=path)
    assert run.global_step == 5


@pytest.mark.parametrize(
    ("stop", "saving", "options"),
    [
        (11, {"filename": "last"}, {"limit_val_batches": 0}),  # its epoch is counted as if it were whole
        (12, {"filename": "last", "monitor": "val/nelbo", "mode": "max"}, {"val_check_interval": 3}),
    ],
)
def test_a_run_that_was_stopped_within_an_epoch_goes_on(
    tmp_path: Path, stop: int, saving: dict[str, Any], options: dict[str, Any]
) -> None:
    seen, rest = Seen(), Seen()
    fit(tmp_path, build(), Pairs(batch_size=8), callbacks=[seen], max_steps=18, **options)
    save = ModelCheckpoint(tmp_path, **saving)
    fit(tmp_path, build(), Pairs(batch_size=8), callbacks=[save], enable_checkpointing=True, max_steps=stop, **options)
    path = str(tmp_path / "last.ckpt")
    step = torch.load(path, weights_only=True)["global_step"]
    fit(tmp_path, build(), Pairs(batch_size=8), path, callbacks=[rest], max_steps=18, **options)
    left = 8 - step % 8  # of the epoch; after it Lightning may leave one out
    assert rest.index[:left] == seen.index[step : step + left]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    "others",  # with max_epochs Lightning needs the loader early, to count the steps
    [
        {},
        {"max_epochs": 9},
        {"limit_train_batches": 5},
        {"limit_train_batches": 5, "max_epochs": 9, "reload_dataloaders_every_n_epochs": 1},
    ],
)
def test_a_resumed_run_goes_on_within_an_epoch(tmp_path: Path, workers: int, others: dict[str, Any]) -> None:
    """In the middle of one and at its end, when it is not counted yet."""
    saving = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    seen = Seen()
    options: dict[str, Any] = {"max_steps": 18, "limit_val_batches": 0, **others}
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
