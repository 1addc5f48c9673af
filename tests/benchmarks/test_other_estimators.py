"""Estimators of the benchmarks: those that are said to be unbiased have the enumerated gradient in the mean."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from other_estimators import DisARM, ExactEntropy, FirstOrder, IdealBaseline, NoBaseline, StraightThrough

from conftest import exact_step_kl, make
from fldd_lightning import GradientEstimator, Spec
from fldd_lightning.bound import step_terms

UNBIASED = {
    "no baseline": NoBaseline,
    "ideal baseline": IdealBaseline,
    "exact entropy": ExactEntropy,
    "leave one out": partial(FirstOrder, samples=3, alpha=0.0),
    "first order": partial(FirstOrder, samples=3, alpha=1.0),
    "disarm": DisARM,
}
# DisARM is for states of two values
CASES = [("learned_mask", each) for each in UNBIASED] + [
    ("residual_uniform", each) for each in UNBIASED if each != "disarm"
]


def gradients(name: str, made: GradientEstimator, repeats: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the forward process: the enumerated one, and estimates ``(repeats, parameters)`` of 400 draws each."""
    process, reverse = make(name, made.spec)
    x, t, parameters = torch.tensor([[0, 2]]), 2, list(process.parameters())
    exact = flat(exact_step_kl(process, reverse, x, t).sum(), parameters)
    estimates = []
    for seed in range(repeats + 1):
        step = process.step(x.expand(400, -1), torch.full((400,), t))
        generator = torch.Generator().manual_seed(seed)
        out = made.loss(step, partial(step_terms, step, reverse), generator, 0)
        estimates.append(flat(out.surrogate.mean(), parameters))
    return exact, torch.stack(estimates[1:])  # the first call may only set a running baseline


def flat(loss: torch.Tensor, parameters: list[torch.nn.Parameter]) -> torch.Tensor:
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in zip(found, parameters)]).double()


@pytest.mark.parametrize(("name", "estimator"), CASES)
def test_mean_gradient_equals_the_enumerated_one(name: str, estimator: str) -> None:
    exact, estimates = gradients(name, UNBIASED[estimator](Spec(3, (2,), 3)), 30)
    mean, error = estimates.mean(0), estimates.std(0) / len(estimates) ** 0.5
    assert exact.norm() > 1e-3
    assert ((mean - exact).abs() <= 5 * error + 1e-5).all()
    assert (mean - exact).norm() <= 0.15 * exact.norm() + 3 * error.norm()


def test_straight_through_is_biased() -> None:
    """So that the test above could fail."""
    exact, estimates = gradients("learned_mask", StraightThrough(Spec(3, (2,), 3)), 30)
    mean, error = estimates.mean(0), estimates.std(0) / len(estimates) ** 0.5
    assert ((mean - exact).abs() > 5 * error + 1e-5).any()
