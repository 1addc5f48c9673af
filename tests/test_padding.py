"""PAD: given to both processes, free of cost, reached by no other coordinate; every process, all enumerated."""

from __future__ import annotations

from functools import partial
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from conftest import (
    LEARNED,
    PAIRS,
    PROCESSES,
    all_states,
    exact_step_kl,
    make,
    prior_term,
    randomise,
    reconstruction_term,
)
from fldd_lightning import FLDDError
from fldd_lightning.bound import states_drawn, step_terms
from fldd_lightning.categorical import without_state
from fldd_lightning.estimators import RLOO, Concrete, GradientEstimator, Reinforce
from fldd_lightning.sampling import ancestral_sample
from fldd_lightning.spec import Spec

every_process = pytest.mark.parametrize("name", PROCESSES)
every_pair = pytest.mark.parametrize(("name", "kind"), PAIRS)
PAD = 2
SPEC = Spec(3, (2,), 3, padded=True)


def test_problem() -> None:
    assert (SPEC.pad, Spec(3, (2,), 3).pad) == (PAD, None)
    with pytest.raises(FLDDError, match="2 others"):
        Spec(2, (2,), 3, padded=True)


def test_without_state() -> None:
    p = without_state(torch.tensor([[0.2, 0.3, 0.5], [0.0, 1.0, 0.0]]).log(), 1).exp()
    torch.testing.assert_close(p, torch.tensor([[0.2 / 0.7, 0, 0.5 / 0.7], [0.5, 0, 0.5]]))


@every_pair
def test_padding_stays_and_nothing_else_becomes_it(name: str, kind: Any) -> None:
    process, reverse = make(name, SPEC, kind)
    x = all_states(3, 2)
    u = process.log_marginals(x, torch.arange(4).expand(len(x), -1)).exp()  # (N, T + 1, 2, S)
    is_pad = (x == PAD).unsqueeze(1).expand(u.shape[:-1])
    assert torch.equal(u[..., PAD], is_pad.float())
    torch.testing.assert_close(u.sum(-1), torch.ones(u.shape[:-1]))
    z = all_states(process.num_states, 2)
    for t in (1, 2, 3):
        v = reverse.log_prob(z, torch.full((len(z),), t)).exp()
        assert torch.equal(v[..., PAD], (z == PAD).float())


@every_process
def test_without_padding_it_is_the_problem_with_a_class_less(name: str) -> None:
    padded, _ = make(name, SPEC)
    plain, _ = make(name, Spec(2, (2,), 3))
    if padded.learned:  # as built: at its base; a floor in the base is shared with PAD, then taken from it
        padded, plain = PROCESSES[name](SPEC), PROCESSES[name](Spec(2, (2,), 3))
    x, t = all_states(2, 2), torch.arange(4).expand(4, -1)
    u = padded.log_marginals(x, t).exp()
    live = [i for i in range(padded.num_states) if i != PAD]
    torch.testing.assert_close(u[..., live], plain.log_marginals(x, t).exp(), atol=1e-3, rtol=0)


@every_pair
def test_bound_given_the_padding(name: str, kind: Any) -> None:
    """p(x | padding) sums to one over the texts of each padding, and the bound lies above -log p."""
    process, reverse = make(name, SPEC, kind)
    states = all_states(process.num_states, 2)
    for where in ([False, False], [False, True], [True, True]):
        padding = torch.tensor(where)
        fits = ((states == PAD) == padding).all(1)
        z = states[fits]
        start = process.log_prior().double().exp()
        p = torch.where(padding, 1.0, start[z]).prod(1)
        for t in range(3, 0, -1):
            log_v = reverse.log_prob(z, torch.full((len(z),), t)).double()
            kernel = torch.stack([log_v.gather(-1, s.expand(len(z), 2)[..., None])[..., 0].sum(1) for s in z], 1)
            p = p @ kernel.exp()
        is_data = (z < 3).all(1)
        torch.testing.assert_close(p[is_data].sum(), torch.tensor(1.0, dtype=torch.float64), atol=1e-5, rtol=0)
        x = z[is_data]
        nelbo = sum(exact_step_kl(process, reverse, x, t) for t in (1, 2, 3))
        assert (nelbo >= -p[is_data].log() - 1e-5).all()
        if all(where):
            assert nelbo.abs().max() < 1e-6
        assert prior_term(process, x).abs().max() < 1e-6
        assert reconstruction_term(process, x).abs().max() == 0


@every_pair
def test_step_kl_is_unbiased_and_gradients_are_finite(name: str, kind: Any) -> None:
    process, reverse = make(name, SPEC, kind)
    x = torch.tensor([[1, PAD]])
    n = 4_000
    for t in (1, 2, 3):
        step = process.step(x.expand(n, -1), torch.full((n,), t))
        z_t = states_drawn(step, torch.Generator().manual_seed(t))
        assert bool((z_t[:, 1] == PAD).all())
        values = step_terms(step, reverse, z_t.unsqueeze(0)).kl[0]
        exact = float(exact_step_kl(process, reverse, x, t).detach())
        assert abs(float(values.detach().mean()) - exact) < 4 * float(values.detach().std()) / n**0.5 + 1e-4
        for make_estimator in (RLOO, Reinforce, Concrete):
            step = process.step(x.expand(8, -1), torch.full((8,), t))
            out = make_estimator(SPEC).loss(
                step, partial(step_terms, step, reverse), torch.Generator().manual_seed(0), 0
            )
            gradients = torch.autograd.grad(
                out.surrogate.sum(), [*process.parameters(), *reverse.parameters()], allow_unused=True
            )
            assert all(g is None or bool(g.isfinite().all()) for g in gradients)


@pytest.mark.parametrize("make_estimator", [RLOO, Reinforce])
@pytest.mark.parametrize("name", LEARNED)
def test_gradient_is_unbiased_with_padding(name: str, make_estimator: type[GradientEstimator]) -> None:
    process, reverse = make(name, SPEC)
    x, t = torch.tensor([[0, PAD]]), 2
    exact = torch.autograd.grad(
        exact_step_kl(process, reverse, x, t).sum(), list(process.parameters()), allow_unused=True
    )
    estimator = make_estimator(SPEC)
    n, rounds = 2_000, 40
    means = []
    for seed in range(rounds + 1):
        step = process.step(x.expand(n, -1), torch.full((n,), t))
        out = estimator.loss(step, partial(step_terms, step, reverse), torch.Generator().manual_seed(seed), 0)
        gradient = torch.autograd.grad(out.surrogate.mean(), list(process.parameters()), allow_unused=True)
        means.append(torch.cat([g.flatten() for g in gradient if g is not None]))
    drawn = torch.stack(means[1:])  # the first call sets the running mean
    target = torch.cat([g.flatten() for g in exact if g is not None])
    error = (drawn.mean(0) - target).norm()
    noise = (drawn.var(0).sum() / rounds).sqrt()
    assert error < 3 * noise + 1e-5
    assert target.norm() > 5 * noise  # the comparison says something


@every_process
def test_samples_are_padded_where_asked(name: str) -> None:
    process, reverse = make(name, SPEC)
    randomise(reverse, 0.2)
    padding = torch.tensor([[False, True], [False, False], [True, True]]).repeat(50, 1)
    generator = torch.Generator().manual_seed(0)
    states = ancestral_sample(process, reverse, 150, generator, padding=padding, trajectory=True)
    assert torch.equal(states == PAD, padding.expand(4, -1, -1))
    assert set(states[-1].unique().tolist()) == {0, 1, PAD}
    with pytest.raises(FLDDError, match="where the padding is"):
        ancestral_sample(process, reverse, 3, generator)
    plain, plain_reverse = make(name, Spec(3, (2,), 3))
    with pytest.raises(FLDDError, match="where the padding is"):
        ancestral_sample(plain, plain_reverse, 3, generator, padding=padding[:3])


@every_process
def test_what_the_network_says_at_padding_costs_nothing(name: str) -> None:
    process, reverse = make(name, SPEC)
    x = torch.tensor([[1, PAD]]).expand(6, -1)
    step = process.step(x, torch.tensor([1, 2, 3, 1, 2, 3]))
    z_t = states_drawn(step, torch.Generator().manual_seed(0)).unsqueeze(0)
    num_outputs = reverse.network.mix_out.out_features // 2
    logits = torch.randn(6, 2, num_outputs)
    other = torch.cat([logits[:, :1], torch.randn(6, 1, num_outputs)], 1)
    costs = []
    for said in (logits, other):
        reverse.network.forward = Mock(return_value=said)  # type: ignore[method-assign]
        costs.append(step_terms(step, reverse, z_t).kl)
    assert torch.equal(*costs)
    assert costs[0].abs().max() > 0
