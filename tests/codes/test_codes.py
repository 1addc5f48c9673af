"""Every code against enumeration: posterior, prior, likelihood, and the bound it enters."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from conftest import PROCESSES, all_states, exact_log_likelihood, exact_step_kl, randomise
from fldd_lightning import FLDD, FLDDError
from fldd_lightning.forward import AbsorbingProcess
from fldd_lightning.problem import Problem
from some_codes import KINDS, SIZES, fill, joint, prior, some_code
from test_module import build


def model_with(kind: str, **options: Any) -> FLDD:
    """Two coordinates of three classes, and a code that is not fitted but filled."""
    model = build(code=partial(KINDS[kind], size=SIZES[kind]), **options)
    randomise(model, 0.3)
    assert model.code is not None
    fill(model.code)
    return model


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", PROCESSES)
def test_bound_with_a_code_is_one(name: str, kind: str) -> None:
    """-log sum_c p(c) p(x|c) <= KL(q(c|x) || p(c)) + sum_c q(c|x) NELBO(x|c), all of it enumerated."""
    num_steps = 2
    model = model_with(kind, num_steps=num_steps, forward_process=PROCESSES[name])
    code = model.code
    assert code is not None
    x = all_states(3, 2)
    states = all_states(model.forward_process.num_states, 2)
    p = torch.zeros(len(states), dtype=torch.float64)
    bound = code.posterior(x).kl().double()
    codes, weights = joint(code, x)
    q = weights / weights.sum(1, keepdim=True)
    for i, (c, p_c) in enumerate(zip(*prior(code), strict=True)):
        process, reverse = given(model, c)
        p += p_c * exact_log_likelihood(process, reverse, num_steps).detach().exp()
        bound += q[:, i] * sum(exact_step_kl(process, reverse, x, t) for t in range(1, num_steps + 1))
    assert len(codes) > 1
    assert float(p.sum()) == pytest.approx(1.0, abs=1e-5)
    is_data = (states < 3).all(1)
    assert (bound >= -p[is_data].log() - 1e-5).all()


def given(model: FLDD, c: torch.Tensor) -> tuple[Any, Any]:
    """Forward and reverse process with the code held at c, ``(m,)``."""

    class Given:
        def __init__(self, inner: Any) -> None:
            self.inner = inner

        def __getattr__(self, name: str) -> Any:
            value = getattr(self.inner, name)
            if name in ("dense_transition", "log_prob"):
                return lambda z, t: value(z, t, condition=c.expand(len(z), -1))
            return value

    return Given(model.forward_process), Given(model.reverse)


@pytest.mark.parametrize("kind", KINDS)
def test_one_step_and_an_untrained_denoiser_are_the_code_alone(kind: str) -> None:
    """T = 1: the bound is an equality, as q(c|x) is the posterior of the very model."""
    model = build(num_steps=1, forward_process=AbsorbingProcess, code=partial(KINDS[kind], size=SIZES[kind]))
    code = model.code
    assert code is not None
    fill(code)
    x = all_states(3, 2)
    codes, weights = joint(code, x)
    q = weights / weights.sum(1, keepdim=True)
    bound = code.posterior(x).kl().double()
    for i, c in enumerate(codes):
        bound += q[:, i] * exact_step_kl(*given(model, c), x, 1).detach()
    torch.testing.assert_close(bound, -weights.sum(1).log(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(code.posterior(x).nll().double(), -weights.sum(1).log(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_posterior_and_prior_are_those_of_the_tables(kind: str, padded: bool) -> None:
    """With more parts and coordinates than two, and parts of unequal lengths; the last class may be PAD."""
    problem = Problem(3, (3,) if kind == "mixture" else (5,), 2, padded=padded)
    code = some_code(kind, problem)
    if kind == "chain":
        code = type(code)(problem, 2, SIZES[kind])  # parts of 2, 2 and 1
        fill(code)
    x = all_states(3, problem.num_dims)[::7]
    codes, weights = joint(code, x)
    q = weights / weights.sum(1, keepdim=True)
    torch.testing.assert_close(code.posterior(x).nll().double(), -weights.sum(1).log(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        code.posterior(x).kl().double(), (q * (q / prior(code)[1]).log()).sum(1), atol=1e-5, rtol=1e-4
    )
    generator = torch.Generator().manual_seed(0)
    n = 4_000
    for i in range(0, len(x), 5):
        uniform = torch.rand(n, code.num_parts, dtype=torch.float64, generator=generator)
        drawn = code.posterior(x[i].expand(n, -1)).draw(uniform)
        torch.testing.assert_close(_frequencies(drawn, codes), q[i], atol=0.035, rtol=0)
        marginals = [torch.zeros(code.size).double().index_add(0, codes[:, j], q[i]) for j in range(code.num_parts)]
        assert torch.equal(code.posterior(x[i : i + 1]).likely()[0], torch.stack(marginals).argmax(1))
    drawn = code.sample(20_000, generator)
    torch.testing.assert_close(_frequencies(drawn, codes), prior(code)[1], atol=0.02, rtol=0)
    c = codes[:4]
    of_c = code.log_conditional_of(c)
    assert of_c.shape == (len(c), *problem.shape, 3)
    for i in range(problem.num_dims):
        expected = code.log_conditional[i, :, c[:, i * code.num_parts // problem.num_dims]].T
        assert torch.equal(of_c[:, i], expected)


def _frequencies(drawn: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """How often each of ``(n, m)`` codes is among ``(N, m)``; none other may be."""
    same = (drawn.unsqueeze(1) == codes).all(-1)
    assert same.any(1).all()
    return same.double().mean(0)


@pytest.mark.parametrize("kind", KINDS)
def test_equal_uniforms_give_equal_codes_in_any_batch(kind: str) -> None:
    code = some_code(kind, Problem(3, (3,), 2))
    x = all_states(3, 3)
    uniform = torch.rand(len(x), code.num_parts, dtype=torch.float64)
    together = code.posterior(x).draw(uniform)
    apart = torch.cat([code.posterior(x[i : i + 1]).draw(uniform[i : i + 1]) for i in range(len(x))])
    assert torch.equal(together, apart)


@pytest.mark.parametrize("kind", KINDS)
def test_mixed_precision_leaves_a_code_as_it_is(kind: str) -> None:
    code, x = some_code(kind, Problem(3, (3,), 2)), all_states(3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = code.posterior(x).kl(), code.posterior(x).nll()
    assert torch.equal(mixed[0], code.posterior(x).kl())
    assert torch.equal(mixed[1], code.posterior(x).nll())


def test_what_cannot_be() -> None:
    for kind in KINDS:
        with pytest.raises(FLDDError, match="size of at least 2"):
            KINDS[kind](Problem(3, (2,), 2), size=1)
        with pytest.raises(FLDDError, match="more than 256 MiB"):
            KINDS[kind](Problem(50_257, (1_024,), 2), size=256)
        with pytest.raises(FLDDError, match="too few to fit a code"):
            KINDS[kind](Problem(3, (2,), 2), size=4).fit(all_states(3, 2)[:1])
        assert KINDS[kind](Problem(3, (2,), 2), size=4).fit(all_states(3, 2))["codes"] == 1  # nine examples
