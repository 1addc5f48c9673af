"""A mixture that training moves: its bound and its gradient against enumeration, its start, and that it learns."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from conftest import PROCESSES, all_states, exact_log_likelihood, exact_step_kl, randomise
from fldd_lightning import FLDD, Concrete, FLDDError, MaskedReverse, PredictingReverse, TrainedMixtureLatent
from fldd_lightning.estimators import RLOO, Reinforce, WarmUp
from fldd_lightning.forward import AbsorbingProcess
from fldd_lightning.spec import Spec
from joint_training import assert_gradients_of, trained_on_clusters
from some_latents import clustered
from tiny import build, trainer

SIZE = 3


def model_with(**options: Any) -> FLDD:
    """Two coordinates of three classes and random weights."""
    latents = partial(TrainedMixtureLatent, size=SIZE)
    model = build(
        **{"forward_process": PROCESSES["learned_mask"], "latents": latents, "auxiliary_weight": 0.0, **options}
    )
    randomise(model, 0.4)
    with torch.no_grad():
        for p in model.latents[0].parameters():  # type: ignore[union-attr]
            p *= 0.2  # which the scale makes 2 times as large
    return model


def latent_of(model: FLDD) -> TrainedMixtureLatent:
    (latent,) = model.latents
    assert isinstance(latent, TrainedMixtureLatent)
    return latent


def exact_bound(model: FLDD, x: torch.Tensor) -> torch.Tensor:
    """KL(q(c|x) || p(c)) + sum_c q(c|x) NELBO(x|c), ``(B,)``, with gradients, from the definition."""
    latent = latent_of(model)
    log_prior, log_p = latent.log_prior(), latent.log_conditional()  # (C,), (*shape, K, C)
    given = sum(log_p[i, x[:, i]] for i in range(x.shape[1]))  # (B, C)
    log_q = (given + log_prior).log_softmax(1)
    bound = (log_q.exp() * (log_q - log_prior)).sum(1)
    for c in range(SIZE):
        at_c = (torch.full((len(x), 1), c),)
        steps = sum(exact_step_kl(model.forward_process, model.reverse, x, t, at_c) for t in (1, 2))
        bound = bound + log_q[:, c].exp() * steps
    return bound


@pytest.mark.parametrize("name", ["absorbing", "staggered", "learned_mask"])
def test_bound_with_the_latent_is_one(name: str) -> None:
    model, x = model_with(num_steps=2, forward_process=PROCESSES[name]), all_states(3, 2)
    process, reverse = model.forward_process, model.reverse
    prior = latent_of(model).log_prior().detach().double().exp()
    p = sum(
        prior[c] * exact_log_likelihood(process, reverse, 2, (torch.tensor([[c]]),)).detach().exp() for c in range(SIZE)
    )
    assert float(p.sum()) == pytest.approx(1.0, abs=1e-5)
    is_data = (all_states(process.num_states, 2) < 3).all(1)
    assert (exact_bound(model, x).detach() >= -p[is_data].log() - 1e-5).all()


@pytest.mark.parametrize("estimator", [Reinforce, partial(RLOO, samples=2)])
@pytest.mark.parametrize("name", ["absorbing", "learned_mask"])
def test_gradients_are_those_of_the_bound(name: str, estimator: Any) -> None:
    """On average, against enumeration of c and z_t: of tables, process and denoiser."""
    model, x = model_with(num_steps=2, forward_process=PROCESSES[name], estimator=estimator), all_states(3, 2)
    model.latents[0].anneal(1.0)
    latent = latent_of(model)
    parts: dict[str, list[torch.nn.Parameter]] = {
        "prior": [latent.prior],
        "table": [latent.table],
        "process": list(model.forward_process.parameters()),
        "denoiser": list(model.reverse.parameters()),
    }
    assert_gradients_of(exact_bound(model, x).mean(), model, x, parts, most_error=0.12)


def test_without_the_score_tables_would_learn_something_else() -> None:
    """What the test above is worth: the score is a part of the gradient that can be told from none."""
    model, x = model_with(num_steps=2, forward_process=AbsorbingProcess), all_states(3, 2)
    table = latent_of(model).table
    (exact,) = torch.autograd.grad(exact_bound(model, x).mean() / 2, [table])
    model.latent_score = None
    drawn = [torch.autograd.grad(model.training_step(x.repeat(200, 1), i), [table])[0] for i in range(30)]
    assert float((torch.stack(drawn).mean(0) - exact).norm() / exact.norm()) > 0.2


def test_the_bound_of_the_latent_alone_counts_at_first() -> None:
    """It takes the place of the bound for the tables, while other parameters learn by the bound throughout."""
    model, x = model_with(forward_process=AbsorbingProcess), all_states(3, 2)
    latent, gradients = latent_of(model), []
    network = next(model.reverse.network.parameters())
    for share, weight in ((0.0, 1.0), (0.45, 0.5), (0.6, 0.0), (1.0, 0.0)):
        latent.anneal(share)
        assert (latent.weight, latent.weight_alone) == pytest.approx((1 - weight, weight))
        for buffer in model.latent_score.buffers():  # type: ignore[union-attr]
            buffer.fill_(float("nan"))
        gradients.append(torch.autograd.grad(model.training_step(x, 0), [latent.table, latent.prior, network]))
    alone = torch.autograd.grad(latent.posterior(x).nll().mean() / 2, [latent.table, latent.prior])
    for i, of_alone in enumerate(alone):
        torch.testing.assert_close(gradients[0][i], of_alone)
        torch.testing.assert_close(gradients[1][i], (of_alone + gradients[2][i]) / 2)
    torch.testing.assert_close(gradients[2], gradients[3])
    torch.testing.assert_close(gradients[0][2], gradients[3][2])


@pytest.mark.parametrize("padded", [False, True])
def test_values_start_from_examples(padded: bool) -> None:
    x = clustered(500)
    if padded:
        x[:, 9:] = 4
    latent = TrainedMixtureLatent(Spec(4 + padded, (12,), 2, padded), size=100)
    assert latent.num_examples >= 100
    before = torch.random.get_rng_state()
    assert latent.fit(x) == {}
    assert torch.equal(before, torch.random.get_rng_state())
    assert bool(latent.is_fitted)
    log_p = latent.log_conditional().detach()
    torch.testing.assert_close(log_p[..., :4, :].exp().sum(-2), torch.ones(12, 100))
    if padded:
        assert not log_p[..., 4, :].any()
    p = log_p[:9].exp()  # (9, K, C)
    marginals = torch.stack([x[:, i].bincount(minlength=4 + padded) for i in range(9)]) / 500  # (9, K)
    more = torch.stack([p[i, x[:, i]] - marginals[i, x[:, i], None] for i in range(9)])  # (9, B, C)
    assert (more.amin(0).amax(0) > 0).all()  # of some example every value is likelier than among all
    few = TrainedMixtureLatent(Spec(4 + padded, (12,), 2, padded), size=100)
    few.fit(x[:2])  # each of them many times
    assert torch.isfinite(few.posterior(x).nll()).all()


def test_it_finds_clusters_with_the_rest(tmp_path: Path) -> None:
    without = trained_on_clusters((), tmp_path)[1]
    model, terms = trained_on_clusters(partial(TrainedMixtureLatent, size=8), tmp_path)
    assert float(terms.nelbo.mean()) < float(without.nelbo.mean()) - 0.5
    assert 1.0 < float(terms.further["kl_mixture"].mean()) < 2.0  # four clusters: log 4 = 1.39
    assert "equally likely values, of 8" in latent_of(model).summary()


def test_another_number_of_steps_trains_on_and_comes_back(tmp_path: Path) -> None:
    timeless = partial(MaskedReverse, time_independent=True)
    model = model_with(forward_process=AbsorbingProcess, reverse=timeless, num_steps=2).with_num_steps(5)
    trainer(tmp_path, max_steps=3).fit(model, DataLoader(all_states(3, 2), 9))  # type: ignore[arg-type]
    assert torch.isfinite(model.latent_score.mean[1:]).all()
    model.trainer.save_checkpoint(tmp_path / "model.ckpt")
    loaded = FLDD.load_from_checkpoint(tmp_path / "model.ckpt")
    assert torch.equal(loaded.sample(20, seed=1), model.sample(20, seed=1))


def test_what_cannot_be() -> None:
    with pytest.raises(FLDDError, match="a whole number, 2 or more"):
        TrainedMixtureLatent(Spec(3, (2,), 2), size=1)
    with pytest.raises(FLDDError, match="more than 256 MiB"):
        TrainedMixtureLatent(Spec(50_000, (1_024,), 2))
    with pytest.raises(FLDDError, match="there is more than masks"):
        model_with(forward_process=PROCESSES["residual_uniform"])
    for estimator in (Concrete, partial(WarmUp, first=Concrete, then=Reinforce, steps=5)):
        with pytest.raises(FLDDError, match="TrainedMixtureLatent learns by the score of its draws"):
            model_with(estimator=estimator)
    with pytest.raises(FLDDError, match="there is more than masks"):
        model_with(forward_process=PROCESSES["uniform"], reverse=PredictingReverse)
