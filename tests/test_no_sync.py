"""A training step never asks the device for a number, so that the device never waits for the host.

The whole step runs on fake tensors, which have no values: whatever reads one, or makes a shape of values, raises.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from fldd_lightning import (
    FLDD,
    MLP,
    RLOO,
    AbsorbingProcess,
    AutoencoderLatent,
    CollapseMonitor,
    Concrete,
    D3PMProcess,
    DiT,
    EitherLatent,
    ExactMasks,
    FLDDError,
    LabelLatent,
    LearnedMaskProcess,
    MaskedReverse,
    PredictingReverse,
    ResidualUniformProcess,
    StaggeredProcess,
    TrainedChainLatent,
    TrainedMixtureLatent,
    Transformer,
    UNet,
)
from fldd_lightning.callbacks.collapse import GradientSNR
from fldd_lightning.training import AdaptiveClip

LEARNED = partial(LearnedMaskProcess, network=MLP)
SMALL: dict[str, Any] = {"width": 16, "depth": 1, "heads": 2}
MODELS: dict[str, Any] = {
    "learned": partial(FLDD, 3, (8,), LEARNED, MLP),
    "more steps than examples": partial(FLDD, 3, (8,), LEARNED, MLP, num_steps=32),
    "absorbing": partial(FLDD, 3, (8,), AbsorbingProcess, MLP),
    "exactly n masks": partial(
        FLDD, 3, (8,), AbsorbingProcess, MLP, ExactMasks, reverse=partial(MaskedReverse, time_independent=True)
    ),
    "residual": partial(FLDD, 3, (8,), partial(ResidualUniformProcess, network=MLP), MLP),
    "concrete": partial(FLDD, 3, (8,), partial(ResidualUniformProcess, network=MLP), MLP, Concrete),
    "D3PM": partial(FLDD, 3, (8,), D3PMProcess, MLP, reverse=PredictingReverse),
    "leave one out": partial(FLDD, 3, (8,), LEARNED, MLP, RLOO),
    "observed": partial(FLDD, 3, (8,), LEARNED, MLP, observed=0.5),
    "mixture": partial(FLDD, 3, (8,), LEARNED, MLP, latents=TrainedMixtureLatent),
    "chain": partial(FLDD, 3, (8,), LEARNED, MLP, latents=TrainedChainLatent),
    "either": partial(FLDD, 3, (8,), LEARNED, MLP, latents=EitherLatent),
    "autoencoder": partial(FLDD, 3, (8,), LEARNED, MLP, latents=partial(AutoencoderLatent, fit_steps=0)),
    "labels": partial(FLDD, 3, (8,), LEARNED, MLP, latents=partial(LabelLatent, num_labels=5)),
    "padded": partial(FLDD, 4, (8,), StaggeredProcess, partial(Transformer, **SMALL), padded=True),
    "transformer": partial(
        FLDD, 3, (8,), partial(LearnedMaskProcess, network=partial(Transformer, **SMALL)), partial(Transformer, **SMALL)
    ),
    "U-Net": partial(FLDD, 2, (8, 8), StaggeredProcess, partial(UNet, widths=(8, 16))),
    "DiT": partial(FLDD, 2, (8, 8), StaggeredProcess, partial(DiT, **SMALL)),
}


@contextmanager
def without_values(*modules: nn.Module) -> Iterator[FakeTensorMode]:
    """Parameters and buffers lose their values, and all that is computed has none."""
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        for module in (part for each in modules for part in each.modules()):
            for name, p in module._parameters.items():
                if p is not None:
                    module._parameters[name] = nn.Parameter(mode.from_tensor(p.detach()), p.requires_grad)
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = mode.from_tensor(buffer)
        yield mode


@pytest.mark.parametrize("name", MODELS)
def test_a_step_reads_nothing(name: str) -> None:
    model = MODELS[name]()
    model._has_checked_draws = True  # that check is made once a run
    model.forward_process._has_checked_padding = True
    monitor: Callback = CollapseMonitor()
    with without_values(model):
        x = torch.randint(0, 2, (16, *model.spec.shape))
        batch = {"x": x, "label": torch.zeros(16, dtype=torch.long)}
        made = model.make_optimizer(1000, lambda step: step / 1000)
        model.held_steps = 0
        for step in (1, 2):
            model.own_steps = step
            loss = model.training_step(batch, step)
            loss.backward()
            if model.forward_process.learned:
                monitor._snr.update(model.forward_process.parameters())  # type: ignore[attr-defined]
            model.configure_gradient_clipping(made["optimizer"])
            made["optimizer"].step()
            made["optimizer"].zero_grad()
            made["lr_scheduler"]["scheduler"].step()


def test_the_test_can_fail() -> None:
    with without_values(), pytest.raises(DataDependentOutputException):
        float(torch.zeros(3).sum())


def test_checks_wait_for_a_device_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU, where nobody waits, at every step; else at every hundredth."""
    model = MODELS["learned"]()
    monkeypatch.setattr(FLDD, "device", torch.device("meta"))
    x, nan = torch.full((4, 8), 7), torch.tensor(float("nan"))
    for step in (1, 50, 99, 101):
        model.own_steps = step
        model.on_train_batch_start(x, step)
        model.on_train_batch_end(nan, x, step)
    model.own_steps = 100
    with pytest.raises(FLDDError, match="values from 7 to 7"):
        model.on_train_batch_start(x, 100)
    with pytest.raises(FLDDError, match="the loss is not finite at step 100"):
        model.on_train_batch_end(nan, x, 100)


def test_clip_and_ratio_are_what_they_were() -> None:
    """The same numbers as with the host's help: 20 gradients, one of them not finite."""
    clip, snr, p = AdaptiveClip("the denoiser"), GradientSNR(), nn.Parameter(torch.zeros(3))
    generator = torch.Generator().manual_seed(0)
    mean, square, norms, seen = torch.zeros(3), 0.0, None, 0
    for step in range(20):
        gradient = torch.randn(3, generator=generator) + 1 if step != 7 else torch.full((3,), float("inf"))
        p.grad = gradient.clone()
        snr.update([p])
        clip.clip([p])
        if step == 7:
            assert not p.grad.any()
            continue
        norm = float(gradient.norm())
        norms = norm if norms is None else 0.98 * norms + 0.02 * min(norm, 4 * norms)
        torch.testing.assert_close(p.grad, gradient * min(1.0, 2 * norms / norm), rtol=1e-4, atol=0)
        mean, square, seen = 0.98 * mean + 0.02 * gradient, 0.98 * square + 0.02 * norm**2, seen + 1
    torch.testing.assert_close(snr._mean, mean)
    assert float(snr._square) == pytest.approx(square, rel=1e-5)
    assert int(snr._seen) == seen == 19
