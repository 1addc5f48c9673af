"""Two states a coordinate or all of them: the same values and gradients, without tensors of K numbers."""

from __future__ import annotations

import math
from functools import partial
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from conftest import all_states, make
from fldd_lightning.estimators import RLOO, Concrete, Reinforce
from fldd_lightning.forward import AbsorbingProcess, LearnedMaskProcess, Transition
from fldd_lightning.networks import MLP, Backbone, Transformer
from fldd_lightning.objective import step_kl
from fldd_lightning.problem import Problem
from fldd_lightning.reverse import ReverseProcess
from fldd_lightning.states import SparseStates

MASKED = ["absorbing", "learned_mask"]
problems = st.builds(
    Problem,
    num_classes=st.integers(3, 6),
    shape=st.sampled_from([(1,), (4,), (2, 3)]),
    num_steps=st.integers(2, 5),
    padded=st.booleans(),
)


def both(name: str, problem: Problem, seed: int) -> tuple[ReverseProcess, Transition, Transition, list[Any]]:
    """Reverse process, sparse and dense transition of a random batch, and all parameters."""
    process, reverse = make(name, problem)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(problem.num_classes, (6, *problem.shape), generator=generator)
    t = torch.randint(1, problem.num_steps + 1, (6,), generator=generator)
    parameters = [*process.parameters(), *reverse.parameters()]
    return reverse, process.transition(x, t), process.dense_transition(x, t), parameters


def gradients(loss: torch.Tensor, parameters: list[Any]) -> torch.Tensor:
    found = torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True)
    return torch.cat([torch.zeros_like(p).flatten() if g is None else g.flatten() for g, p in zip(found, parameters)])


close = partial(torch.testing.assert_close, atol=2e-5, rtol=1e-4)


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(MASKED), problem=problems, seed=st.integers(0, 2**31))
def test_values_and_gradients_are_those_of_all_states(name: str, problem: Problem, seed: int) -> None:
    reverse, sparse, dense, parameters = both(name, problem, seed)
    z = sparse.draw(torch.Generator().manual_seed(seed))
    assert bool(((z == sparse.x) | (z == problem.num_classes)).all())
    measured = []
    for step in (sparse, dense):
        w = step.weights(z).unsqueeze(0).requires_grad_()
        kl = step.kl(reverse, w)[0]
        (slope,) = torch.autograd.grad(kl.sum(), w, retain_graph=True)
        if step is dense:  # only differences between the two states can matter
            places = torch.stack([dense.x, torch.full_like(dense.x, problem.num_classes)], -1)
            slope = slope.gather(-1, places.unsqueeze(0))
        difference = slope[..., 1] - slope[..., 0]
        difference = difference.masked_fill(step.x == problem.pad, 0.0) if problem.padded else difference
        log_q = step.log_prob(z)
        total = (kl + 0.3 * log_q).sum()
        found = gradients(total, parameters) if total.requires_grad else None
        measured.append((kl, log_q, difference, found))
    for one, other in zip(*measured, strict=True):
        close(one, other)
    assert sparse.mean_weights().shape == (*sparse.x.shape, 2)


@settings(max_examples=25, deadline=None)
@given(problem=problems, seed=st.integers(0, 2**31), estimator=st.sampled_from(["rloo", "reinforce"]))
def test_estimators_give_the_same_gradients(problem: Problem, seed: int, estimator: str) -> None:
    reverse, sparse, dense, parameters = both("learned_mask", problem, seed)
    generator = torch.Generator().manual_seed(seed)
    drawn = [sparse.draw(generator) for _ in range(3)]
    made: dict[str, Any] = {
        "rloo": lambda: RLOO(problem, samples=3),
        "reinforce": lambda: Reinforce(problem),
    }
    results = []
    for step in (sparse, dense):
        with patch.object(Transition, "draw", side_effect=drawn):
            out = made[estimator]().loss(step, reverse, generator, 0)
        assert out.kl is not None
        results.append((out.kl, gradients(out.surrogate.mean(), parameters)))
    for one, other in zip(*results, strict=True):
        close(one, other)


@pytest.mark.parametrize("name", MASKED)
def test_draws_follow_the_marginals(name: str) -> None:
    process, _ = make(name, Problem(5, (3,), 4, padded=True))
    n = 20_000
    x, t = torch.tensor([[1, 3, 4]]).expand(n, -1), torch.full((n,), 2)
    sparse, dense = process.transition(x, t), process.dense_transition(x, t)
    expected = dense.log_u_t[0, :, -1].exp()
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(n, 3, dtype=torch.float64, generator=generator)
    relaxed = sparse.draw_relaxed(generator, 1e-4)[..., 1]
    for masked in (sparse.draw(generator) == 5, sparse.draw_from_uniform(uniform) == 5, relaxed):
        assert (masked.double().mean(0) - expected).abs().max() < 0.015
    assert torch.equal(sparse.draw_from_uniform(uniform), dense.draw_from_uniform(uniform))


class LargeTensors(TorchDispatchMode):
    """Records the storages of all float tensors with at least ``size`` numbers that operations make."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.kept = size, []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(value, torch.Tensor) and value.is_floating_point():
                storage = value.untyped_storage()
                if storage.nbytes() >= 4 * self.size and all(storage.data_ptr() != s.data_ptr() for s in self.kept):
                    self.kept.append(storage)  # kept alive, so that no address comes twice
        return out


@pytest.mark.parametrize("estimator", [Reinforce, RLOO, partial(Concrete, start=0.5)])
@pytest.mark.parametrize("tied", [False, True])
def test_no_tensor_of_all_states_beside_the_logits_and_their_gradients(estimator: Any, tied: bool) -> None:
    problem = Problem(3000, (12,), 4)
    network = partial(Transformer, width=8, depth=1, heads=2)
    for process in (LearnedMaskProcess(problem, network), AbsorbingProcess(problem)):
        reverse = ReverseProcess(problem, process, partial(network, tied=tied))
        for p in [*process.parameters(), *reverse.parameters()]:
            torch.nn.init.normal_(p, std=0.1)
        made = estimator(problem)
        draws = getattr(made, "samples", 1)
        x, t = torch.randint(3000, (8, 12)), torch.randint(1, 5, (8,))
        with patch("fldd_lightning.softmax._CHUNK", 3001 * 4), LargeTensors(8 * 12 * 3000) as large:
            out = made.loss(process.transition(x, t), reverse, torch.Generator(), 0)
            (out.surrogate if out.auxiliary is None else out.surrogate + out.auxiliary).mean().backward()
            with torch.no_grad():
                step_kl(process.transition(x, t), reverse, x)
        sizes = sorted(storage.nbytes() // (4 * 3001 * 12 * 8) for storage in large.kept)
        assert sizes == [1] + [draws] * 2  # the evaluation's logits; training's, and their gradient


@pytest.mark.parametrize("network", [partial(MLP, width=16, depth=1), partial(Transformer, width=16, depth=2, heads=2)])
def test_networks_take_sparse_states(network: Any) -> None:
    made: Backbone = network(Problem(5, (4,), 3), 6, 7)
    for p in made.parameters():
        torch.nn.init.normal_(p, std=0.3)
    t = torch.tensor([1, 3])
    index = torch.randint(6, (2, 4, 2))
    weight = torch.rand(2, 4, 2).softmax(-1)
    for state in (SparseStates(index, weight, 6), SparseStates.hard(index[..., 0], 6)):
        assert made.takes_sparse
        torch.testing.assert_close(made(state, t), made(state.dense(), t), atol=1e-5, rtol=1e-4)
    compiled = torch.compile(made, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(state, t), made(state, t), atol=1e-4, rtol=1e-4)


def test_other_networks_get_weights() -> None:
    class Own(Backbone):
        def forward(self, state: torch.Tensor, t: torch.Tensor, condition: torch.Tensor | None = None) -> torch.Tensor:
            return 2 * state

    state = SparseStates.hard(torch.tensor([[0, 2]]), 3)
    assert torch.equal(Own()(state, torch.tensor([1])), 2 * torch.tensor([[[1.0, 0, 0], [0, 0, 1]]]))


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", [*MASKED, "staggered"])
def test_the_auxiliary_loss_is_its_definition_and_leaves_the_forward_process_alone(name: str, padded: bool) -> None:
    """-log p(x^i|z_t, revealed) of what is masked, up to masked diffusion's 1/t; from the dense network, at all z_t."""
    problem = Problem(4, (2,), 3, padded=padded)
    process, reverse = make(name, problem)
    x, mask = torch.tensor([[0, 3]]), problem.num_classes  # 3 is PAD, where there is such a thing
    states = all_states(process.num_states, 2)
    largest, sizes = [], []  # of the loss and of its gradient, by t
    for t in (1, 2, 3):
        batch, column = x.expand(len(states), -1), torch.full((len(states),), t)
        dense, sparse = process.dense_transition(batch, column), process.transition(batch, column)
        possible = (dense.log_u_t.gather(-1, states.unsqueeze(-1)) > -math.inf).flatten(1).all(1)
        q_reveal = 1 - dense.posterior.posterior(torch.full_like(states, mask))[..., mask]
        v = reverse.network_log_prob(SparseStates.hard(states, mask + 1), column).exp()
        log_p = (v.gather(-1, batch.unsqueeze(-1)).squeeze(-1) / (1 - v[..., mask])).log()
        counts = (states == mask) & ~(padded & (batch == 3))
        expected = torch.where(counts, (1 / t - q_reveal).clamp_min(0) * -log_p, 0.0).sum(1)
        auxiliary = sparse.terms(reverse, sparse.weights(states).unsqueeze(0)).auxiliary
        assert auxiliary is not None
        close(auxiliary[0][possible], expected[possible])
        largest.append(float(auxiliary[0][possible].max()))
        sizes.append(float(gradients(auxiliary.sum(), list(reverse.parameters())).abs().max()))
        if process.learned:
            moved = torch.autograd.grad(auxiliary.sum(), list(process.parameters()), allow_unused=True)
            assert all(g is None for g in moved)
    assert max(largest[0], sizes[0]) < 1e-6  # all is revealed
    is_zero = name == "absorbing"  # masked diffusion lacks nothing
    assert padded or (max(largest) < 1e-6) == (max(sizes) < 1e-6) == is_zero
