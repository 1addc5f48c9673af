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
from fldd_lightning.bound import repeated, states_drawn, step_terms
from fldd_lightning.estimators import RLOO, Reinforce
from fldd_lightning.forward import AbsorbingProcess, DenseStep, LearnedMaskProcess, MaskedStep, Step
from fldd_lightning.networks import Transformer
from fldd_lightning.reverse import MaskedReverse, Reverse
from fldd_lightning.spec import Spec

MASKED = ["absorbing", "staggered", "learned_mask"]
specs = st.builds(
    Spec,
    num_classes=st.integers(3, 6),
    shape=st.sampled_from([(1,), (4,), (2, 3)]),
    num_steps=st.integers(2, 5),
    padded=st.booleans(),
)


def both(name: str, spec: Spec, seed: int) -> tuple[Reverse, MaskedStep, DenseStep, list[Any]]:
    """Reverse process, masked and dense step of a random batch, and all parameters."""
    process, reverse = make(name, spec)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(spec.num_classes, (6, *spec.shape), generator=generator)
    t = torch.randint(1, spec.num_steps + 1, (6,), generator=generator)
    parameters = [*process.parameters(), *reverse.parameters()]
    masked = process.step(x, t)
    assert isinstance(masked, MaskedStep)
    return reverse, masked, process.dense_step(x, t), parameters


def noise(step: Step, generator: torch.Generator) -> torch.Tensor:
    return torch.rand(step.noise_shape, dtype=torch.float64, generator=generator)


def gradients(loss: torch.Tensor, parameters: list[Any]) -> torch.Tensor:
    found = torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True)
    return torch.cat([torch.zeros_like(p).flatten() if g is None else g.flatten() for g, p in zip(found, parameters)])


close = partial(torch.testing.assert_close, atol=2e-5, rtol=1e-4)


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(MASKED), spec=specs, seed=st.integers(0, 2**31))
def test_values_and_gradients_are_those_of_all_states(name: str, spec: Spec, seed: int) -> None:
    """So the posterior of a masked step is the maximum coupling (eq. 10, 11) of its marginals."""
    reverse, masked, dense, parameters = both(name, spec, seed)
    z = states_drawn(masked, torch.Generator().manual_seed(seed))
    assert bool(((z == masked.x) | (z == spec.num_classes)).all())
    measured = []
    for step in (masked, dense):
        kl = step_terms(step, reverse, z.unsqueeze(0)).kl[0]
        log_q = step.log_prob(z)
        total = (kl + 0.3 * log_q).sum()
        found = gradients(total, parameters) if total.requires_grad else None
        measured.append((kl, log_q, found))
    for one, other in zip(*measured, strict=True):
        close(one, other)


@settings(max_examples=40, deadline=None)
@given(name=st.sampled_from(MASKED), spec=specs, seed=st.integers(0, 2**31), temperature=st.sampled_from([0.3, 1.0]))
def test_the_relaxed_objective_is_that_of_all_states(name: str, spec: Spec, seed: int, temperature: float) -> None:
    """w_MASK times the KL at MASK, eq. 14 for a posterior that carries x over; and it is linear in w_MASK."""
    reverse, masked, dense, _ = both(name, spec, seed)
    w = masked.draw_relaxed(noise(masked, torch.Generator().manual_seed(seed)), temperature).detach()
    assert w.shape == (*masked.x.shape, spec.num_classes + 1)
    close(w.sum(-1), torch.ones(masked.x.shape))
    with torch.no_grad():
        kl = step_terms(masked, reverse, w.unsqueeze(0)).kl[0]
        log_v = reverse.log_prob(w, masked.t)  # of a masked coordinate
        at_mask = torch.full_like(masked.x, spec.num_classes)
        q = dense.posterior.posterior(at_mask)
        each = torch.where(q > 0, q * (q.log() - log_v), 0.0).sum(-1)
        expected = (w[..., -1] * each).masked_fill(masked.x == spec.pad if spec.padded else torch.tensor(False), 0.0)
    close(kl, expected.flatten(1).sum(1))


@settings(max_examples=25, deadline=None)
@given(spec=specs, seed=st.integers(0, 2**31), estimator=st.sampled_from(["rloo", "reinforce"]))
def test_estimators_give_the_same_gradients(spec: Spec, seed: int, estimator: str) -> None:
    reverse, masked, dense, parameters = both("learned_mask", spec, seed)
    generator = torch.Generator().manual_seed(seed)
    drawn = [states_drawn(masked, generator) for _ in range(3)]
    made: dict[str, Any] = {"rloo": lambda: RLOO(spec, samples=3), "reinforce": lambda: Reinforce(spec)}
    results = []
    for step in (masked, dense):
        with patch.object(type(step), "draw_from_uniform", side_effect=drawn):
            out = made[estimator]().loss(step, partial(step_terms, step, reverse), generator, 0)
        assert out.kl is not None
        results.append((out.kl, gradients(out.surrogate.mean(), parameters)))
    for one, other in zip(*results, strict=True):
        close(one, other)


@pytest.mark.parametrize("name", MASKED)
def test_draws_follow_the_marginals(name: str) -> None:
    process, _ = make(name, Spec(5, (3,), 4, padded=True))
    n = 20_000
    x, t = torch.tensor([[1, 3, 4]]).expand(n, -1), torch.full((n,), 2)
    masked, dense = process.step(x, t), process.dense_step(x, t)
    expected = dense.log_u_t[0, :, -1].exp()
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(n, 3, dtype=torch.float64, generator=generator)
    relaxed = masked.draw_relaxed(noise(masked, generator), 1e-4)[..., -1]
    for is_masked in (states_drawn(masked, generator) == 5, masked.draw_from_uniform(uniform) == 5, relaxed):
        assert (is_masked.double().mean(0) - expected).abs().max() < 0.015
    assert torch.equal(masked.draw_from_uniform(uniform), dense.draw_from_uniform(uniform))


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


@pytest.mark.parametrize("estimator", [Reinforce, RLOO])
@pytest.mark.parametrize("tied", [False, True])
def test_no_tensor_of_all_states_beside_the_logits_and_their_gradients(estimator: Any, tied: bool) -> None:
    spec = Spec(3000, (12,), 4)
    network = partial(Transformer, width=8, depth=1, heads=2)
    for process in (LearnedMaskProcess(spec, network), AbsorbingProcess(spec)):
        is_tied = tied and process.learned  # a fixed process has fewer logits than states
        reverse = MaskedReverse(spec, process, partial(network, tied=is_tied))
        for p in [*process.parameters(), *reverse.parameters()]:
            torch.nn.init.normal_(p, std=0.1)
        made = estimator(spec)
        draws = getattr(made, "samples", 1)
        x, t = torch.randint(3000, (8, 12)), torch.randint(1, 5, (8,))
        with patch("fldd_lightning.reverse._CHUNK", 3001 * 4), LargeTensors(8 * 12 * 3000) as large:
            step = process.step(x, t)
            out = made.loss(step, partial(step_terms, step, reverse), torch.Generator(), 0)
            (out.surrogate if out.auxiliary is None else out.surrogate + out.auxiliary).mean().backward()
            with torch.no_grad():
                step_terms(process.step(x, t), reverse, x.unsqueeze(0))
        sizes = sorted(storage.nbytes() // (4 * 3000 * 12 * 8) for storage in large.kept)
        assert sizes == [1] + [draws] * 2  # the evaluation's logits; training's, and their gradient


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", MASKED)
def test_the_auxiliary_loss_is_its_definition_and_leaves_the_forward_process_alone(name: str, padded: bool) -> None:
    """-log p(x^i|z_t, revealed) of what is masked, up to masked diffusion's 1/t; from the dense network, at all z_t."""
    spec = Spec(4, (2,), 3, padded=padded)
    process, reverse = make(name, spec)
    assert isinstance(reverse, MaskedReverse)
    x, mask = torch.tensor([[0, 3]]), spec.num_classes  # 3 is PAD, where there is such a thing
    states = all_states(process.num_states, 2)
    largest, sizes = [], []  # of the loss and of its gradient, by t
    for t in (1, 2, 3):
        batch, column = x.expand(len(states), -1), torch.full((len(states),), t)
        dense, masked = process.dense_step(batch, column), process.step(batch, column)
        possible = (dense.log_u_t.gather(-1, states.unsqueeze(-1)) > -math.inf).flatten(1).all(1)
        q_reveal = 1 - dense.posterior.posterior(torch.full_like(states, mask))[..., mask]
        log_p, _ = reverse.log_prob_at(batch, states, column)
        counts = (states == mask) & ~(padded & (batch == 3))
        expected = torch.where(counts, (1 / t - q_reveal).clamp_min(0) * -log_p, 0.0).sum(1)
        auxiliary = step_terms(masked, reverse, states.unsqueeze(0)).auxiliary
        assert auxiliary is not None
        close(auxiliary[0][possible], expected[possible])
        largest.append(float(auxiliary[0][possible].detach().max()))
        sizes.append(float(gradients(auxiliary.sum(), list(reverse.parameters())).abs().max()))
        if process.learned:
            moved = torch.autograd.grad(auxiliary.sum(), list(process.parameters()), allow_unused=True)
            assert all(g is None for g in moved)
    assert max(largest[0], sizes[0]) < 1e-6  # all is revealed
    is_zero = name == "absorbing"  # masked diffusion lacks nothing
    assert padded or (max(largest) < 1e-6) == (max(sizes) < 1e-6) == is_zero


def test_steps_repeat_their_examples_draw_after_draw() -> None:
    process, _ = make("absorbing", Spec(3, (2,), 3))
    step: Step = process.step(torch.zeros(2, 2, dtype=torch.long), torch.tensor([1, 3]), (torch.tensor([[5], [6]]),))
    t, condition = repeated(step, 3)
    assert t.tolist() == [1, 3, 1, 3, 1, 3]
    assert condition[0].flatten().tolist() == [5, 6, 5, 6, 5, 6]
