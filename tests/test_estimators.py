"""Estimated gradients against the enumerated ones, for both parameter sets."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch

from conftest import LEARNED, exact_step_kl, make
from fldd_lightning.bound import StepTerms, states_drawn, step_terms
from fldd_lightning.errors import FLDDError
from fldd_lightning.estimators import RLOO, Concrete, GradientEstimator, Reinforce, WarmUp
from fldd_lightning.spec import Spec

UNBIASED = {
    "reinforce": Reinforce,
    "rloo": partial(RLOO, samples=3),
    "rloo2": RLOO,
}


def flat(gradients: tuple[torch.Tensor | None, ...], parameters: list[torch.nn.Parameter]) -> torch.Tensor:
    parts = [torch.zeros_like(p) if g is None else g for g, p in zip(gradients, parameters)]
    return torch.cat([p.flatten().double() for p in parts])


@pytest.mark.parametrize("estimator", UNBIASED)
@pytest.mark.parametrize("name", LEARNED)
def test_mean_gradient_equals_the_enumerated_one(name: str, estimator: str) -> None:
    spec = Spec(3, (2,), 3)
    process, reverse = make(name, spec)
    x, t = torch.tensor([[0, 2]]), 2
    sets = {"phi": list(process.parameters()), "theta": list(reverse.parameters())}
    exact_loss = exact_step_kl(process, reverse, x, t).sum()
    exact = {
        key: flat(torch.autograd.grad(exact_loss, ps, retain_graph=True, allow_unused=True), ps)
        for key, ps in sets.items()
    }
    assert exact["phi"].norm() > 1e-3
    made: GradientEstimator = UNBIASED[estimator](spec)
    chunks, size = 30, 2_000  # so many that rare states are among them
    estimates: dict[str, list[torch.Tensor]] = {"phi": [], "theta": []}
    for i in range(chunks + 1):
        step = process.step(x.expand(size, -1), torch.full((size,), t))
        out = made.loss(step, partial(step_terms, step, reverse), torch.Generator().manual_seed(i), 0)
        if i == 0:
            continue  # the first call only sets the running baseline of Reinforce
        for key, ps in sets.items():
            gradient = torch.autograd.grad(out.surrogate.mean(), ps, retain_graph=True, allow_unused=True)
            estimates[key].append(flat(gradient, ps))
    for key, values in estimates.items():
        stacked = torch.stack(values)
        mean, error = stacked.mean(0), stacked.std(0) / chunks**0.5
        # Stated tolerance: 5 standard errors per parameter, and 15 % of the norm over all.
        assert ((mean - exact[key]).abs() <= 5 * error + 1e-5).all(), key
        assert (mean - exact[key]).norm() <= 0.15 * exact[key].norm() + 3 * error.norm(), key


def test_with_one_example_the_past_is_the_better_baseline() -> None:
    spec = Spec(3, (2,), 3)
    process, reverse = make("residual_uniform", spec)
    made = RLOO(spec)
    x, t = torch.tensor([[0, 2]]), torch.tensor([2])
    assert made.rho(t).item() == 1.0
    for i in range(200):
        step = process.step(x.expand(50, -1), t.expand(50))
        made.loss(step, partial(step_terms, step, reverse), torch.Generator().manual_seed(1000 + i), 0)
    assert made.rho(t).item() < 0.3  # the mean of the past says all that another sample could
    assert made.rho(torch.tensor([1])).item() == 1.0  # not seen


@pytest.mark.parametrize("estimator", UNBIASED)
@pytest.mark.parametrize("name", LEARNED)
def test_no_noise_where_the_reverse_process_is_the_posterior(name: str, estimator: str) -> None:
    spec = Spec(3, (2,), 3)
    process, reverse = make(name, spec)
    step = process.step(torch.tensor([[0, 2], [1, 1]]), torch.tensor([2, 1]))

    class Exact(type(reverse)):  # type: ignore[misc]
        """Says the posterior itself, whatever the network says."""

        def log_prob(self, state: torch.Tensor, t: torch.Tensor, condition: object = ()) -> torch.Tensor:
            return torch.stack([step.posterior.posterior(z) for z in state.unflatten(0, (-1, 2))]).detach().log()

        def log_prob_at(self, x: torch.Tensor, state: torch.Tensor, t: torch.Tensor, condition: object = ()) -> object:
            odds = step.log_odds.detach().repeat(len(x) // 2, 1)
            return torch.zeros_like(odds), odds

    reverse.__class__ = Exact
    made: GradientEstimator = UNBIASED[estimator](spec)
    parameters = list(process.parameters())
    for seed in range(3):
        out = made.loss(step, partial(step_terms, step, reverse), torch.Generator().manual_seed(seed), 0)
        assert out.kl is not None
        assert out.kl.abs().max() < 1e-5
        gradient = torch.autograd.grad(out.surrogate.sum(), parameters, retain_graph=True, allow_unused=True)
        assert flat(gradient, parameters).abs().max() < 1e-3


@pytest.mark.parametrize("name", ["staggered", "learned_mask"])
@pytest.mark.parametrize("estimator", UNBIASED)
def test_the_auxiliary_loss_is_handed_on(name: str, estimator: str) -> None:
    spec = Spec(3, (12,), 6)
    process, reverse = make(name, spec)
    made: GradientEstimator = UNBIASED[estimator](spec)
    step = process.step(torch.randint(3, (8, 12)), torch.randint(2, 6, (8,)))
    out = made.loss(step, partial(step_terms, step, reverse), torch.Generator().manual_seed(1), 0)
    generator = torch.Generator().manual_seed(1)
    draws = [states_drawn(step, generator) for _ in range(getattr(made, "samples", 1))]
    each = [step_terms(step, reverse, z.unsqueeze(0)).auxiliary for z in draws]
    assert out.auxiliary is not None
    stacked = torch.stack([a[0] for a in each if a is not None])
    assert len(draws) == 1 or stacked.std(0).max() > 1e-3  # draws differ, and their mean from each of them
    torch.testing.assert_close(out.auxiliary, stacked.mean(0))
    relaxed = Concrete(spec).loss(step, partial(step_terms, step, reverse), generator, 0)
    assert (relaxed.auxiliary is None) == process.learned  # nothing to relax in a fixed one


@pytest.mark.parametrize("estimator", [Reinforce, RLOO])
def test_running_numbers_are_of_a_step_alone_and_survive_an_infinite_value(estimator: type[GradientEstimator]) -> None:
    spec = Spec(3, (2,), 3)
    process, _ = make("residual_uniform", spec)
    made = estimator(spec)
    samples = getattr(made, "samples", 1)
    t = torch.tensor([1, 2, 3]).repeat(40)
    generator = torch.Generator().manual_seed(0)
    for i in range(12):
        step = process.step(torch.zeros(120, 2, dtype=torch.long), t)
        kl = 10.0 * t + torch.randn(samples, 120, generator=generator)  # steps differ by far, samples of one do not
        if i == 6:
            kl[0, 0] = float("inf")
        made.loss(step, lambda z_t, kl=kl: StepTerms(kl), generator, 0)
    torch.testing.assert_close(made.mean[1:], torch.tensor([10.0, 20.0, 30.0]), atol=0.3, rtol=0)
    if isinstance(made, RLOO):
        assert made.rho(torch.tensor([1, 2, 3])).max() < 0.6


def test_fitted_baseline_follows_the_spread_between_examples() -> None:
    # Costs differ by example far more than by sample: the other sample is the better baseline.
    spec = Spec(3, (2,), 3)
    process, reverse = make("residual_uniform", spec)
    x = torch.randint(3, (64, 2))
    t = torch.full((64,), 2)
    made = RLOO(spec, 2)
    for i in range(100):
        with torch.no_grad():
            log_u = process.step(x, t).log_u_t
        nearly_fixed = (20 * log_u).log_softmax(-1).requires_grad_()  # z_t almost certain given x
        step = replace(process.step(x, t), log_u_t=nearly_fixed)
        made.loss(step, partial(step_terms, step, reverse), torch.Generator().manual_seed(i), 0)
    assert made.rho(t[:1]).item() > 0.8


@pytest.mark.parametrize("estimator", [*UNBIASED, "concrete"])
@pytest.mark.parametrize("name", LEARNED)
def test_a_settled_schedule_has_finite_values_and_gradients(name: str, estimator: str) -> None:
    """Whatever the forward process has settled on: no NaN, which would silently end the training."""
    spec = Spec(3, (4,), 4)
    process, reverse = make(name, spec)
    made: GradientEstimator = {**UNBIASED, "concrete": partial(Concrete, start=0.5)}[estimator](spec)
    t = torch.arange(1, 5).repeat_interleave(8)
    x = torch.randint(3, (32, 4))
    last = process.network.mix_out
    for scale in (10.0, 60.0, 400.0):
        with torch.no_grad():
            last.weight.normal_(std=scale)
            last.bias.normal_(std=scale)
        step = process.step(x, t)
        out = made.loss(step, partial(step_terms, step, reverse), torch.Generator().manual_seed(0), 0)
        assert out.kl is None or out.kl.isfinite().all()
        both = [last.weight, last.bias, *reverse.parameters()]
        for gradient in torch.autograd.grad(out.surrogate.sum(), both, retain_graph=True, allow_unused=True):
            assert gradient is None or gradient.isfinite().all()
        z_t = states_drawn(step, torch.Generator().manual_seed(1)).unsqueeze(0)
        assert step_terms(step, reverse, z_t).kl.isfinite().all()


@pytest.mark.parametrize("estimator", UNBIASED)
def test_reported_kl_is_unbiased(estimator: str) -> None:
    spec = Spec(3, (2,), 2)
    process, reverse = make("residual_absorbing", spec)
    x = torch.tensor([[1, 2]])
    n = 8000
    step = process.step(x.expand(n, -1), torch.full((n,), 1))
    kl = (
        UNBIASED[estimator](spec).loss(step, partial(step_terms, step, reverse), torch.Generator().manual_seed(0), 0).kl
    )
    assert kl is not None
    exact = float(exact_step_kl(process, reverse, x, 1))
    assert abs(float(kl.mean()) - exact) < 5 * float(kl.std()) / n**0.5


def test_concrete_approaches_the_exact_gradient_of_theta_at_low_temperature() -> None:
    spec = Spec(3, (2,), 3)
    process, reverse = make("residual_uniform", spec)
    ps = list(reverse.parameters())
    x = torch.tensor([[0, 2]])
    exact_loss = exact_step_kl(process, reverse, x, 2).sum()
    exact = flat(torch.autograd.grad(exact_loss, ps, allow_unused=True), ps)
    errors = []
    for temperature in (1.0, 0.01):
        step = process.step(x.expand(8000, -1), torch.full((8000,), 2))
        made = Concrete(spec, start=temperature, end=temperature)
        out = made.loss(step, partial(step_terms, step, reverse), torch.Generator().manual_seed(0), 0)
        assert out.kl is None  # no bound, never reported
        gradient = flat(torch.autograd.grad(out.surrogate.mean(), ps, allow_unused=True), ps)
        errors.append(float((gradient - exact).norm() / exact.norm()))
    assert errors[1] < 0.1 < errors[0]


def test_temperature_falls_exponentially() -> None:
    made = Concrete(Spec(3, (2,), 2), start=1.0, end=0.01, decay_steps=100)
    assert [round(made.temperature(i), 6) for i in (0, 50, 100, 1000)] == [1.0, 0.1, 0.01, 0.01]


def test_warm_up_switches() -> None:
    spec = Spec(3, (2,), 2)
    process, reverse = make("residual_uniform", spec)
    made = WarmUp(spec, Concrete, RLOO, steps=10)
    step = process.step(torch.tensor([[0, 1]]), torch.tensor([1]))
    assert made.loss(step, partial(step_terms, step, reverse), torch.Generator(), 9).kl is None
    assert made.loss(step, partial(step_terms, step, reverse), torch.Generator(), 10).kl is not None


def test_bad_options_are_refused() -> None:
    with pytest.raises(FLDDError, match="at least 2"):
        RLOO(Spec(3, (2,), 2), samples=1)
    with pytest.raises(FLDDError, match="end of Concrete"):
        Concrete(Spec(3, (2,), 2), end=0.0)
