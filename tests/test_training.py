"""Schedules and clipping."""

from __future__ import annotations

import warnings
from datetime import timedelta

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Timer

from fldd_lightning.training import AdaptiveClip, check_length, learning_rate_factor, run_progress


def test_factor_freezes_rises_and_falls() -> None:
    factor = learning_rate_factor(lambda step: step / 1000, frozen_steps=200, warmup_steps=100)
    assert factor(0) == factor(199) == 0
    assert 0 < factor(200) < factor(250) < factor(299)
    assert factor(1000) == pytest.approx(0.02)
    assert factor(5000) == pytest.approx(0.02)


def test_progress_is_that_of_the_nearer_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    def with_limits(max_steps: int, elapsed: float | None) -> float:
        timer = Timer(timedelta(seconds=100))
        monkeypatch.setattr(timer, "time_elapsed", lambda *_: elapsed)
        monkeypatch.setattr(timer, "time_remaining", lambda *_: 100 - (elapsed or 0))
        callbacks = [] if elapsed is None else [timer]
        trainer = Trainer(accelerator="cpu", max_steps=max_steps, logger=False, callbacks=callbacks)
        monkeypatch.setattr(type(trainer), "estimated_stepping_batches", max_steps if max_steps > 0 else float("inf"))
        return run_progress(trainer)(25)

    assert with_limits(100, None) == pytest.approx(0.25)
    assert with_limits(100, 10.0) == pytest.approx(0.25)
    assert with_limits(100, 80.0) == pytest.approx(0.8)
    assert with_limits(-1, 80.0) == pytest.approx(0.8)
    assert with_limits(-1, None) == 0


def test_all_processes_go_by_one_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    timer = Timer(timedelta(seconds=100))
    monkeypatch.setattr(timer, "time_elapsed", lambda *_: 10.0)
    monkeypatch.setattr(timer, "time_remaining", lambda *_: 90.0)
    trainer = Trainer(accelerator="cpu", max_steps=100, logger=False, callbacks=[timer])
    monkeypatch.setattr(type(trainer), "estimated_stepping_batches", 100)
    asked: list[float] = []
    monkeypatch.setattr(trainer.strategy, "broadcast", lambda value: asked.append(value) or 0.5)
    progress = run_progress(trainer)
    assert [progress(20), progress(20), progress(21), progress(60)] == [0.5, 0.5, 0.5, 0.6]
    assert asked == [0.1, 0.1, 0.1]  # once a step


def test_a_stream_of_unknown_length_has_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(accelerator="cpu", max_epochs=3, logger=False)
    monkeypatch.setattr(type(trainer), "estimated_stepping_batches", -1)  # what Lightning says of it
    assert run_progress(trainer)(25) == 0


def test_a_gradient_of_zero_does_not_stop_training() -> None:
    clip, p = AdaptiveClip("the denoiser"), torch.nn.Parameter(torch.zeros(4))
    for size in (0.0, 1.0):
        p.grad = torch.full((4,), size / 2)
        clip.clip([p])
    assert p.grad is not None
    assert float(p.grad.norm()) == pytest.approx(1.0)


def test_clipping_nothing() -> None:
    """As where the denoiser is held still; on a GPU the norm of no gradients would lie elsewhere."""
    clip = AdaptiveClip("the denoiser")
    clip.clip([torch.nn.Parameter(torch.zeros(4))])
    assert bool(clip.mean_norm.isnan())


def test_clip_follows_the_running_mean_and_drops_what_is_not_finite() -> None:
    clip, p = AdaptiveClip("the denoiser", ratio=2.0), torch.nn.Parameter(torch.zeros(4))

    def norm_after(size: float) -> float:
        p.grad = torch.full((4,), size / 2)
        clip.clip([p])
        return float("nan") if p.grad is None else float(p.grad.norm())

    assert norm_after(1.0) == pytest.approx(1.0)
    assert norm_after(1.5) == pytest.approx(1.5, rel=1e-4)
    assert norm_after(100.0) == pytest.approx(2 * float(clip.mean_norm), rel=1e-3)
    before = float(clip.mean_norm)
    for size in (float("inf"), float("nan")):
        assert norm_after(size) == 0
    assert float(clip.mean_norm) == before
    assert int(clip.num_dropped) == 2
    with pytest.warns(UserWarning, match="a gradient of the denoiser was not finite, and was taken as 0"):
        clip.warn()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clip.warn()  # said once


@pytest.mark.parametrize(("interval", "warns"), [(4, False), (5, True), ("00:01:00:00", False)])
def test_a_run_that_ends_before_its_first_validation_is_warned_of(interval: int | str, warns: bool) -> None:
    options = {"max_steps": 2, "accumulate_grad_batches": 2, "val_check_interval": interval}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = Trainer(accelerator="cpu", logger=False, check_val_every_n_epoch=None, **options)
        check_length(trainer)
    told = [str(each.message) for each in caught if "before its first validation" in str(each.message)]
    assert len(told) == warns
    assert not warns or told[0].startswith("the run ends after 4 batches, before its first validation: ")
