"""The signal-to-noise ratio against its definition."""

from __future__ import annotations

import pytest
import torch

from fldd_lightning.callbacks.collapse import GradientSNR


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
