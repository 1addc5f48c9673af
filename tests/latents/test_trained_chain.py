"""A chain that training moves, and either of it and a mixture: everything against enumeration, and that they learn."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from conftest import PROCESSES, all_states, exact_log_likelihood, exact_step_kl, randomise, small_mlp
from fldd_lightning import FLDD, AutoencoderLatent, EitherLatent, FLDDError, TrainedChainLatent, TrainedMixtureLatent
from fldd_lightning.bound import num_uniforms
from fldd_lightning.forward import AbsorbingProcess
from fldd_lightning.latents import Latent
from fldd_lightning.spec import Spec
from joint_training import assert_gradients_of
from some_latents import clustered
from tiny import build, trainer

CHAIN = partial(TrainedChainLatent, part=1, size=2)
EITHER = partial(EitherLatent, latents=[partial(TrainedMixtureLatent, size=3), CHAIN])
KINDS = {"chain": CHAIN, "either": EITHER}


def model_with(kind: str, **options: Any) -> FLDD:
    """Two coordinates of three classes and random weights."""
    model = build(
        **{
            "forward_process": PROCESSES["learned_mask"], "latents": KINDS[kind], "auxiliary_weight": 0.0,
            "num_steps": 2, **options,
        }
    )  # fmt: skip
    randomise(model, 0.4)
    for chain in (each for each in model.modules() if isinstance(each, TrainedChainLatent)):
        shrink(chain, 0.15)  # which the scale makes 4.5 times as large
    for either in (each for each in model.modules() if isinstance(each, EitherLatent)):
        shrink(either.latents[0], 0.3)  # type: ignore[arg-type]
        either.logits.data *= 0.1
    return model


def shrink(latent: Latent, factor: float) -> None:
    for p in latent.parameters():
        p.data *= factor


def values_of(latent: Latent) -> tuple[torch.Tensor, torch.Tensor]:
    """All values of c, ``(n, m)``, and the log-probability of each, ``(n,)``, written out from the tables."""
    if isinstance(latent, TrainedMixtureLatent):
        return torch.arange(latent.size)[:, None], latent.log_prior()
    if isinstance(latent, TrainedChainLatent):
        c = all_states(latent.size, len(latent.part_of.unique()))
        log_p = (30 * latent.first).log_softmax(0)[c[:, 0]]
        for j in range(c.shape[1] - 1):
            log_p = log_p + (30 * latent.following[0]).log_softmax(1)[c[:, j], c[:, j + 1]]
        return c, log_p
    assert isinstance(latent, EitherLatent)
    weights, values, log_p, start = (10 * latent.logits).log_softmax(0), [], [], 0
    for i, each in enumerate(latent.latents):
        c, of_each = values_of(each)
        values.append(start + c.expand(-1, 2))
        log_p.append(weights[i] + of_each)
        start += each.size  # type: ignore[operator]
    return torch.cat(values), torch.cat(log_p)


def given(latent: Latent, x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """Log p(x|c), ``(B, n)``, of all pairs."""
    log_p = latent.log_conditional_of(c).flatten(1, -2)  # (n, D, K)
    return torch.stack([log_p[:, torch.arange(len(row)), row].sum(1) for row in x.flatten(1)])


def exact_bound(model: FLDD, x: torch.Tensor) -> torch.Tensor:
    """KL(q(c|x) || p(c)) + sum_c q(c|x) NELBO(x|c), ``(B,)``, with gradients, from the definition."""
    (latent,) = model.latents
    values, log_prior = values_of(latent)
    log_q = (given(latent, x, values) + log_prior).log_softmax(1)
    bound = (log_q.exp() * (log_q - log_prior)).sum(1)
    for i, c in enumerate(values):
        at_c = (c.expand(len(x), -1),)
        steps = sum(exact_step_kl(model.forward_process, model.reverse, x, t, at_c) for t in (1, 2))
        bound = bound + log_q[:, i].exp() * steps
    return bound


@pytest.mark.parametrize("kind", KINDS)
def test_posterior_and_prior_against_enumeration(kind: str) -> None:
    torch.manual_seed(0)
    (latent,) = model_with(kind).latents
    x = all_states(3, 2)
    values, log_prior = values_of(latent)
    log_joint = given(latent, x, values) + log_prior
    log_q = log_joint.log_softmax(1)
    posterior = latent.posterior(x)
    torch.testing.assert_close(posterior.nll(values), -log_joint.logsumexp(1))
    torch.testing.assert_close(posterior.kl(values), (log_q.exp() * (log_q - log_prior)).sum(1))
    torch.testing.assert_close(torch.stack([posterior.log_prob(c.expand(9, -1)) for c in values], 1), log_q)
    n = 20_000
    many = latent.posterior(x.repeat(n, 1))
    drawn = many.draw(torch.rand(9 * n, num_uniforms([latent]), dtype=torch.float64)).view(n, 9, -1)
    sampled = latent.sample(n, torch.Generator().manual_seed(0))
    for i, c in enumerate(values):
        torch.testing.assert_close((drawn == c).all(-1).double().mean(0), log_q[:, i].exp().double(), atol=0.02, rtol=0)
        assert float((sampled == c).all(-1).double().mean()) == pytest.approx(
            float(log_prior[i].detach().exp()), abs=0.02
        )


@pytest.mark.parametrize("kind", KINDS)
def test_bound_with_the_latent_is_one(kind: str) -> None:
    model, x = model_with(kind), all_states(3, 2)
    (latent,) = model.latents
    process, reverse = model.forward_process, model.reverse
    values, log_prior = values_of(latent)
    p = sum(
        log_p.detach().double().exp() * exact_log_likelihood(process, reverse, 2, (c[None],)).detach().exp()
        for c, log_p in zip(values, log_prior, strict=True)
    )
    assert float(p.sum()) == pytest.approx(1.0, abs=1e-5)
    is_data = (all_states(process.num_states, 2) < 3).all(1)
    assert (exact_bound(model, x).detach() >= -p[is_data].log() - 1e-5).all()


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_bound(kind: str) -> None:
    """On average, against enumeration of c and z_t: of priors, tables, the process and of the denoiser."""
    model, x = model_with(kind), all_states(3, 2)
    model.latents[0].anneal(1.0)
    named = dict(model.latents[0].named_parameters())
    parts = {
        "prior": [p for name, p in named.items() if not name.endswith("table")],
        "tables": [p for name, p in named.items() if name.endswith("table")],
    }
    parts |= {"process": list(model.forward_process.parameters()), "denoiser": list(model.reverse.parameters())}
    assert_gradients_of(exact_bound(model, x).mean(), model, x, parts, most_error=0.15)


@pytest.mark.parametrize("length", [12, 7, 1])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("kind", ["chain", "either"])
def test_values_start_from_examples_of_any_length(kind: str, padded: bool, length: int) -> None:
    x = clustered(500, dims=length)
    if padded and length > 1:
        x[:250, -2:] = 4
    spec = Spec(4 + padded, (length,), 2, padded)
    latent: Latent = TrainedChainLatent(spec, size=20) if kind == "chain" else EitherLatent(spec)
    before = torch.random.get_rng_state()
    assert latent.fit(x) == {}
    assert torch.equal(before, torch.random.get_rng_state())
    assert bool(latent.is_fitted)
    latent.anneal(0.45)
    assert (latent.weight, latent.weight_alone) == pytest.approx((0.5, 0.5))
    posterior = latent.posterior(x)
    c = posterior.draw(torch.rand(500, latent.num_uniforms, dtype=torch.float64))
    assert latent.seen is not None
    assert c.shape == (500, latent.seen.num_parts)
    assert int(c.max()) < latent.seen.num_values
    assert torch.isfinite(posterior.log_prob(c)).all()
    assert (posterior.likely() < latent.seen.num_values).all()
    log_p = latent.log_conditional_of(c).detach()
    torch.testing.assert_close(log_p[..., :4].exp().sum(-1), torch.ones(500, length))
    assert not log_p[..., 4:].any()
    assert float(posterior.kl(c).mean()) >= 0


def walks(n: int) -> torch.Tensor:
    """Sequences of twelve whose steps are -1, 0 or 1."""
    generator = torch.Generator().manual_seed(1)
    steps = torch.randint(-1, 2, (n, 12), generator=generator)
    steps[:, 0] = torch.randint(8, (n,), generator=generator)
    return steps.cumsum(1) % 8


@pytest.mark.parametrize(("data", "classes", "suits"), [(clustered, 4, 0), (walks, 8, 1)])
def test_either_takes_the_one_that_suits_the_data(tmp_path: Path, data: Any, classes: int, suits: int) -> None:
    """A mixture on clusters, a chain on walks, with nothing said beforehand."""
    latents = partial(
        EitherLatent, latents=[partial(TrainedMixtureLatent, size=8), partial(TrainedChainLatent, size=8)]
    )
    torch.manual_seed(0)
    model = FLDD(classes, (12,), AbsorbingProcess, small_mlp, latents=latents, num_steps=2, lr=5e-3)
    trainer(tmp_path, max_steps=200, limit_val_batches=0).fit(model, DataLoader(data(3_000), 128, shuffle=True))
    (latent,) = model.latents
    assert isinstance(latent, EitherLatent)
    assert float(latent.log_weights[suits].detach().exp()) > 0.7
    assert latent.summary().count(" %") == 2


def test_what_cannot_be() -> None:
    with pytest.raises(FLDDError, match="needs sequences"):
        TrainedChainLatent(Spec(3, (2, 2), 2))
    with pytest.raises(FLDDError, match="part of TrainedChainLatent is 0"):
        TrainedChainLatent(Spec(3, (4,), 2), part=0)
    with pytest.raises(FLDDError, match="a whole number, 2 or more"):
        TrainedChainLatent(Spec(3, (4,), 2), size=1)
    with pytest.raises(FLDDError, match="not AutoencoderLatent"):
        EitherLatent(Spec(3, (4,), 2), [TrainedMixtureLatent, AutoencoderLatent])
    parts = [partial(TrainedChainLatent, part=n) for n in (1, 2)]
    with pytest.raises(FLDDError, match="as many parts as the others"):
        EitherLatent(Spec(3, (8,), 2), parts)
    with pytest.raises(FLDDError, match="two latents or more"):
        EitherLatent(Spec(3, (8,), 2), [TrainedMixtureLatent])
    with pytest.raises(FLDDError, match="there is more than masks"):
        model_with("either", forward_process=PROCESSES["residual_uniform"])
