"""A model whose weights are not finite is refused wherever it would be used."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from fldd_lightning import FLDD, FLDDError, load_model
from fldd_lightning.cli import main
from tiny import Pairs, build, fit, trainer, with_latent

MESSAGE = "the weights of 'reverse.network.mix_out.bias' are not finite"


def broken(value: float) -> Any:
    model = build()
    with torch.no_grad():
        model.reverse.network.mix_out.bias[1] = value
    return model


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    "use",
    [
        lambda model, run: model.sample(2),
        lambda model, run: model.nelbo(torch.tensor([[0, 1]])),
        lambda model, run: model.evaluate(Pairs().test_dataloader()),
        lambda model, run: run.test(model, Pairs()),
        lambda model, run: run.validate(model, Pairs()),
        lambda model, run: run.predict(model, Pairs()),
    ],
    ids=["sample", "nelbo", "evaluate", "test", "validate", "predict"],
)
def test_it_is_refused(tmp_path: Path, value: float, use: Callable[[Any, Any], Any]) -> None:
    with pytest.raises(FLDDError, match=MESSAGE):
        use(broken(value), trainer(tmp_path))


def test_running_means_may_be_unknown() -> None:
    """Buffers of estimators and of clipping are NaN until they have seen something."""
    model = build()
    assert any(bool(buffer.isnan().any()) for buffer in model.buffers() if buffer.is_floating_point())
    assert model.sample(2).shape == (2, 2)


def test_large_weights_are_finite() -> None:
    """Also where the sum of their squares is not."""
    assert broken(3e38).sample(2).shape == (2, 2)


def test_weights_are_looked_at_once_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    look = Mock(wraps=torch.nn.utils.get_total_norm)
    monkeypatch.setattr(torch.nn.utils, "get_total_norm", look)
    model = build()
    model.sample(9, batch_size=2)
    model.nelbo(torch.zeros(9, 2, dtype=torch.long), draws=3, batch_size=2)
    assert look.call_count == 2


@pytest.mark.parametrize("table", ["log_prior", "log_conditional"])
def test_tables_of_latents_are_looked_at(table: str) -> None:
    model = with_latent()
    model.fit_latents(Pairs(batch_size=8).train_dataloader())
    model.sample(2)  # whose logarithms of 0 are infinite
    getattr(model.latents[0], table).fill_(torch.nan)
    for use in (model.sample, lambda n: model.nelbo(torch.zeros(n, 2, dtype=torch.long))):
        with pytest.raises(FLDDError, match=f"the weights of 'latents.0.{table}' are not finite"):
            use(2)


def test_on_the_command_line_it_is_one_paragraph(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.ckpt"
    fit(tmp_path, build(), Pairs(batch_size=64), max_steps=1, limit_val_batches=0).save_checkpoint(path)
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["state_dict"]["reverse.network.mix_out.bias"][1] = float("nan")
    torch.save(checkpoint, path)
    np.save(tmp_path / "x.npy", np.arange(80).reshape(40, 2) % 3)
    data = ["--data", "ArrayDataModule", "--data.path", str(tmp_path / "x.npy")]
    here = ["--trainer.default_root_dir", str(tmp_path), "--trainer.logger", "false", "--trainer.accelerator", "cpu"]
    for args in (
        ["sample", "--output", str(tmp_path / "s")],
        ["score", *data, "--output", str(tmp_path / "s.csv")],
        ["evaluate", *data, "--output", str(tmp_path / "e")],
        ["test", *data, *here],
    ):
        capsys.readouterr()
        assert main([args[0], "--ckpt_path", str(path), *args[1:]]) == 1
        assert f"error: {MESSAGE}" in capsys.readouterr().err
    assert not any(tmp_path.glob("s*"))


def test_a_loss_that_is_not_finite_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the step and the likely cause. Checkpoints from before stay, and are good."""
    real = FLDD.loss_of

    def loss_of(self: FLDD, batch: Any, generator: Any, global_step: int, progress: float) -> Any:
        computed = real(self, batch, generator, global_step, progress)
        return computed._replace(loss=computed.loss * (1.0 if global_step < 6 else torch.inf))

    monkeypatch.setattr(FLDD, "loss_of", loss_of)
    np.save(tmp_path / "x.npy", np.random.default_rng(0).integers(0, 3, (64, 4)))
    args = ["fit", "--model", "FLDD", "--model.forward_process", "AbsorbingProcess", "--model.denoiser", "MLP"]
    args += ["--data", "ArrayDataModule", "--data.path", str(tmp_path / "x.npy"), "--data.batch_size", "16"]
    args += ["--trainer.max_epochs", "40", "--trainer.default_root_dir", str(tmp_path), "--model.lr", "0.5"]
    assert main(args) == 1
    said = capsys.readouterr().err
    assert "the loss is not finite at step 7" in said
    assert "lower model.lr, which is 0.5" in said
    last = next(tmp_path.rglob("last.ckpt"))
    assert all(bool(p.isfinite().all()) for p in load_model(str(last)).parameters())


def test_the_term_is_named() -> None:
    model = build()
    model.logged = {"nelbo": torch.tensor(torch.nan), "kl_t1": torch.tensor(1.0), "kl_t2": torch.tensor(torch.inf)}
    with pytest.raises(FLDDError, match=r"not finite at step 0, in kl_t2\. Most often the learning rate is too high"):
        model.check_loss(torch.tensor(torch.nan))
    model.check_loss(torch.tensor(1.0))


def test_a_bound_that_is_not_finite_is_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def infinite(self: Any, state: torch.Tensor, t: torch.Tensor, *rest: Any) -> torch.Tensor:
        return torch.where((t == 2)[:, None, None], -torch.inf, real(self, state, t, *rest))

    model = build()
    real = type(model.reverse).log_prob
    monkeypatch.setattr(type(model.reverse), "log_prob", infinite)
    with pytest.raises(FLDDError, match=r"the bound is not finite, in kl_t2\. The weights are, so look at the data"):
        trainer(tmp_path).test(model, Pairs())
