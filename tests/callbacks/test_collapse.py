"""The signal-to-noise ratio and the distance from the base against their definitions, and what is told."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback

from conftest import PROCESSES, Stripes, image_model, randomise, small_mlp
from fldd_lightning import FLDD, ImageFLDD, LabelLatent, LearnedMaskProcess, MixtureLatent, Split
from fldd_lightning.callbacks import CollapseMonitor
from fldd_lightning.callbacks.collapse import GradientSNR, dependence_on_x, moved_from_base, observed


@pytest.mark.parametrize("noise", [0.1, 1.0, 10.0])
def test_gradient_snr(noise: float) -> None:
    generator = torch.Generator().manual_seed(0)
    p = [torch.nn.Parameter(torch.zeros(size)) for size in (300, 700)]
    mean = [torch.randn(size, generator=generator) for size in (300, 700)]
    snr, values = GradientSNR(), []
    for step in range(600):
        for parameter, m in zip(p, mean):
            parameter.grad = m + noise * torch.randn(m.shape, generator=generator)
        snr.update(p)
        if step > 100 and step % 50 == 0:
            value = snr.compute()
            assert value is not None
            values.append(value)
    signal = float(sum(m.square().sum() for m in mean))
    assert sum(values) / len(values) == pytest.approx(signal / (1000 * noise**2), rel=0.15, abs=1e-3)


def test_gradient_snr_needs_gradients() -> None:
    snr, p = GradientSNR(), torch.nn.Parameter(torch.zeros(3))
    snr.update([p])
    assert snr.compute() is None
    p.grad = torch.full((3,), float("nan"))
    for _ in range(20):
        snr.update([p])
    assert snr.compute() is None
    p.grad = torch.ones(3)
    for _ in range(20):
        snr.update([p])
    value = snr.compute()
    assert value is not None
    assert value > 1e4  # no noise at all


def test_all_processes_warn_alike(tmp_path: Path) -> None:
    """The distance moved is that of the first process's batch; processes that disagree wait for each other for ever."""

    class Other(Callback):
        def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
            usual = trainer.strategy.broadcast
            trainer.strategy.broadcast = lambda value, src=0: 0.0 if isinstance(value, float) else usual(value)  # type: ignore[method-assign]

    run = Trainer(
        accelerator="cpu", max_epochs=1, default_root_dir=str(tmp_path), logger=False, enable_checkpointing=False,
        callbacks=[Other(), CollapseMonitor()], enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    model = image_model(2)
    model.freeze_steps = 0
    randomise(model.forward_process)
    with pytest.warns(UserWarning, match=r"hardly moved from its base \(total variation 0"):
        run.fit(model, Stripes())


def test_reading_the_data_leaves_the_training_epoch_alone(tmp_path: Path) -> None:
    """With worker processes the loader has one iterator, which a second reader would start anew."""
    batches = []

    class Order(Callback):
        def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
            batches.append((trainer.current_epoch, batch_idx))

    data = Stripes()
    data.num_workers = 1
    run = Trainer(
        accelerator="cpu", max_epochs=2, val_check_interval=2, default_root_dir=str(tmp_path), logger=False,
        callbacks=[CollapseMonitor(), Order()], enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    run.fit(image_model(2), data)
    assert batches == [(epoch, i) for epoch in (0, 1) for i in range(4)]
    x = data.splits["train"].x.flatten(1).double()
    p = torch.stack([x.mean(0), 1 - x.mean(0)])
    assert float(run.callback_metrics["collapse/marginal_entropy"]) == pytest.approx(-float(torch.xlogy(p, p).sum()))


@pytest.mark.parametrize("process", ["learned_mask", "residual_absorbing", "residual_uniform"])
def test_the_distance_from_the_base_is_a_total_variation_without_padding(process: str) -> None:
    model = FLDD(3, (5,), PROCESSES[process], small_mlp, num_steps=3, padded=True)
    x = torch.tensor([[0, 1, 0, 2, 2], [1, 1, 1, 0, 2]])  # 2 is PAD
    at_start = moved_from_base(model, x)
    assert at_start is not None
    assert at_start < 1e-3
    randomise(model.forward_process, 0.2)
    t = torch.tensor([[1, 2]]).expand(2, -1)
    learned, base = (
        model.forward_process.log_marginals(x, t).exp(),
        model.forward_process.base.log_marginals(x, t).exp(),
    )
    of_each = 0.5 * (learned - base).abs().sum(-1)  # (2, 2, 5)
    drawn = (x != 2).unsqueeze(1).expand_as(of_each)
    assert moved_from_base(model, x) == pytest.approx(float(of_each[drawn].mean()), rel=1e-5)
    assert float(of_each[~drawn].sum()) == 0.0


@pytest.mark.parametrize("with_label", [False, True])
def test_a_bound_no_lower_than_that_of_the_latents_is_told(tmp_path: Path, with_label: bool) -> None:
    """The label's own cost stands on both sides."""

    class Labelled(Stripes):
        def load(self) -> dict[str, Split]:
            return {name: Split(each.x, each.x[:, 0, 0]) for name, each in super().load().items()}

    latents = [MixtureLatent, *([partial(LabelLatent, num_labels=2)] if with_label else [])]
    process = partial(LearnedMaskProcess, network=small_mlp)
    model = ImageFLDD(2, (4, 4), process, small_mlp, latents=latents, num_steps=3, freeze_steps=0)
    randomise(model, 2.0)  # a bound that is far worse than that of the mixture alone
    run = Trainer(
        accelerator="cpu", max_epochs=1, default_root_dir=str(tmp_path), logger=False, enable_checkpointing=False,
        callbacks=[CollapseMonitor()], enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    with pytest.warns(
        UserWarning, match=r"The steps add nothing to the latents so far: val/nelbo is (\S+) nats, and val/nll_latent"
    ):
        run.fit(model, Labelled())
    assert run.callback_metrics["val/nelbo"] > run.callback_metrics["val/nll_latent"]
    assert observed(model) == (["label"] if with_label else [])


@pytest.mark.parametrize(("freeze_steps", "speaks"), [(4, True), (5, False)])
def test_a_run_twice_as_long_as_the_freeze_is_told(tmp_path: Path, freeze_steps: int, speaks: bool) -> None:
    """The default run of the digits is just that long; a process that cannot move is not passed over in silence."""
    model = image_model(2)
    model.freeze_steps, model.forward_lr_ratio = freeze_steps, 0.0
    run = Trainer(
        accelerator="cpu", max_steps=8, val_check_interval=4, check_val_every_n_epoch=None, logger=False,
        default_root_dir=str(tmp_path), enable_checkpointing=False, callbacks=[CollapseMonitor()],
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run.fit(model, Stripes())
    assert any("hardly moved" in str(each.message) for each in caught) == speaks


@pytest.mark.parametrize(("spoiled_at", "freeze_steps", "speaks"), [(5, 4, True), (3, 2, False), (5, 9, True)])
def test_a_best_checkpoint_from_before_the_process_moved_is_told(
    tmp_path: Path, spoiled_at: int, freeze_steps: int, speaks: bool
) -> None:
    """Validations are at steps 4 and 8; weights are spoiled in between, before or after the process is freed."""

    class Spoil(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
            if trainer.global_step == spoiled_at:
                randomise(pl_module.reverse, 3.0)

    model = image_model(2)
    model.freeze_steps = freeze_steps
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = Trainer(
            accelerator="cpu", max_steps=8, val_check_interval=4, check_val_every_n_epoch=None, logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            default_root_dir=tmp_path, callbacks=[CollapseMonitor(), Spoil()],
        )  # fmt: skip
        trainer.fit(model, Stripes())
    said = [str(each.message) for each in caught if "nothing of what the forward process learned" in str(each.message)]
    assert len(said) == int(speaks)
    if speaks:
        assert "lowest at step 4" in said[0]
        assert "until step 4" in said[0]


@pytest.mark.parametrize("padded", [False, True])
def test_dependence_on_x_against_its_definition(padded: bool) -> None:
    torch.manual_seed(0)
    process = partial(LearnedMaskProcess, network=small_mlp)
    model = FLDD(3 + padded, (4,), process, small_mlp, num_steps=3, padded=padded)
    x = torch.randint(3, (50, 4))
    if padded:
        x[:20, 3] = 3
    assert dependence_on_x(model, x) == pytest.approx((0.0, 0.0), abs=1e-6)  # its network starts at zero
    randomise(model.forward_process)
    spreads, nats, weights = [], [0.0, 0.0], []
    for t in (1, 2):
        kept = model.forward_process.kept(x, torch.full((50, 1), t)).detach().double().squeeze(1)
        for i in range(4):
            p = kept[x[:, i] != 3, i]
            h = lambda q: -float((q * q.log() + (1 - q) * (1 - q).log()).mean())  # noqa: E731
            spreads.append(float(p.std(unbiased=False)) * len(p))
            weights.append(len(p))
            nats[t - 1] += (h(p.mean()) - h(p)) * len(p) / 50
    found = dependence_on_x(model, x)
    assert found == pytest.approx((sum(spreads) / sum(weights), sum(nats) / 2), rel=1e-4)
    assert found is not None
    assert min(found) > 1e-3
    fixed = FLDD(3, (4,), PROCESSES["absorbing"], small_mlp, num_steps=3)
    assert dependence_on_x(fixed, x) is None
