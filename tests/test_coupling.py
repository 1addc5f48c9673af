from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fldd_lightning.categorical import log_one_hot, one_hot
from fldd_lightning.coupling import MaximumCoupling


@st.composite
def marginals(draw: st.DrawFn, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    """Pairs of distributions over 2..1000 states, with zeros, equal pairs and one-hots among them."""
    size = draw(st.one_of(st.integers(2, 8), st.sampled_from([50, 257, 1000])))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def one() -> torch.Tensor:
        kind = draw(st.sampled_from(["dense", "peaked", "sparse", "one_hot"]))
        logits = torch.randn(size, generator=generator, dtype=torch.float64)
        if kind == "peaked":
            logits = logits * 30
        if kind == "sparse":
            drop = torch.rand(size, generator=generator) < 0.6
            drop[int(torch.randint(size, (), generator=generator))] = False
            logits = logits.masked_fill(drop, -math.inf)
        if kind == "one_hot":
            return log_one_hot(torch.randint(size, (), generator=generator), size, torch.float64)
        return logits.log_softmax(-1)

    u_s = one()
    relation = draw(st.sampled_from(["free", "equal", "close"]))
    if relation == "equal":
        return u_s.to(dtype), u_s.to(dtype)
    if relation == "close":
        return u_s.to(dtype), (u_s + 1e-9 * torch.randn(size, generator=generator)).log_softmax(-1).to(dtype)
    return u_s.to(dtype), one().to(dtype)


def matrix(log_u_s: torch.Tensor, log_u_t: torch.Tensor) -> torch.Tensor:
    """q(j|k) as rows k."""
    size = len(log_u_s)
    coupling = MaximumCoupling.of(log_u_s.expand(size, -1), log_u_t.expand(size, -1))
    return coupling.posterior(torch.arange(size))


@settings(max_examples=150, deadline=None)
@given(marginals())
def test_consistent_and_maximal(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    log_u_s, log_u_t = pair
    q = matrix(log_u_s, log_u_t)
    assert (q >= 0).all()
    torch.testing.assert_close(q.sum(-1), torch.ones(len(q), dtype=q.dtype))
    torch.testing.assert_close(log_u_t.exp() @ q, log_u_s.exp(), atol=1e-8, rtol=1e-8)
    kept = (log_u_t.exp() * q.diagonal()).sum()
    torch.testing.assert_close(kept, torch.minimum(log_u_s.exp(), log_u_t.exp()).sum(), atol=1e-7, rtol=0)


@settings(max_examples=60, deadline=None)
@given(marginals(torch.float32), st.sampled_from([torch.float32, torch.bfloat16]))
def test_low_precision_inputs(pair: tuple[torch.Tensor, torch.Tensor], dtype: torch.dtype) -> None:
    log_u_s, log_u_t = (u.to(dtype) for u in pair)
    q = matrix(log_u_s, log_u_t)
    assert q.dtype == torch.float32
    torch.testing.assert_close(q.sum(-1), torch.ones(len(q)), atol=1e-5, rtol=0)
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(log_u_t.float().exp() @ q, log_u_s.float().exp(), atol=tolerance, rtol=0)


@settings(max_examples=150, deadline=None)
@given(marginals(torch.float32))
def test_gradients_are_finite(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    leaves = [u.clone().requires_grad_() for u in pair]
    coupling = MaximumCoupling.of(*leaves)
    k = torch.tensor(len(leaves[0]) // 2)
    loss = coupling.posterior(k).square().sum() + coupling.entropy().sum()
    loss = loss + coupling.relaxed_posterior(torch.full_like(leaves[0], 1 / len(leaves[0]))).square().sum()
    for gradient in torch.autograd.grad(loss, leaves):
        assert gradient.isfinite().all()


@settings(max_examples=100, deadline=None)
@given(marginals())
def test_relaxed_equals_loop_over_states(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    log_u_s, log_u_t = pair
    w = torch.rand(len(log_u_s), dtype=torch.float64).softmax(-1)
    rows = matrix(log_u_s, log_u_t)
    coupling = MaximumCoupling.of(log_u_s, log_u_t)
    expected = sum(w[k] * rows[k] for k in range(len(w)))
    torch.testing.assert_close(coupling.relaxed_posterior(w), expected)
    hard = one_hot(torch.tensor(1), len(w), torch.float64)
    torch.testing.assert_close(coupling.relaxed_posterior(hard), rows[1])


@settings(max_examples=100, deadline=None)
@given(marginals())
def test_entropy_equals_enumeration(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    log_u_s, log_u_t = pair
    q = matrix(log_u_s, log_u_t)
    expected = -torch.xlogy(q, q).sum(-1)
    actual = MaximumCoupling.of(log_u_s, log_u_t).entropy()
    torch.testing.assert_close(actual, expected, atol=1e-7, rtol=1e-6)


def test_equal_marginals_stay() -> None:
    u = torch.randn(5).log_softmax(-1)
    assert torch.equal(matrix(u, u), torch.eye(5))


@pytest.mark.parametrize("log_gamma_s", [float("-inf"), -120.0])
def test_a_state_too_rare_for_its_mass_to_count_still_leaves(log_gamma_s: float) -> None:
    leaves = [torch.tensor([0.0, log_gamma_s]).requires_grad_(), torch.tensor([0.0, -100.0]).requires_grad_()]
    coupling = MaximumCoupling.of(*leaves)
    torch.testing.assert_close(coupling.posterior(torch.tensor(1)), torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(coupling.posterior(torch.tensor(0)), torch.tensor([1.0, 0.0]))
    loss = coupling.posterior(torch.tensor(1)).square().sum() + coupling.entropy().sum()
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(loss, leaves))


@pytest.mark.parametrize("state", [0, 2])
def test_one_hot_target_is_reached_exactly(state: int) -> None:
    q = matrix(log_one_hot(torch.tensor(state), 3), torch.randn(3).log_softmax(-1))
    torch.testing.assert_close(q, one_hot(torch.tensor([state] * 3), 3))
