"""An autoencoder's latent against integration, its gradient against differences, and its fit."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from conftest import PROCESSES, all_states, exact_log_likelihood, exact_step_kl, randomise, small_mlp
from fldd_lightning import FLDD, AutoencoderLatent, FLDDError
from fldd_lightning.estimators import Reinforce
from fldd_lightning.forward import AbsorbingProcess
from fldd_lightning.networks import MLPAutoencoder
from fldd_lightning.spec import Seen, Spec
from joint_training import assert_gradients_of, trained_on_clusters
from some_latents import clustered
from tiny import build

SMALL = partial(AutoencoderLatent, size=1, autoencoder=partial(MLPAutoencoder, width=8), components=3, fit_steps=5)
BENT = partial(SMALL, size=2, couplings=2)  # a single number has no flow
MASKS = ("absorbing", "staggered", "learned_mask")  # the processes that only mask
GRID = torch.linspace(-7, 7, 141, dtype=torch.float64)
SPACING = float(GRID[1] - GRID[0])


def model_with(**options: Any) -> FLDD:
    """Two coordinates of three classes, and a latent of one number with random networks and prior."""
    model = build(**{"latents": SMALL, "forward_process": AbsorbingProcess, **options})
    randomise(model, 0.4)
    return model


def latent_of(model: FLDD) -> AutoencoderLatent:
    (latent,) = model.latents
    assert isinstance(latent, AutoencoderLatent)
    return latent


def densities(latent: AutoencoderLatent, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """p(c) of a grid ``(n,)`` and q(c|x), ``(B, n)``, from the definition."""
    posterior = latent.posterior(x)
    normal = torch.distributions.Normal(posterior.mean.double(), (posterior.log_variance.double() / 2).exp())
    parts = torch.distributions.Normal(
        latent.prior.mean.double()[:, 0], (latent.prior.log_variance / 2).exp().double()[:, 0]
    )
    prior = (parts.log_prob(GRID[:, None]).exp() * latent.prior.logits.double().softmax(0)).sum(1)
    return prior.detach(), normal.log_prob(GRID).exp().detach()


@pytest.mark.parametrize("name", MASKS)
def test_bound_with_a_latent_is_one(name: str) -> None:
    """-log int p(c) p(x|c) dc <= KL(q(c|x) || p(c)) + int q(c|x) NELBO(x|c) dc, integrated over a grid."""
    num_steps = 2
    model = model_with(num_steps=num_steps, forward_process=PROCESSES[name])
    latent, x = latent_of(model), all_states(3, 2)
    prior, q = densities(latent, x)
    for density in (prior, *q):
        assert float(density.sum()) * SPACING == pytest.approx(1.0, abs=1e-6)
    p = torch.zeros(model.forward_process.num_states**2, dtype=torch.float64)
    bound = (q * (q / prior).clamp_min(1e-30).log()).sum(1) * SPACING
    process, reverse = model.forward_process, model.reverse
    for i in range(0, len(GRID), 2):  # every other point: the bound need not be so exact
        c = GRID[i].float().view(1, 1)
        p += prior[i] * 2 * SPACING * exact_log_likelihood(process, reverse, num_steps, (c,)).detach().exp()
        for t in range(1, num_steps + 1):
            bound += q[:, i] * 2 * SPACING * exact_step_kl(process, reverse, x, t, (c.expand(len(x), 1),)).detach()
    assert float(p.sum()) == pytest.approx(1.0, abs=1e-5)
    is_data = (all_states(model.forward_process.num_states, 2) < 3).all(1)
    assert (bound >= -p[is_data].log() - 1e-5).all()


def test_kl_and_bound_are_right_on_average() -> None:
    """Over evenly spaced draws, against integrals."""
    latent, x = latent_of(model_with()), all_states(3, 2)
    prior, q = densities(latent, x)
    n = 4_000
    uniform = ((torch.arange(n, dtype=torch.float64) + 0.5) / n).unsqueeze(1)
    log_p = latent.log_conditional_of(GRID.float().unsqueeze(1)).double()  # (n, 2, 3)
    torch.testing.assert_close(log_p.exp().sum(-1), torch.ones(len(GRID), 2).double())
    for i in range(len(x)):
        posterior = latent.posterior(x[i].expand(n, -1))
        drawn = posterior.draw(uniform)
        kl = (q[i] * (q[i] / prior).clamp_min(1e-30).log()).sum() * SPACING
        nll = kl - (q[i] * (log_p[:, 0, x[i, 0]] + log_p[:, 1, x[i, 1]])).sum() * SPACING
        torch.testing.assert_close(posterior.kl(drawn).double().mean(), kl, atol=2e-3, rtol=0)
        torch.testing.assert_close(posterior.nll(drawn).double().mean(), nll, atol=2e-3, rtol=0)
        assert torch.equal(posterior.likely(), posterior.mean)
    assert torch.isfinite(posterior.draw(torch.zeros(n, 1, dtype=torch.float64))).all()


def test_samples_are_of_the_prior() -> None:
    latent = latent_of(model_with(latents=partial(SMALL, size=2, couplings=0)))
    drawn = latent.sample(40_000, torch.Generator().manual_seed(0))
    weights, mean, variance = latent.prior.logits.softmax(0), latent.prior.mean, latent.prior.log_variance.exp()
    expected = weights @ mean
    torch.testing.assert_close(drawn.mean(0), expected, atol=0.03, rtol=0)
    second = torch.einsum("k,ki,kj->ij", weights, mean, mean) + torch.diag(weights @ variance)
    torch.testing.assert_close(drawn.T.cov(), second - torch.outer(expected, expected), atol=0.05, rtol=0)
    assert torch.equal(drawn, latent.sample(40_000, torch.Generator().manual_seed(0)))


def test_one_step_and_an_untrained_denoiser_are_the_latent_alone() -> None:
    model = build(num_steps=1, forward_process=AbsorbingProcess, latents=SMALL)
    randomise(latent_of(model))
    x = all_states(3, 2)
    terms = model.nelbo_terms(x, torch.rand(len(x), 1, 3, dtype=torch.float64))
    assert terms.nll_latent is not None
    torch.testing.assert_close(terms.nelbo, terms.nll_latent)


@pytest.mark.parametrize("made", [SMALL, BENT])
def test_the_bound_trains_encoder_decoder_and_prior(made: Any) -> None:
    """A training step's gradient is that of its loss at fixed noise, through the draws of c."""
    # the process is fixed, so that REINFORCE's surrogate is the KL itself
    model = model_with(latents=made, auxiliary_weight=0.0, estimator=Reinforce)
    latent = latent_of(model)
    with torch.no_grad():
        for p in latent.prior.couplings.parameters():
            p *= 0.3  # else too steep for differences
    x = all_states(3, 2)
    model.training_step(x, 0).backward()
    for name, p in latent.named_parameters():
        assert p.grad is not None, name
        length = float(p.grad.norm())
        values = []
        for step in (1e-2, -2e-2):
            with torch.no_grad():
                p += step / length * p.grad
            values.append(float(model.training_step(x, 0).detach()))
        with torch.no_grad():
            p += 1e-2 / length * p.grad
        assert (values[0] - values[1]) / 2e-2 == pytest.approx(length, rel=0.02, abs=1e-4), name


def test_gradients_are_those_of_the_bound() -> None:
    """On average, against integration over c and enumeration of z_t: of q(z_t|x, c) too, through c to the encoder."""
    model = model_with(forward_process=PROCESSES["learned_mask"], auxiliary_weight=0.0, estimator=Reinforce)
    latent, x, grid = latent_of(model), all_states(3, 2), GRID[::4]
    process, reverse = model.forward_process, model.reverse
    with torch.no_grad():
        latent.prior.mean += 1  # so that there is something to learn
    posterior = latent.posterior(x)
    log_q = torch.distributions.Normal(posterior.mean, (posterior.log_variance / 2).exp()).log_prob(grid)  # (9, n)
    nats = log_q - latent.prior.log_prob(grid.float().unsqueeze(1))
    steps = []
    for c in grid:
        given = (c.float().expand(len(x), 1),)
        steps.append(sum(exact_step_kl(process, reverse, x, t, given) for t in (1, 2)))
    bound = (log_q.exp() * (nats + torch.stack(steps, 1))).sum(1).mean() * 4 * SPACING
    parts: dict[str, list[torch.nn.Parameter]] = {
        "encoder": [*latent.autoencoder.encode.parameters()],
        "decoder": [*latent.autoencoder.decode.parameters(), latent.bias],
        "prior": [latent.prior.logits, latent.prior.mean, latent.prior.log_variance],
        "process": list(model.forward_process.parameters()),
        "denoiser": list(model.reverse.parameters()),
    }
    assert_gradients_of(bound, model, x, parts, most_error=0.04)


def test_fit_finds_clusters() -> None:
    torch.manual_seed(0)
    x = clustered(3_000)
    latent = AutoencoderLatent(
        Spec(4, (12,), 2),
        size=4,
        autoencoder=partial(MLPAutoencoder, width=32),
        components=8,
        couplings=2,
        kl_weight=1.0,
        fit_steps=400,
    )
    assert latent.says_nothing
    torch.testing.assert_close(latent.posterior(x).kl(torch.randn(len(x), 4)), torch.zeros(len(x)), atol=1e-5, rtol=0)
    before = torch.random.get_rng_state()
    fit_ = latent.fit(x, seed=1)
    assert torch.equal(before, torch.random.get_rng_state())
    assert not latent.says_nothing
    assert all(bool(p.any()) for p in latent.parameters())  # those that are zero at the start, too
    assert bool(latent.is_fitted)
    assert fit_["nll"] < fit_["nll_marginals"] - 3
    uniform = torch.rand(len(x), 4, dtype=torch.float64)
    posterior = latent.posterior(x)
    drawn = posterior.draw(uniform)
    assert float(posterior.nll(drawn).detach().mean()) == pytest.approx(fit_["nll"], abs=0.3)
    assert 1.0 < float(posterior.kl(drawn).detach().mean()) < 2.5  # four clusters: log 4 = 1.39


def test_without_a_fit_the_weight_of_its_kl_falls_to_one() -> None:
    fitted, joint = (latent_of(model_with(latents=partial(SMALL, fit_steps=n, kl_weight=3.0))) for n in (5, 0))
    assert fitted.num_examples > 0
    assert joint.num_examples == 0
    for share, weight in ((0.0, 3.0), (0.4, 2.0), (0.8, 1.0), (1.0, 1.0)):
        for latent in (fitted, joint):
            latent.anneal(share)
        assert (fitted.weight, joint.weight) == pytest.approx((1.0, weight))
    assert not joint.says_nothing
    # in the loss it is this weight that counts, per coordinate; what is logged is the bound itself
    model, x, losses = model_with(latents=partial(SMALL, fit_steps=0, kl_weight=3.0)), all_states(3, 2), []
    for share in (0.0, 1.0):
        with patch.object(model, "_run_progress", lambda step, share=share: share):
            model.on_train_batch_start(x, 0)
            losses.append(float(model.training_step(x, 0)))
        logged = {name: float(value) for name, value in model.logged.items()}
        # the first of a step sets REINFORCE's mean; AbsorbingProcess has no score and the auxiliary loss is 0
        assert logged["nelbo"] == pytest.approx(2 * losses[-1] - (2 - 2 * share) * logged["kl_autoencoder"])
    assert losses[0] - losses[1] == pytest.approx((3 - 1) * logged["kl_autoencoder"] / 2, rel=1e-5)


def test_trained_with_the_rest_from_the_first_step_it_finds_clusters(tmp_path: Path) -> None:
    joint = partial(
        AutoencoderLatent, size=4, autoencoder=partial(MLPAutoencoder, width=32), components=8, couplings=2, fit_steps=0
    )
    without, terms = (trained_on_clusters(latents, tmp_path)[1] for latents in ((), joint))
    assert float(terms.nelbo.mean()) < float(without.nelbo.mean()) - 0.5
    assert float(terms.further["kl_autoencoder"].mean()) > 0.7  # four clusters: log 4 = 1.39


@pytest.mark.slow
@torch.no_grad()
def test_a_latent_says_what_is_worth_its_price() -> None:
    """At a hundred times its price nothing is worth saying."""
    x, said = clustered(3_000), []
    for weight in (0.3, 1.0, 100.0):
        torch.manual_seed(0)
        latent = AutoencoderLatent(
            Spec(4, (12,), 2),
            4,
            autoencoder=partial(MLPAutoencoder, width=32),
            components=8,
            couplings=2,
            kl_weight=weight,
            fit_steps=200,
        )
        fit_, posterior = latent.fit(x), latent.posterior(x)
        said.append(float(posterior.kl(posterior.draw(torch.rand(len(x), 4).double())).mean()))
    assert said[0] > said[1] + 0.2
    assert said[1] > 1
    assert said[2] == pytest.approx(0.0, abs=0.02)
    assert fit_["nll"] == pytest.approx(fit_["nll_marginals"], abs=0.05)


@pytest.mark.parametrize(("weight", "kl", "gain", "kept"), [(2.5, 2, 1, False), (1, 2, 1, True), (0.5, 4, -1, True)])
def test_what_does_not_help_held_out_examples_is_not_kept(weight: float, kl: float, gain: float, kept: bool) -> None:
    """It counts with the weight of the KL; what is reported is the bound."""
    x, generator = clustered(300), torch.Generator().manual_seed(0)
    make = partial(
        AutoencoderLatent,
        Spec(4, (12,), 2),
        size=4,
        autoencoder=partial(MLPAutoencoder, width=64),
        components=8,
        fit_steps=20,
    )
    marginals = make(fit_steps=1).fit(x)["nll_marginals"]
    latent = make(kl_weight=weight)
    with patch.object(AutoencoderLatent, "_held_out_bound", return_value=(kl, marginals - gain)):
        fit_ = latent.fit(x)
    assert fit_["nll_marginals"] == marginals
    assert fit_["nll"] == (marginals - gain if kept else marginals)
    assert latent.says_nothing != kept
    if not kept:
        c = latent.sample(5, generator)
        torch.testing.assert_close(latent.posterior(x[:5]).kl(c), torch.zeros(5), atol=1e-5, rtol=0)
        assert torch.equal(latent.log_conditional_of(c)[0], latent.log_conditional_of(c)[1])


def test_padding_is_neither_given_nor_paid_for() -> None:
    latent = AutoencoderLatent(
        Spec(4, (5,), 2, padded=True),
        size=2,
        autoencoder=partial(MLPAutoencoder, width=8),
        components=2,
        fit_steps=5,
    )
    randomise(latent)
    c = torch.randn(6, 2)
    log_p = latent.log_conditional_of(c)
    torch.testing.assert_close(log_p[..., :3].exp().sum(-1), torch.ones(6, 5))
    assert not log_p[..., 3].any()
    pad = torch.full((6, 5), 3)
    posterior = latent.posterior(pad)
    torch.testing.assert_close(posterior.nll(c), posterior.kl(c))
    assert torch.isfinite(torch.tensor(list(latent.fit(torch.cat([pad, all_states(4, 5)[:60]])).values()))).all()


@pytest.mark.parametrize("name", [name for name in PROCESSES if name not in MASKS])
def test_processes_that_do_not_only_mask_are_refused(name: str) -> None:
    """Nothing would train the decoder there."""
    with pytest.raises(FLDDError, match="there is more than masks"):
        model_with(forward_process=PROCESSES[name])


def test_double_precision() -> None:
    model, x = model_with(latents=BENT).double(), all_states(3, 2)
    noise = torch.rand(len(x), 2, 3, dtype=torch.float64)
    assert model.nelbo_terms(x, noise).nelbo.dtype == torch.float64
    assert model.sample(4).shape == (4, 2)


def test_what_cannot_be() -> None:
    for option in ("size", "components"):
        with pytest.raises(FLDDError, match="must be a whole number"):
            AutoencoderLatent(Spec(3, (2,), 2), **{option: 0})
    for option in ("couplings", "fit_steps"):
        with pytest.raises(FLDDError, match=f"{option} of AutoencoderLatent is -1"):
            AutoencoderLatent(Spec(3, (2,), 2), **{option: -1})
    with pytest.raises(FLDDError, match="Autoencoder is needed here, but this makes a Linear"):
        AutoencoderLatent(Spec(3, (2,), 2), autoencoder=lambda *_: torch.nn.Linear(1, 1))  # type: ignore[arg-type,return-value]
    with pytest.raises(FLDDError, match="kl_weight of AutoencoderLatent"):
        AutoencoderLatent(Spec(3, (2,), 2), kl_weight=0.0)
    for numbers in ({"num_reals": -1}, {"num_reals": 1, "num_values": 2}, {}):
        with pytest.raises(FLDDError, match=r"whole numbers \(num_values\) or real ones \(num_reals\)"):
            Seen("autoencoder", **numbers)
    network = small_mlp(Spec(3, (2,), 2, seen=(Seen("autoencoder", num_reals=2),)), 3, 3)
    with pytest.raises(FLDDError, match="given 0 latents, but it sees 1"):
        network(torch.zeros(1, 2, 3), torch.ones(1, dtype=torch.long))
    with pytest.raises(FLDDError, match="more than 256 MiB"):
        AutoencoderLatent(Spec(50_257, (1_024,), 2))
    with pytest.raises(FLDDError, match="too few to fit a latent"):
        SMALL(Spec(3, (2,), 2)).fit(all_states(3, 2)[:1])
