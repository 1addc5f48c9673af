"""Coordinates with fewer values than K: none is ever at a value it does not have, and the bound stays exact."""

from __future__ import annotations

from functools import partial
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
    randomise,
    reconstruction_term,
    small_mlp,
)
from fldd_lightning import (
    FLDD,
    AutoencoderLatent,
    ChainLatent,
    ConfidentFirst,
    EitherLatent,
    ExactlyN,
    FLDDError,
    GreedyEnd,
    MixtureLatent,
    MLPAutoencoder,
    Spec,
    TrainedChainLatent,
    TrainedMixtureLatent,
)
from fldd_lightning.bound import step_terms
from fldd_lightning.estimators import RLOO, Concrete
from fldd_lightning.forward import AbsorbingProcess, LearnedMaskProcess, MaskProcess, UniformProcess
from fldd_lightning.latents.tables import marginals_of
from fldd_lightning.reverse import MaskedReverse, PredictingReverse

VALUES = (2, 3, 1)
SPEC = Spec(3, (3,), 3, num_values=VALUES)
X = torch.tensor([[a, b, 0] for a in range(2) for b in range(3)])  # all there are
LATENTS: dict[str, Any] = {
    "mixture": partial(MixtureLatent, size=2),
    "chain": partial(ChainLatent, size=2),
    "trained": partial(TrainedMixtureLatent, size=2),
    "trained chain": partial(TrainedChainLatent, size=2),
    "either": partial(
        EitherLatent, latents=[partial(each, size=2) for each in (TrainedMixtureLatent, TrainedChainLatent)]
    ),
    "autoencoder": partial(
        AutoencoderLatent, size=2, autoencoder=partial(MLPAutoencoder, width=8), components=2, couplings=2, fit_steps=0
    ),
}


def is_possible(states: torch.Tensor, mask: int | None = None) -> torch.Tensor:
    """Which joint states ``(N, D)`` there may be, MASK among them if it is given."""
    allowed = states < torch.tensor(VALUES)
    return (allowed if mask is None else allowed | (states == mask)).all(1)


@torch.no_grad()
@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_all_probability_is_at_values_that_there_are(name: str, kind: Any) -> None:
    process, reverse = make(name, SPEC, kind)
    states = all_states(process.num_states, 3)
    p = exact_log_likelihood(process, reverse, SPEC.num_steps).exp()
    possible = is_possible(states)
    assert float(p[~possible].sum()) == 0.0
    assert float(p[possible].sum()) == pytest.approx(1.0, abs=1e-5)
    assert (p[possible] > 0).sum() == len(X)


@torch.no_grad()
@pytest.mark.parametrize("name", PROCESSES)
def test_noise_is_at_values_that_there_are(name: str) -> None:
    process, _ = make(name, SPEC)
    t = torch.arange(SPEC.num_steps + 1).expand(len(X), -1)
    u = process.log_marginals(X, t).exp()  # (B, T + 1, D, S)
    for d, number in enumerate(VALUES):
        assert float(u[:, :, d, number:3].abs().sum()) == 0.0
        assert float(u[:, -1, d, number - 1].sum()) > 0 or process.has_mask
    torch.testing.assert_close(u.sum(-1), torch.ones(u.shape[:-1]))
    assert float(prior_term(process, X).abs().max()) < 1e-6
    assert float(reconstruction_term(process, X).abs().max()) < 1e-6


@torch.no_grad()
@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_bound_is_exact_and_a_bound(name: str, kind: Any) -> None:
    """The step's terms in the mean over every z_t are the KL from the definition; their sum is above -log p(x)."""
    process, reverse = make(name, SPEC, kind)
    states = all_states(process.num_states, 3)
    total = torch.zeros(len(X), dtype=torch.float64)
    for t in range(1, SPEC.num_steps + 1):
        exact = exact_step_kl(process, reverse, X, t)
        step = process.step(X, torch.full((len(X),), t))
        log_u = process.log_marginals(X, torch.full((len(X), 1), t))[:, 0].double()  # (B, D, S)
        mean = torch.zeros_like(total)
        for z in states[is_possible(states, 3)]:
            weight = log_u[:, torch.arange(3), z].sum(1).exp()
            kl = step_terms(step, reverse, z.expand(1, len(X), -1)).kl[0].double()
            mean += torch.where(weight > 0, weight * kl.nan_to_num(), 0.0)
        torch.testing.assert_close(mean, exact, rtol=1e-4, atol=1e-5)
        total += exact
    index = (X * torch.tensor([process.num_states**2, process.num_states, 1])).sum(1)
    nll = -exact_log_likelihood(process, reverse, SPEC.num_steps)[index]
    assert (total >= nll - 1e-5).all()
    assert total.isfinite().all()


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("estimator", [partial(RLOO, samples=2), Concrete])
def test_gradients_are_finite(name: str, estimator: Any) -> None:
    model = FLDD(3, (3,), PROCESSES[name], small_mlp, estimator, num_steps=3, num_values=VALUES)
    randomise(model)
    step = model.forward_process.step(X, torch.tensor([1, 2, 3, 1, 2, 3]))
    out = model.estimator.loss(step, lambda z: step_terms(step, model.reverse, z), torch.Generator(), 0)
    out.surrogate.sum().backward()
    gradients = [p.grad for p in (*model.reverse.parameters(), *model.forward_process.parameters())]
    assert all(grad.isfinite().all() for grad in gradients if grad is not None)
    assert any(grad is not None and bool((grad != 0).any()) for grad in gradients)


def model_with(latent: Any, process: str = "learned_mask") -> FLDD:
    model = FLDD(3, (3,), PROCESSES[process], small_mlp, latents=latent, num_steps=2, num_values=VALUES)
    if any(each.num_examples for each in model.latents):
        model.latents[0].fit(X.repeat(10, 1))
    randomise(model.reverse)
    return model


@torch.no_grad()
@pytest.mark.parametrize("name", LATENTS)
def test_latents_say_nothing_of_values_that_there_are_not(name: str) -> None:
    model = model_with(LATENTS[name])
    (latent,) = model.latents
    c = latent.sample(20, torch.Generator().manual_seed(0))
    p = latent.log_conditional_of(c).exp()  # (N, D, K)
    for d, number in enumerate(VALUES):
        assert float(p[:, d, number:].sum()) < 1e-6
        torch.testing.assert_close(p[:, d, :number].sum(-1), torch.ones(20))
    samples = model.sample(300)
    assert is_possible(samples).all()
    assert len(samples.unique(dim=0)) == len(X)
    assert model.nelbo(X).nelbo.isfinite().all()


@pytest.mark.parametrize("name", LATENTS)
@pytest.mark.parametrize("progress", [0.0, 0.3, 0.5, 1.0])
def test_latents_learn_at_every_weight_that_they_have_along_a_run(name: str, progress: float) -> None:
    process = partial(LearnedMaskProcess, network=small_mlp)
    model = FLDD(3, (3,), process, small_mlp, latents=LATENTS[name], num_steps=3, num_values=VALUES)
    model.latents[0].anneal(progress)
    loss = model.training_step(X, 0)
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", [name for name in PROCESSES if name != "learned_mask"])
def test_samples_are_at_values_that_there_are(name: str) -> None:
    model = model_with(LATENTS["mixture"], name)
    states = model.sample(300, trajectory=True)
    for z in states:
        assert is_possible(z, 3).all()
    assert is_possible(model.sample(50, decoding=GreedyEnd())).all()


@pytest.mark.parametrize("decoding", [ExactlyN(), ConfidentFirst()])
def test_other_decodings_keep_to_the_values(decoding: Any) -> None:
    model = FLDD(3, (3,), AbsorbingProcess, small_mlp, num_steps=3, num_values=VALUES)
    randomise(model.reverse)
    assert is_possible(model.sample(200, decoding=decoding)).all()


def test_parts_of_a_chain_share_no_table_of_values() -> None:
    """Even where the same table for all parts would be the better fit: these examples are alike in all of them."""
    x = torch.randint(2, (40, 4), generator=torch.Generator().manual_seed(0))
    last = []
    for num_values in ((2, 2, 3, 3), (3, 3, 3, 3)):
        latent = ChainLatent(Spec(3, (4,), 2, num_values=num_values), size=2)
        latent.fit(x)
        last.append(latent.log_conditional_of(latent.sample(10, torch.Generator().manual_seed(0))).exp()[..., 2])
    assert float(last[0][:, :2].max()) < 1e-6
    assert float(last[0][:, 2:].min()) > 1e-6
    assert float(last[1].min()) > 1e-6


class Leaky(UniformProcess):
    """A process of a user who did not think of fewer values."""

    def posterior_under(self, log_p: torch.Tensor, z_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(log_p).log_softmax(-1)


def test_processes_that_forget_them_are_kept_to_the_values() -> None:
    model = FLDD(3, (3,), Leaky, small_mlp, reverse=PredictingReverse, num_steps=2, num_values=VALUES)
    samples = model.sample(200)
    assert is_possible(samples).all()
    assert len(samples.unique(dim=0)) == len(X)


def test_untrained_masks_are_uniform_over_the_values_of_each() -> None:
    model = FLDD(3, (3,), AbsorbingProcess, small_mlp, num_steps=1, num_values=VALUES)
    assert isinstance(model.forward_process, MaskProcess)
    assert isinstance(model.reverse, MaskedReverse)
    nelbo = model.nelbo(X).nelbo
    torch.testing.assert_close(nelbo, torch.full((6,), 6.0).log().double())  # of 2 * 3 * 1


def test_marginals_share_their_example_out_over_the_values_of_each() -> None:
    p = marginals_of(X[:1], SPEC)[..., 0]
    torch.testing.assert_close(p, torch.tensor([[1.5, 0.5, 0], [4 / 3, 1 / 3, 1 / 3], [2, 0, 0]]) / 2)


def test_values_that_there_are_not_are_refused() -> None:
    model = FLDD(3, (3,), AbsorbingProcess, small_mlp, num_values=VALUES)
    with pytest.raises(FLDDError, match=r"coordinate 0 of x has the value 2, but it has 2 values"):
        model.nelbo(torch.tensor([[0, 0, 0], [2, 0, 0]]))


@pytest.mark.parametrize("values", [(2, 3), (2, 2, 2), (2, 4, 1)])
def test_wrong_numbers_of_values_are_refused(values: tuple[int, ...]) -> None:
    with pytest.raises(FLDDError, match="num_values must say of each of 3 coordinates"):
        Spec(3, (3,), 2, num_values=values)


def test_a_number_of_values_is_at_least_one() -> None:
    with pytest.raises(FLDDError, match=r"num_values is \(0, 3, 1\), but it must be whole numbers of 1 or more"):
        Spec(3, (3,), 2, num_values=(0, 3, 1))


def test_padding_and_numbers_of_values_are_refused() -> None:
    with pytest.raises(FLDDError, match="do not go together"):
        Spec(3, (3,), 2, padded=True, num_values=VALUES)
