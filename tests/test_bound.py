"""The bound against exact likelihoods, for D = 2 and K = 3 with everything enumerated."""

from __future__ import annotations

from math import log
from typing import Any

import pytest
import torch

from conftest import (
    PAIRS,
    PROCESSES,
    all_states,
    exact_log_likelihood,
    exact_step_kl,
    make,
    prior_term,
    reconstruction_term,
)
from fldd_lightning.bound import states_drawn, step_terms, stratified_steps
from fldd_lightning.categorical import one_hot
from fldd_lightning.forward import MaskProcess
from fldd_lightning.forward.step import Timesteps
from fldd_lightning.spec import Spec


@pytest.mark.parametrize("num_steps", [2, 3])
@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_nelbo_bounds_the_exact_likelihood(name: str, kind: Any, num_steps: int) -> None:
    process, reverse = make(name, Spec(3, (2,), num_steps), kind)
    x = all_states(3, 2)
    nelbo = sum(exact_step_kl(process, reverse, x, t) for t in range(1, num_steps + 1))
    log_p = exact_log_likelihood(process, reverse, num_steps)
    states = all_states(process.num_states, 2)
    torch.testing.assert_close(log_p.exp().sum(), torch.tensor(1.0, dtype=torch.float64), atol=1e-5, rtol=0)
    is_data = (states < 3).all(1)
    assert (nelbo >= -log_p[is_data] - 1e-5).all()
    if process.has_mask:  # t = 1 never yields MASK
        assert log_p[~is_data].exp().sum() < 1e-12


def test_bound_is_tight_when_the_reverse_is_exact() -> None:
    """T = 1: p(x) is the factorised reverse from the prior itself, and the bound is an equality for MASK."""
    process, reverse = make("absorbing", Spec(3, (2,), 1))
    x = all_states(3, 2)
    log_p = exact_log_likelihood(process, reverse, 1)[(all_states(4, 2) < 3).all(1)]
    torch.testing.assert_close(exact_step_kl(process, reverse, x, 1), -log_p, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_step_terms_are_unbiased(name: str, kind: Any) -> None:
    process, reverse = make(name, Spec(3, (2,), 3), kind)
    x = torch.tensor([[0, 2]])
    n = 20_000
    for t in (1, 2, 3):
        step = process.step(x.expand(n, -1), torch.full((n,), t))
        z_t = states_drawn(step, torch.Generator().manual_seed(t))
        with torch.no_grad():
            values = step_terms(step, reverse, z_t.unsqueeze(0)).kl[0]
        exact = float(exact_step_kl(process, reverse, x, t))
        assert abs(float(values.mean()) - exact) < 4 * float(values.std()) / n**0.5 + 1e-4


def test_absorbing_bound_equals_the_closed_form_of_masked_diffusion() -> None:
    """sum_t 1/t-weighted cross-entropy of masked coordinates (Sahoo et al., 2024, eq. 8 with s = t-1).

    The denoiser is a table of x̂; the chance of staying masked is the process's own.
    """
    num_steps = 4
    process, reverse = make("absorbing", Spec(3, (2,), num_steps))
    x = all_states(3, 2)
    table = torch.randn(4, 2, 3).log_softmax(-1)  # x̂ depends on the number of masked coordinates only

    def logits(state: torch.Tensor, t: torch.Tensor, condition: object = ()) -> torch.Tensor:
        return table[(state == 3).sum(1)]

    reverse.logits = logits  # type: ignore[method-assign]
    actual = sum(exact_step_kl(process, reverse, x, t) for t in range(1, num_steps + 1))
    expected = torch.zeros(len(x), dtype=torch.float64)
    for t in range(1, num_steps + 1):
        gamma = t / num_steps
        for pattern in all_states(2, 2):  # 1 = masked
            p = (gamma**pattern * (1 - gamma) ** (1 - pattern)).prod()
            log_x = table[int(pattern.sum())].expand(len(x), -1, -1).gather(-1, x.unsqueeze(-1)).squeeze(-1)
            ce = -(pattern * log_x).sum(1)
            expected += p * ce / t
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", PROCESSES)
def test_an_untrained_reverse_starts_at_the_posterior_with_x_unknown(name: str) -> None:
    process, reverse = make(name, Spec(3, (2,), 3))
    for p in reverse.parameters():
        torch.nn.init.zeros_(p)
    z = torch.full((2, 2), process.num_states - 1)  # MASK, where there is one
    t = torch.tensor([2, 3])
    expected = process.posterior_logits(one_hot(z, process.num_states), t, t - 1).log_softmax(-1)
    if isinstance(process, MaskProcess):  # no floor needed
        stay = process.log_stay_odds()[t].sigmoid().unsqueeze(-1).expand(2, 2, 1)
        expected = torch.cat([((1 - stay) / 3).expand(2, 2, 3), stay], -1).log()
    torch.testing.assert_close(reverse.log_prob(z, t), expected)


@pytest.mark.parametrize("name", PROCESSES)
def test_prior_and_reconstruction_terms_vanish(name: str) -> None:
    process, _ = make(name, Spec(3, (2,), 3))
    x = all_states(3, 2)
    assert prior_term(process, x).abs().max() < 1e-6
    assert torch.equal(reconstruction_term(process, x), torch.zeros(len(x)))


def test_steps_spread_evenly() -> None:
    steps = Timesteps(4, 4)
    t = stratified_steps(40, steps, torch.Generator().manual_seed(0))
    assert torch.bincount(t, minlength=5).tolist() == [0, 10, 10, 10, 10]
    draws = torch.cat([stratified_steps(3, steps, torch.Generator().manual_seed(i)) for i in range(2000)])
    share = torch.bincount(draws, minlength=5)[1:] / len(draws)
    assert (share - 0.25).abs().max() < 0.02


def test_uniform_collapse_costs_the_entropy_of_uniform_data() -> None:
    """A reverse that knows nothing pays D log K nats at T = 1 under the uniform process."""
    process, reverse = make("uniform", Spec(3, (2,), 1))
    for p in reverse.parameters():
        torch.nn.init.zeros_(p)
    reverse._base = lambda state, t, s: torch.zeros_like(state)
    x = all_states(3, 2)
    kl = exact_step_kl(process, reverse, x, 1)
    torch.testing.assert_close(kl, torch.full((9,), 2 * log(3), dtype=torch.float64))
    assert one_hot(x, 3).sum() == 18
