"""Training, checkpoints, resuming, conditioning."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock, patch

import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from conftest import small_mlp
from fldd_lightning import FLDD, FLDDError, ImageFLDD, LabelLatent
from fldd_lightning.callbacks import CollapseMonitor, NELBOWriter, Pictures
from fldd_lightning.data import DigitsDataModule
from fldd_lightning.estimators import RLOO, Concrete, Reinforce, StepLoss, WarmUp
from fldd_lightning.forward import (
    AbsorbingProcess,
    LearnedMaskProcess,
    ResidualAbsorbingProcess,
    ResidualUniformProcess,
    StaggeredProcess,
)
from fldd_lightning.networks import UNet
from tiny import Pairs, build, fit, trainer


def no_backbone(*_: Any) -> torch.nn.Module:
    return torch.nn.Linear(2, 2)


def test_logs_the_bound_and_its_terms(tmp_path: Path) -> None:
    run = fit(tmp_path, build(), Pairs(batch_size=16), max_epochs=2)
    logged = run.callback_metrics
    assert {"val/nelbo", "val/bpd", "val/kl_t1", "val/kl_t2", "train/nelbo", "train/bpd"} <= logged.keys()
    torch.testing.assert_close(logged["val/nelbo"], logged["val/kl_t1"] + logged["val/kl_t2"])
    bits = logged["val/nelbo"] / (2 * torch.log(torch.tensor(2.0)))
    torch.testing.assert_close(logged["val/bpd"], bits)


def test_training_lowers_the_bound(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build(lr=1e-2, freeze_steps=50)
    before = trainer(tmp_path).validate(model, Pairs(batch_size=16), verbose=False)[0]["val/nelbo"]
    fit(tmp_path, model, Pairs(batch_size=16), max_steps=400)
    after = trainer(tmp_path).validate(model, Pairs(batch_size=16), verbose=False)[0]["val/nelbo"]
    assert after < before - 0.2


def test_evaluation_does_not_depend_on_the_batch_size(tmp_path: Path) -> None:
    model = build()
    torch.nn.init.normal_(model.reverse.network.mix_out.weight)  # type: ignore[union-attr, arg-type]
    values = [trainer(tmp_path).test(model, Pairs(batch_size=size), verbose=False)[0]["test/nelbo"] for size in (3, 16)]
    assert values[0] == pytest.approx(values[1], rel=1e-6)


def test_forward_is_frozen_then_moves(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, moved = build(freeze_steps=4), []
    before = [p.clone() for p in model.forward_process.parameters()]

    class Watch(Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            after = model.forward_process.parameters()
            moved.append(any(not torch.equal(a, b) for a, b in zip(before, after)))

    fit(tmp_path, model, Pairs(batch_size=16), max_steps=8, callbacks=[Watch()])
    assert moved == [False] * 4 + [True] * 4


def test_checkpoint_round_trip_is_plain(tmp_path: Path) -> None:
    model = build(forward_process=partial(ResidualUniformProcess, network=small_mlp, floor=0.01))
    run = fit(tmp_path, model, Pairs(batch_size=16), max_steps=4)
    path = tmp_path / "model.ckpt"
    run.save_checkpoint(path)
    torch.load(path, weights_only=True)
    loaded = FLDD.load_from_checkpoint(path, weights_only=True)
    assert loaded.forward_process.floor == 0.01
    for a, b in zip(model.parameters(), loaded.parameters()):
        assert torch.equal(a, b)
    assert torch.equal(model.sample(5, seed=1), loaded.sample(5, seed=1))


def test_resume_equals_an_uninterrupted_run(tmp_path: Path) -> None:
    saving = ModelCheckpoint(
        tmp_path, filename="{epoch}", every_n_epochs=2, save_top_k=-1, save_on_train_epoch_end=True
    )
    seed_everything(7)
    whole = build()
    fit(tmp_path, whole, Pairs(batch_size=16), max_epochs=4, enable_checkpointing=True, callbacks=[saving])
    torch.rand(100)  # whatever else happened in between
    seed_everything(7)
    resumed = build()
    half = str(tmp_path / "epoch=1.ckpt")
    assert torch.load(half, weights_only=True)["global_step"] == 8
    fit(tmp_path, resumed, Pairs(batch_size=16), half, max_epochs=4)
    for (name, a), b in zip(whole.named_parameters(), resumed.parameters()):
        torch.testing.assert_close(a, b, rtol=0, atol=0, msg=name)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"num_steps": 3}, "num_steps: 2 there, 3 here"),
        ({"forward_process": partial(LearnedMaskProcess, network=small_mlp)}, "forward_process"),
        ({"num_classes": 4}, "num_classes: 3 there, 4 here"),
    ],
)
def test_checkpoint_of_another_configuration(tmp_path: Path, other: dict[str, Any], message: str) -> None:
    run = fit(tmp_path, build(), Pairs(batch_size=16), max_steps=2)
    run.save_checkpoint(tmp_path / "model.ckpt")
    with pytest.raises(FLDDError, match=message):
        trainer(tmp_path).test(build(**other), Pairs(), ckpt_path=str(tmp_path / "model.ckpt"))


@pytest.mark.parametrize(
    ("trained", "other"),
    [
        (partial(LearnedMaskProcess, network=small_mlp), partial(StaggeredProcess, slack=0.05)),
        (
            partial(LearnedMaskProcess, network=small_mlp),
            partial(LearnedMaskProcess, network=small_mlp, base=AbsorbingProcess),
        ),
        (partial(StaggeredProcess, slack=0.1), StaggeredProcess),
        (
            partial(ResidualAbsorbingProcess, network=small_mlp),
            partial(ResidualAbsorbingProcess, network=small_mlp, floor=0.1),
        ),
    ],
)
def test_checkpoint_of_another_base_or_option_of_the_process(tmp_path: Path, trained: Any, other: Any) -> None:
    run = fit(tmp_path, build(forward_process=trained), Pairs(batch_size=16), max_steps=2)
    run.save_checkpoint(tmp_path / "model.ckpt")
    with pytest.raises(FLDDError, match=r"forward_process: .* there, .* here"):
        trainer(tmp_path).test(build(forward_process=other), Pairs(), ckpt_path=str(tmp_path / "model.ckpt"))
    trainer(tmp_path).test(build(forward_process=trained), Pairs(), ckpt_path=str(tmp_path / "model.ckpt"))


def test_a_freeze_is_no_longer_than_half_of_the_run(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build(freeze_steps=50)
    before = [p.clone() for p in model.forward_process.parameters()]
    with pytest.warns(UserWarning, match="which ends at step 8. The forward process is held still until step 4"):
        fit(tmp_path, model, Pairs(batch_size=16), max_steps=8)
    assert model.held_steps == 4
    assert any(not torch.equal(a, b) for a, b in zip(before, model.forward_process.parameters()))


class NamedPairs(Pairs):
    def __init__(self, names: str) -> None:
        super().__init__(batch_size=16)
        self.vocabulary = names


def test_vocabulary_goes_with_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    model = build()
    fit(tmp_path, model, NamedPairs("abc"), max_steps=2).save_checkpoint(path)
    loaded = FLDD.load_from_checkpoint(path, weights_only=True)
    assert loaded.vocabulary == ["a", "b", "c"]
    message = "different vocabularies .*; 1 is '[bx]' and '[bx]'"
    with pytest.raises(FLDDError, match=message):
        trainer(tmp_path).test(loaded, NamedPairs("axc"))
    with pytest.raises(FLDDError, match=message):
        trainer(tmp_path).test(build(), NamedPairs("axc"), ckpt_path=str(path), weights_only=True)
    trainer(tmp_path).test(loaded, NamedPairs("abc"), ckpt_path=str(path), weights_only=True)


def test_warm_up_reports_no_bound_while_relaxed(tmp_path: Path) -> None:
    estimator = partial(WarmUp, first=partial(Concrete, decay_steps=10), then=RLOO, steps=100)
    run = fit(tmp_path, build(estimator=estimator), Pairs(batch_size=16), max_steps=3, limit_val_batches=0)
    assert "train/nelbo" not in run.callback_metrics


def digits_model(**options: Any) -> FLDD:
    return build(
        ImageFLDD,
        num_classes=2,
        shape=(8, 8),
        forward_process=partial(LearnedMaskProcess, network=small_mlp),
        denoiser=partial(UNet, widths=(8, 8)),
        **options,
    )


def test_labelled_images_use_every_hook(tmp_path: Path) -> None:
    model = digits_model(latents=partial(LabelLatent, num_labels=10))
    run = fit(tmp_path, model, DigitsDataModule(), max_epochs=1, callbacks=[Pictures(4, 2)], log_every_n_steps=1)
    logged = run.callback_metrics
    assert logged["val/kl_label"] == pytest.approx(2.3, abs=0.1)
    steps = logged["val/kl_t1"] + logged["val/kl_t2"]
    torch.testing.assert_close(logged["val/nelbo"], steps + logged["val/kl_label"])
    assert "val/nelbo_label3" in logged
    assert model.sample(3).shape == (3, 8, 8)
    for name in ("samples", "trajectory", "marginals"):
        assert (tmp_path / "pictures" / f"{name}.png").stat().st_size > 1000


def test_predict_scores_every_example(tmp_path: Path) -> None:
    model = digits_model()
    run = trainer(tmp_path, callbacks=[NELBOWriter()])
    run.predict(model, DigitsDataModule(batch_size=64))
    saved = torch.load(tmp_path / "nelbo.pt", weights_only=True)
    assert saved["index"].tolist() == list(range(270))
    tested = trainer(tmp_path).test(model, DigitsDataModule(), verbose=False)[0]["test/nelbo"]
    assert float(saved["nelbo"].mean()) == pytest.approx(tested, rel=1e-5)


def test_collapse_monitor_warns_once_in_plain_words(tmp_path: Path) -> None:
    model = build(freeze_steps=0, lr=1e-12)
    monitor = CollapseMonitor()
    with pytest.warns(UserWarning, match="hardly moved"):
        fit(tmp_path, model, Pairs(batch_size=16), max_epochs=2, callbacks=[monitor])
    assert monitor._warned
    # z_1 is noise whatever x is, and the reverse process knows it: all information in one step.
    noise = partial(ResidualAbsorbingProcess, network=small_mlp, floor=1 - 1e-9)
    model = build(freeze_steps=0, lr=1e-12, forward_process=noise)
    model.reverse._base = lambda state, t, s: torch.zeros_like(state)
    with pytest.warns(UserWarning, match="has collapsed"):
        fit(tmp_path, model, Pairs(batch_size=16), max_epochs=1, callbacks=[CollapseMonitor()])


def test_wrong_submodules_and_labels_are_refused() -> None:
    with pytest.raises(FLDDError, match="a Backbone is needed here, but this makes a Linear"):
        build(denoiser=no_backbone)
    with pytest.raises(FLDDError, match="num_labels"):
        digits_model(latents=partial(LabelLatent, num_labels=0))
    with pytest.raises(FLDDError, match="UNet needs images"):
        build(denoiser=UNet)
    with pytest.raises(FLDDError, match="1 or more"):
        build().sample(0)
    with pytest.raises(FLDDError, match="keyword arguments"):
        build(forward_process=partial(ResidualUniformProcess, 1))


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"x": torch.tensor([[0, 1], [2, 3]]), "label": torch.zeros(2).long()}, "x has values from 0 to 3"),
        ({"x": torch.tensor([[0, -1], [2, 1]]), "label": torch.zeros(2).long()}, "x has values from -1 to 2"),
        ({"x": torch.zeros(2, 3).long(), "label": torch.zeros(2).long()}, "x has shape"),
        ({"x": torch.zeros(2, 2), "label": torch.zeros(2).long()}, "integers"),
        ({"x": torch.zeros(2, 2).long(), "label": torch.tensor([0, 4])}, "label has values from 0 to 4"),
        ({"x": torch.zeros(2, 2).long()}, "the data have no 'label'"),
    ],
)
def test_batches_are_checked_in_training_and_evaluation(tmp_path: Path, batch: dict[str, Any], message: str) -> None:
    model = build(latents=partial(LabelLatent, num_labels=4))
    size = (len(batch["x"]), 2, 2)
    with pytest.raises(FLDDError, match=message):
        model.nelbo_terms(batch, torch.rand(size, dtype=torch.float64))
    with pytest.raises(FLDDError, match=message):
        trainer(tmp_path, max_steps=1).fit(model, DataLoader([batch], batch_size=None))  # type: ignore[arg-type]


def test_fixed_process_trains_with_any_estimator(tmp_path: Path) -> None:
    for estimator in (Reinforce, RLOO):
        model = build(forward_process=AbsorbingProcess, estimator=estimator)
        run = fit(tmp_path, model, Pairs(batch_size=16), max_epochs=1)
        assert run.callback_metrics["val/nelbo"] > 0


def test_the_auxiliary_loss_is_counted_like_a_step_and_falls_to_zero() -> None:
    batch = {"x": torch.randint(3, (32, 5))}
    losses, seen = {}, []
    for weight in (0.0, 1.0, 3.0):
        torch.manual_seed(0)
        model = build(shape=(5,), num_steps=3, auxiliary_weight=weight, forward_process=StaggeredProcess)
        model.log = lambda *args, **kwargs: None  # type: ignore[assignment]
        estimate = model.estimator.loss

        def watched(*args: Any, estimate: Any = estimate) -> StepLoss:
            out: StepLoss = estimate(*args)
            assert out.auxiliary is not None
            seen.append(out.auxiliary.detach().mean())
            return out

        with patch.object(model.estimator, "loss", watched):
            losses[weight] = model.training_step(batch, 0)
    assert float(seen[0]) > 0
    for weight, loss in losses.items():
        torch.testing.assert_close(loss - losses[0.0], weight * 3 / 5 * seen[0])  # T / D
    for progress, share in ((0.25, 0.75), (1.0, 0.0), (1.5, 0.0)):
        with patch.object(model, "_run_progress", lambda step, progress=progress: progress):
            model.on_train_batch_start(batch, 0)
            torch.testing.assert_close(model.training_step(batch, 0) - losses[0.0], 3 * share * 3 / 5 * seen[0])


def test_the_weight_of_the_auxiliary_loss_follows_the_run(tmp_path: Path) -> None:
    class Watch(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            seen.append(pl_module.auxiliary_weight * (1 - pl_module._progress))

    seen: list[float] = []
    fit(tmp_path, build(auxiliary_weight=3.0), Pairs(batch_size=16), max_steps=8, callbacks=[Watch()])
    assert seen == [3 * (1 - i / 8) for i in range(8)]


def test_clipping_by_norm_by_value_and_not_at_all() -> None:
    model = build(freeze_steps=0)
    parameters = list(model.reverse.parameters())
    optimizer: Any = Mock(param_groups=[{"params": parameters, "name": "reverse"}])
    sizes = []
    for limit, algorithm in ((0.5, "norm"), (0.5, "value"), (0, "norm")):  # 0 is Lightning's word for no clipping
        for p in parameters:
            p.grad = torch.full_like(p, 3.0)
        model.configure_gradient_clipping(optimizer, limit, algorithm)
        gradient = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
        sizes.append((float(gradient.norm()), float(gradient.max())))
    assert sizes[0][0] == pytest.approx(0.5, rel=1e-3)
    assert sizes[1][1] == pytest.approx(0.5)
    assert sizes[2][1] == 3.0


def test_weights_of_16_bits_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FLDDError, match=r"precision bf16-true .* Use bf16-mixed"):
        fit(tmp_path, build(), Pairs(batch_size=16), max_steps=1, precision="bf16-true")
