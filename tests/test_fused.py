"""One call a step for the optimiser, one for the average of the weights, and the numbers of before."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from fldd_lightning.training import RisingAverage
from tiny import Pairs, build, fit


def test_the_average_is_that_of_each_weight() -> None:
    model, decay = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), 0.5
    average = RisingAverage(model, decay)
    expected: list[torch.Tensor] = []
    for n in range(12):
        for p in model.parameters():
            p.data.add_(torch.randn_like(p))
        model(torch.randn(4, 3))  # moves the running means
        average.update_parameters(model)
        share = 1 - min(decay, (1 + n) / (10 + n)) if n else 1.0
        before = expected or list(model.parameters())
        expected = [torch.lerp(b, p, share).detach() for b, p in zip(before, model.parameters(), strict=True)]
        torch.testing.assert_close(list(average.module.parameters()), expected)
        for own, buffer in zip(average.module.buffers(), model.buffers(), strict=True):
            assert own.equal(buffer)
    assert average.n_averaged.device.type == "cpu"
    assert int(average.n_averaged) == 12


def test_the_optimiser_is_fused_but_not_where_gradients_are_scaled() -> None:
    model = build()
    assert model.make_optimizer(10, lambda step: 0.0)["optimizer"].defaults["fused"] is True
    model._trainer = SimpleNamespace(precision="16-mixed")  # type: ignore[assignment]
    assert model.make_optimizer(10, lambda step: 0.0)["optimizer"].defaults["fused"] is None


def test_both_optimisers_take_the_same_steps() -> None:
    def trained(is_fused: bool) -> dict[str, Any]:
        torch.manual_seed(0)
        model = build(freeze_steps=0)
        optimizer = model.make_optimizer(1_000, lambda step: 0.0)["optimizer"]
        optimizer.param_groups[0]["fused"] = optimizer.param_groups[1]["fused"] = is_fused or None
        x = torch.randint(3, (16, 2))
        for step in range(5):
            model.training_step(x, step).backward()
            optimizer.step()
            optimizer.zero_grad()
        return model.state_dict()

    one, other = trained(True), trained(False)
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=1e-4, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("was_fused", [True, False])
def test_a_run_goes_on_from_a_checkpoint_of_either_optimiser(tmp_path: Path, was_fused: bool) -> None:
    run = fit(tmp_path, build(), Pairs(batch_size=16), max_steps=3, limit_val_batches=0)
    path = tmp_path / "one.ckpt"
    run.save_checkpoint(path)
    if not was_fused:  # as version 0.2 wrote it before
        checkpoint = torch.load(path, weights_only=True)
        for group in checkpoint["optimizer_states"][0]["param_groups"]:
            group["fused"] = None
        torch.save(checkpoint, path)
    model = build()
    fit(tmp_path, model, Pairs(batch_size=16), ckpt_path=str(path), max_steps=6, limit_val_batches=0)
    assert model.global_step == 6
    assert all(bool(p.isfinite().all()) for p in model.parameters())
