"""Every latent against enumeration: posterior, prior, likelihood, and the bound it enters."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from conftest import PROCESSES, all_states, exact_log_likelihood, exact_step_kl, randomise
from fldd_lightning import FLDD, FLDDError
from fldd_lightning.forward import AbsorbingProcess
from fldd_lightning.latents import TableLatent
from fldd_lightning.spec import Spec
from some_latents import KINDS, SIZES, fill, joint, prior, some_latent
from tiny import build


def model_with(kind: str, **options: Any) -> FLDD:
    """Two coordinates of three classes, and a latent that is not fitted but filled."""
    model = build(latents=partial(KINDS[kind], size=SIZES[kind]), **options)
    randomise(model, 0.3)
    fill(table_latent(model))
    return model


def table_latent(model: FLDD) -> TableLatent:
    (latent,) = model.latents
    assert isinstance(latent, TableLatent)
    return latent


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", PROCESSES)
def test_bound_with_a_latent_is_one(name: str, kind: str) -> None:
    """-log sum_c p(c) p(x|c) <= KL(q(c|x) || p(c)) + sum_c q(c|x) NELBO(x|c), all of it enumerated."""
    num_steps = 2
    model = model_with(kind, num_steps=num_steps, forward_process=PROCESSES[name])
    latent = table_latent(model)
    x = all_states(3, 2)
    states = all_states(model.forward_process.num_states, 2)
    p = torch.zeros(len(states), dtype=torch.float64)
    process, reverse = model.forward_process, model.reverse
    bound = latent.posterior(x).kl().double()
    values, weights = joint(latent, x)
    q = weights / weights.sum(1, keepdim=True)
    for i, (c, p_c) in enumerate(zip(*prior(latent), strict=True)):
        p += p_c * exact_log_likelihood(process, reverse, num_steps, (c.unsqueeze(0),)).detach().exp()
        given = (c.expand(len(x), -1),)
        bound += q[:, i] * sum(exact_step_kl(process, reverse, x, t, given) for t in range(1, num_steps + 1))
    assert len(values) > 1
    assert float(p.sum()) == pytest.approx(1.0, abs=1e-5)
    is_data = (states < 3).all(1)
    assert (bound >= -p[is_data].log() - 1e-5).all()


@pytest.mark.parametrize("kind", KINDS)
def test_one_step_and_an_untrained_denoiser_are_the_latent_alone(kind: str) -> None:
    """T = 1: the bound is an equality, as q(c|x) is the posterior of the very model."""
    model = build(num_steps=1, forward_process=AbsorbingProcess, latents=partial(KINDS[kind], size=SIZES[kind]))
    latent = table_latent(model)
    fill(latent)
    x = all_states(3, 2)
    values, weights = joint(latent, x)
    q = weights / weights.sum(1, keepdim=True)
    bound = latent.posterior(x).kl().double()
    for i, c in enumerate(values):
        given = (c.expand(len(x), -1),)
        bound += q[:, i] * exact_step_kl(model.forward_process, model.reverse, x, 1, given).detach()
    torch.testing.assert_close(bound, -weights.sum(1).log(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(latent.posterior(x).nll().double(), -weights.sum(1).log(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_posterior_and_prior_are_those_of_the_tables(kind: str, padded: bool) -> None:
    """With more parts and coordinates than two, and parts of unequal lengths; the last class may be PAD."""
    spec = Spec(3, (3,) if kind == "mixture" else (5,), 2, padded=padded)
    latent = some_latent(kind, spec)
    if kind == "chain":
        latent = type(latent)(spec, 2, SIZES[kind])  # parts of 2, 2 and 1
        fill(latent)
    x = all_states(3, spec.num_dims)[::7]
    values, weights = joint(latent, x)
    q = weights / weights.sum(1, keepdim=True)
    torch.testing.assert_close(latent.posterior(x).nll().double(), -weights.sum(1).log(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        latent.posterior(x).kl().double(), (q * (q / prior(latent)[1]).log()).sum(1), atol=1e-5, rtol=1e-4
    )
    generator = torch.Generator().manual_seed(0)
    n = 4_000
    for i in range(0, len(x), 5):
        uniform = torch.rand(n, latent.num_parts, dtype=torch.float64, generator=generator)
        drawn = latent.posterior(x[i].expand(n, -1)).draw(uniform)
        torch.testing.assert_close(_frequencies(drawn, values), q[i], atol=0.035, rtol=0)
        zero = torch.zeros(latent.size).double()
        marginals = [zero.index_add(0, values[:, j], q[i]) for j in range(latent.num_parts)]
        assert torch.equal(latent.posterior(x[i : i + 1]).likely()[0], torch.stack(marginals).argmax(1))
    drawn = latent.sample(20_000, generator)
    torch.testing.assert_close(_frequencies(drawn, values), prior(latent)[1], atol=0.02, rtol=0)
    c = values[:4]
    of_c = latent.log_conditional_of(c)
    assert of_c.shape == (len(c), *spec.shape, 3)
    for i in range(spec.num_dims):
        expected = latent.log_conditional[i, :, c[:, i * latent.num_parts // spec.num_dims]].T
        assert torch.equal(of_c[:, i], expected)


def _frequencies(drawn: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """How often each of ``(n, m)`` values is among ``(N, m)``; none other may be."""
    same = (drawn.unsqueeze(1) == values).all(-1)
    assert same.any(1).all()
    return same.double().mean(0)


@pytest.mark.parametrize("kind", KINDS)
def test_equal_uniforms_give_equal_latents_in_any_batch(kind: str) -> None:
    latent = some_latent(kind, Spec(3, (3,), 2))
    x = all_states(3, 3)
    uniform = torch.rand(len(x), latent.num_parts, dtype=torch.float64)
    together = latent.posterior(x).draw(uniform)
    apart = torch.cat([latent.posterior(x[i : i + 1]).draw(uniform[i : i + 1]) for i in range(len(x))])
    assert torch.equal(together, apart)


@pytest.mark.parametrize("kind", KINDS)
def test_mixed_precision_leaves_a_latent_as_it_is(kind: str) -> None:
    latent, x = some_latent(kind, Spec(3, (3,), 2)), all_states(3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = latent.posterior(x).kl(), latent.posterior(x).nll()
    assert torch.equal(mixed[0], latent.posterior(x).kl())
    assert torch.equal(mixed[1], latent.posterior(x).nll())


def test_what_cannot_be() -> None:
    for kind in KINDS:
        with pytest.raises(FLDDError, match=r"(size|smoothing) of"):
            KINDS[kind](Spec(3, (2,), 2), size=1)
        with pytest.raises(FLDDError, match="more than 256 MiB"):
            KINDS[kind](Spec(50_257, (1_024,), 2), size=256)
        with pytest.raises(FLDDError, match="too few to fit a latent"):
            KINDS[kind](Spec(3, (2,), 2), size=4).fit(all_states(3, 2)[:1])
        assert KINDS[kind](Spec(3, (2,), 2), size=4).fit(all_states(3, 2))["values"] == 1  # nine examples
