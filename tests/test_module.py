"""Training, checkpoints, resuming, conditioning."""

from __future__ import annotations

from functools import partial
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import Mock, patch

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint

from conftest import Stripes, image_model, small_mlp
from fldd_lightning import FLDD, FLDDError, ImageFLDD, LabelledImageFLDD, MixtureCode
from fldd_lightning.callbacks import CollapseMonitor, FIDCallback, NELBOWriter, PerplexityCallback, Pictures
from fldd_lightning.data import DigitsDataModule, DiscreteDataModule, Split, TextDataModule
from fldd_lightning.estimators import RLOO, Concrete, Reinforce, StepLoss, WarmUp
from fldd_lightning.forward import (
    AbsorbingProcess,
    LearnedMaskProcess,
    ResidualAbsorbingProcess,
    ResidualUniformProcess,
    StaggeredProcess,
)
from fldd_lightning.metrics import PixelFeatures
from fldd_lightning.networks import ConvNet
from test_text import WORDS, data_of, model_of


class Pairs(DiscreteDataModule):
    """Two equal ternary coordinates: H = log 3, sum of the marginals' entropies 2 log 3."""

    def load(self) -> dict[str, Split]:
        generator = torch.Generator().manual_seed(0)
        x = torch.randint(3, (97, 1), generator=generator).expand(-1, 2)
        return {"train": Split(x[:64]), "val": Split(x[64:81]), "test": Split(x[81:])}


def build(cls: type[FLDD] = FLDD, **kwargs: Any) -> FLDD:
    defaults: dict[str, Any] = {
        "num_classes": 3,
        "shape": (2,),
        "num_steps": 2,
        "forward_process": partial(ResidualUniformProcess, network=small_mlp),
        "denoiser": small_mlp,
        "estimator": partial(RLOO, samples=2),
        "freeze_steps": 2,
    }
    return cls(**{**defaults, **kwargs})


def coded(**options: Any) -> FLDD:
    """A model with a code of four values."""
    mask = partial(LearnedMaskProcess, network=small_mlp)
    return build(**{"forward_process": mask, "code": partial(MixtureCode, size=4), **options})


def no_backbone(*_: Any) -> torch.nn.Module:
    return torch.nn.Linear(2, 2)


def trainer(folder: Path, **kwargs: Any) -> Trainer:
    defaults: dict[str, Any] = {
        "default_root_dir": folder,
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    return Trainer(**{**defaults, **kwargs})


def fit(folder: Path, model: FLDD, data: DiscreteDataModule, ckpt_path: str | None = None, **kwargs: Any) -> Trainer:
    run = trainer(folder, **kwargs)
    run.fit(model, data, ckpt_path=ckpt_path)
    return run


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
    for steps, moves in ((3, False), (8, True)):
        torch.manual_seed(0)
        model = build(freeze_steps=4)
        before = [p.clone() for p in model.forward_process.parameters()]
        fit(tmp_path, model, Pairs(batch_size=16), max_steps=steps)
        after = list(model.forward_process.parameters())
        assert any(not torch.equal(a, b) for a, b in zip(before, after)) == moves


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


def test_a_run_that_ends_before_the_thaw_is_told(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="ends after 2 steps, and the first freeze_steps=5"):
        fit(tmp_path, build(freeze_steps=5), Pairs(batch_size=16), max_steps=2)


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


def text_data(folder: Path, **options: Any) -> TextDataModule:
    return data_of(folder / "words.txt", cache_dir=str(folder / "cache"), **options)


def text_quality() -> PerplexityCallback:
    return PerplexityCallback(num_samples=30, batch_size=8)


def test_two_processes_train_in_step(tmp_path: Path) -> None:
    """DDP on CPU (gloo): different noise on each rank, parameters in step, metrics of one process."""
    import subprocess
    import sys

    script = Path(__file__).with_name("ddp_script.py")
    (tmp_path / "words.txt").write_text("\n".join(WORDS * 30))
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [torch.load(tmp_path / f"rank{i}.pt", weights_only=True) for i in range(2)]
    for a, b in zip(ranks[0]["parameters"], ranks[1]["parameters"]):
        assert torch.equal(a, b)
    assert not torch.equal(ranks[0]["noise"], ranks[1]["noise"])
    assert ranks[0]["sent"]
    assert not any(name.startswith("code.") for name in ranks[0]["sent"])
    assert bool(ranks[0]["code"]["is_fitted"])
    assert int((ranks[0]["code"]["log_prior"] > -torch.inf).sum()) > 1
    for name, value in ranks[0]["code"].items():
        assert torch.equal(value, ranks[1]["code"][name])
    trained = [torch.load(tmp_path / f"autoencoder{i}.pt", weights_only=True) for i in range(2)]
    for name, value in trained[0].items():
        assert torch.equal(value, trained[1][name])
    clocks = [torch.load(tmp_path / f"clock{i}.pt", weights_only=True) for i in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*clocks, strict=True))
    model = coded(freeze_steps=1)
    assert model.code is not None
    model.code.load_state_dict(ranks[1]["code"])
    with torch.no_grad():
        for p, value in zip(model.parameters(), ranks[0]["parameters"]):
            p.copy_(value)
    alone = trainer(tmp_path).test(model, Pairs(batch_size=5), verbose=False)[0]
    for key, value in ranks[1]["test"].items():
        assert value == pytest.approx(alone[key], rel=1e-5), key
    (kept,) = (tmp_path / "cache").glob("frechet_pixels-*")  # the joint statistics of both
    for num_samples, cache_dir in product((90, 15), (None, str(kept.parent))):
        quality = FIDCallback(PixelFeatures(), num_samples, batch_size=20, cache_dir=cache_dir)
        alone = trainer(tmp_path, callbacks=[quality]).test(image_model(2), Stripes(), verbose=False)[0]
        for i in range(2):
            for key, value in torch.load(tmp_path / f"quality{num_samples}_{i}.pt", weights_only=True).items():
                assert value == pytest.approx(alone[key], rel=1e-4), key
    assert list(kept.parent.glob("frechet_pixels-*")) == [kept]
    assert {"test/frechet_pixels_T2", "test/coverage_pixels_T2", "test/recall_pixels_T2"} <= alone.keys()
    data = text_data(tmp_path)
    alone = trainer(tmp_path, callbacks=[text_quality()]).test(model_of(data), data, verbose=False)[0]
    for i in range(2):
        for key, value in torch.load(tmp_path / f"text{i}.pt", weights_only=True).items():
            assert value == pytest.approx(alone[key], rel=1e-4), key
    assert {"test/gen_ppl_5gram_T2", "test/distinct_4_data", "test/bits_per_char_T2"} <= alone.keys()
    assert len(list((tmp_path / "cache").glob("text-*/facts.json"))) == 1


def digits_model(cls: type[FLDD], num_labels: int = 0) -> FLDD:
    return build(
        cls,
        num_classes=2,
        shape=(8, 8),
        num_labels=num_labels,
        forward_process=partial(LearnedMaskProcess, network=small_mlp),
        denoiser=partial(ConvNet, width=8, depth=1),
    )


def test_labelled_images_use_every_hook(tmp_path: Path) -> None:
    model = digits_model(LabelledImageFLDD, 10)
    run = fit(tmp_path, model, DigitsDataModule(), max_epochs=1, callbacks=[Pictures(4, 2)], log_every_n_steps=1)
    logged = run.callback_metrics
    assert logged["val/label_nll"] == pytest.approx(2.3, abs=0.1)
    steps = logged["val/kl_t1"] + logged["val/kl_t2"]
    torch.testing.assert_close(logged["val/nelbo"], steps + logged["val/label_nll"])
    assert "val/nelbo_label3" in logged
    assert model.sample(3).shape == (3, 8, 8)
    for name in ("samples", "trajectory", "marginals"):
        assert (tmp_path / "pictures" / f"{name}.png").stat().st_size > 1000


def test_predict_scores_every_example(tmp_path: Path) -> None:
    model = digits_model(ImageFLDD)
    run = trainer(tmp_path, callbacks=[NELBOWriter()])
    run.predict(model, DigitsDataModule(batch_size=64))
    saved = torch.load(tmp_path / "nelbo_rank0.pt", weights_only=True)
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
    model.reverse._skip = lambda state, t: torch.zeros_like(state)
    with pytest.warns(UserWarning, match="has collapsed"):
        fit(tmp_path, model, Pairs(batch_size=16), max_epochs=1, callbacks=[CollapseMonitor()])


def test_wrong_submodules_and_labels_are_refused() -> None:
    with pytest.raises(FLDDError, match="not a Backbone"):
        build(denoiser=no_backbone)
    with pytest.raises(FLDDError, match="num_labels"):
        digits_model(LabelledImageFLDD)
    with pytest.raises(FLDDError, match="ConvNet needs images"):
        build(denoiser=ConvNet)
    with pytest.raises(FLDDError, match="at least 1"):
        build().sample(0)
    with pytest.raises(FLDDError, match="keyword arguments"):
        build(forward_process=partial(ResidualUniformProcess, 1))


def test_fixed_process_trains_with_any_estimator(tmp_path: Path) -> None:
    for estimator in (Reinforce, RLOO):
        model = build(forward_process=AbsorbingProcess, estimator=estimator)
        run = fit(tmp_path, model, Pairs(batch_size=16), max_epochs=1)
        assert run.callback_metrics["val/nelbo"] > 0


def test_free_bits_leave_small_steps_alone(tmp_path: Path) -> None:
    batch = {"x": torch.randint(3, (32, 1)).expand(-1, 2)}
    gradients = {}
    for bits in (0.0, 1e-3, 1e3):
        torch.manual_seed(0)
        model = build(free_bits=bits, freeze_steps=0, auxiliary_weight=0.0)
        model.log = lambda *args, **kwargs: None  # type: ignore[assignment]
        loss = model.training_step(batch, 0)
        loss.backward()
        gradients[bits] = sum(float(p.grad.abs().sum()) for p in model.parameters() if p.grad is not None)
    assert gradients[0.0] > 0
    assert gradients[1e-3] == gradients[0.0]  # every step is above
    assert gradients[1e3] == 0  # every step is below
    model = build(free_bits=0.1, estimator=Concrete)
    with pytest.raises(FLDDError, match="free_bits needs an estimator that reports a KL"):
        fit(tmp_path, model, Pairs(batch_size=16), max_steps=1)
    with pytest.raises(FLDDError, match="forward_interval"):
        build(forward_interval=0)


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
            seen.append(out.auxiliary.mean())
            return out

        with patch.object(model.estimator, "loss", watched):
            losses[weight] = model.training_step(batch, 0)
    assert float(seen[0]) > 0
    for weight, loss in losses.items():
        torch.testing.assert_close(loss - losses[0.0], weight * 3 / 5 * seen[0])  # T / D
    for progress, share in ((0.25, 0.75), (1.0, 0.0), (1.5, 0.0)):
        with patch.object(model, "_progress", lambda progress=progress: progress):
            torch.testing.assert_close(model.training_step(batch, 0) - losses[0.0], 3 * share * 3 / 5 * seen[0])


def test_progress_runs_from_0_to_1(tmp_path: Path) -> None:
    class Watch(Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            seen.append(pl_module._progress())

    seen: list[float] = []
    assert build()._progress() == 0
    fit(tmp_path, build(), Pairs(batch_size=16), max_steps=8, callbacks=[Watch()])
    assert seen == [i / 8 for i in range(8)]


def test_forward_interval_gives_the_denoiser_more_updates(tmp_path: Path) -> None:
    class Watch(Callback):
        moves: list[bool]

        def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
            self.moves, self.before = [], None

        def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            now = torch.cat([p.detach().flatten().clone() for p in pl_module.forward_process.parameters()])
            self.moves.append(self.before is None or not torch.equal(now, self.before))
            self.before = now

    watch = Watch()
    model = build(forward_interval=3, freeze_steps=0)
    fit(tmp_path, model, Pairs(batch_size=16), max_steps=7, callbacks=[watch])
    assert watch.moves == [True, False, False, True, False, False, True]


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
