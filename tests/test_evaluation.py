"""Validation, testing and prediction: metrics, indices, kinds of batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanMetric, Metric

from fldd_lightning import FLDD
from fldd_lightning.callbacks import NELBOWriter
from fldd_lightning.checkpoint import load_model
from tiny import Pairs, build, fit, trainer


class Judged(FLDD):
    """Has a metric that holds a network."""

    def make_metrics(self) -> dict[str, Metric]:
        metric = MeanMetric()
        metric.network = torch.nn.Linear(2, 2)
        return {"mean_x": metric}

    def update_metrics(self, metrics: dict[str, Metric], batch: Any, nelbo: Tensor) -> None:
        metrics["mean_x"].update(self.data(batch).float())


class Fails(Callback):
    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        raise KeyboardInterrupt


def test_networks_of_metrics_are_no_part_of_the_model(tmp_path: Path) -> None:
    model = build(Judged)
    run = fit(tmp_path, model, Pairs(batch_size=16), max_epochs=2)
    assert float(run.callback_metrics["val/mean_x"]) == pytest.approx(float(Pairs().splits["val"].x.float().mean()))
    run.save_checkpoint(tmp_path / "model.ckpt")
    assert torch.equal(load_model(str(tmp_path / "model.ckpt"), trusted=[Judged]).sample(5), model.sample(5))


def test_an_evaluation_that_was_broken_off_leaves_nothing_behind(tmp_path: Path) -> None:
    model, other = build(), build()
    for p in other.reverse.parameters():
        torch.nn.init.normal_(p)
    expected = trainer(tmp_path).validate(other, Pairs(batch_size=16), verbose=False)[0]
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        trainer(tmp_path, callbacks=[Fails()]).validate(model, Pairs(batch_size=16), verbose=False)
    model.load_state_dict(other.state_dict())
    assert trainer(tmp_path).validate(model, Pairs(batch_size=16), verbose=False)[0] == expected


def test_examples_without_an_index_are_counted(tmp_path: Path) -> None:
    rows = torch.randint(3, (24, 2))
    predicted: Any = trainer(tmp_path).predict(build(), DataLoader(rows, 10))  # type: ignore[arg-type]
    assert torch.cat([each["index"] for each in predicted]).tolist() == list(range(24))


def test_the_standard_error_is_that_of_the_examples(tmp_path: Path) -> None:
    model = build()
    for p in model.reverse.parameters():
        torch.nn.init.normal_(p)
    rows = Pairs(batch_size=16)
    tested = trainer(tmp_path).test(model, rows, verbose=False)[0]
    predicted: Any = trainer(tmp_path).predict(model, rows)
    nelbo = torch.cat([each["nelbo"] for each in predicted])
    assert tested["test/nelbo"] == pytest.approx(float(nelbo.mean()))
    assert tested["test/nelbo_se"] == pytest.approx(float(nelbo.std()) / len(nelbo) ** 0.5)


def test_noise_repeats_with_the_seed_alone() -> None:
    """Seeds are repetitions of the whole experiment, evaluation included."""
    model, index = build(), torch.tensor([3, 8])
    torch.manual_seed(1)
    first = model._noise(index)
    torch.rand(5)
    assert torch.equal(model._noise(index.flip(0)).flip(0), first)
    torch.manual_seed(2)
    assert not torch.equal(model._noise(index), first)


def test_processes_take_turns() -> None:
    """As Lightning's sampler for evaluation gives them their examples."""
    model = build()
    model._trainer = Mock(world_size=2, global_rank=1)
    seen = [model._index(torch.zeros(size, 2)) for size in (3, 2)]
    assert torch.cat(seen).tolist() == [1, 3, 5, 7, 9]


def test_batches_of_several_tensors(tmp_path: Path) -> None:
    rows, labels = torch.randint(3, (24, 2)), torch.zeros(24)
    model = build()
    run = trainer(tmp_path, max_epochs=1)
    run.fit(model, DataLoader(TensorDataset(rows, labels), 8), DataLoader(TensorDataset(rows), 8))
    assert float(run.callback_metrics["val/nelbo"]) == pytest.approx(
        float(model.evaluate(DataLoader(rows, 5))["nelbo"])  # type: ignore[arg-type]
    )


def test_a_process_without_a_batch_writes_nothing(tmp_path: Path) -> None:
    NELBOWriter().write_on_epoch_end(trainer(tmp_path), build(), [], [])
    assert not list(tmp_path.glob("*.pt"))
