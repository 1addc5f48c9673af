"""What tests of latents that are trained with the rest share: gradients against an exact bound, a short training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from conftest import small_mlp
from fldd_lightning import FLDD
from fldd_lightning.bound import Bound, num_uniforms
from fldd_lightning.forward import AbsorbingProcess
from some_latents import clustered
from tiny import trainer


def assert_gradients_of(
    bound: torch.Tensor,
    model: FLDD,
    x: torch.Tensor,
    parts: dict[str, list[torch.nn.Parameter]],
    most_error: float,
) -> None:
    """Training steps have on average the gradient of the mean of ``bound``, along it, in each part by itself.

    Args:
        bound: Mean over the examples of the exact bound, in nats, with gradients.
        model: Of two coordinates.
        x: The examples.
        parts: Parameters by name; parts without any are left out.
        most_error: How large the standard error may be, as a share of the gradient's length.
    """
    flat = [p for part in parts.values() for p in part]
    exact = torch.autograd.grad(bound / 2, flat)  # a loss is per coordinate
    many = x.repeat(200, 1)
    drawn = [torch.autograd.grad(model.training_step(many, i), flat) for i in range(31)]
    first = 0
    for name, part in parts.items():
        index = range(first, first + len(part))
        first += len(part)
        if not part:
            continue
        length = float(sum((exact[j] ** 2).sum() for j in index)) ** 0.5
        along = torch.stack([sum((g[j] * exact[j]).sum() for j in index) for g in drawn[1:]]) / length  # (30,)
        error = float(along.std()) / len(along) ** 0.5  # the first batch has no score yet
        assert float(along.mean()) == pytest.approx(length, abs=4 * error), name
        assert error < most_error * length, name


def trained_on_clusters(latents: Any, folder: Path) -> tuple[FLDD, Bound]:
    """A model after 300 steps on twelve coordinates in four clusters, and its bound.

    T = 2: a factorised step cannot draw the coordinates together.
    """
    x = clustered(3_000)
    torch.manual_seed(0)
    model = FLDD(4, (12,), AbsorbingProcess, small_mlp, latents=latents, num_steps=2, lr=5e-3)
    trainer(folder, max_steps=300, limit_val_batches=0).fit(model, DataLoader(x, 128, shuffle=True))  # type: ignore[arg-type]
    noise = torch.rand(len(x), 2, 12 + num_uniforms(model.latents), dtype=torch.float64)
    return model, model.nelbo_terms(x, noise)
