"""The reverse processes: the parts of a masked one against the definition, and which of them fits which process."""

from __future__ import annotations

import math
from functools import partial
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import logsigmoid

from conftest import PROCESSES, all_states, make, small_mlp
from fldd_lightning.categorical import one_hot
from fldd_lightning.errors import FLDDError
from fldd_lightning.forward import MaskProcess
from fldd_lightning.reverse import DirectReverse, MaskedReverse, PredictingReverse, _LogProbAt
from fldd_lightning.spec import Spec


def dense(logits: torch.Tensor, odds: torch.Tensor, num_classes: int, pad: int | None) -> torch.Tensor:
    """The definition in probabilities, ``(rows, K + 1)``, with every tensor in full."""
    weights = logits[..., :num_classes].exp()
    if pad is not None:
        weights = weights.masked_fill(torch.arange(num_classes) == pad, 0.0)
    values = weights / weights.sum(-1, keepdim=True) * (1 - odds.sigmoid()).unsqueeze(-1)
    p = torch.cat([values, odds.sigmoid().unsqueeze(-1)], -1)
    return torch.where(p > 0, torch.where(p > 0, p, 1.0).log(), -math.inf)


@settings(max_examples=100, deadline=None)
@given(
    rows=st.integers(1, 7),
    num_classes=st.integers(3, 8),
    chunk=st.integers(1, 80),
    pad=st.sampled_from([None, 1]),
    corrects=st.booleans(),
    scale=st.sampled_from([1.0, 50.0]),
    seed=st.integers(0, 2**31),
)
def test_log_prob_at_is_the_definition(
    rows: int, num_classes: int, chunk: int, pad: int | None, corrects: bool, scale: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    leaf = scale * torch.randn(rows, num_classes + corrects, generator=generator, dtype=torch.float64)
    index = torch.randint(num_classes + 1, (rows,), generator=generator)
    odds = torch.randn(rows, generator=generator, dtype=torch.float64)
    upstream = torch.randn(rows, generator=generator, dtype=torch.float64)
    is_mask = index == num_classes
    results = []
    for way in ("in two", "joint", "dense"):
        logits, log_odds = leaf.clone().requires_grad_(), odds.clone().requires_grad_()
        with patch("fldd_lightning.reverse._CHUNK", chunk):
            if way == "in two":
                values, _ = _LogProbAt.apply(logits, index.masked_fill(is_mask, 0), num_classes, pad)
                out = torch.where(is_mask, logsigmoid(log_odds), values + logsigmoid(-log_odds))
            elif way == "joint":
                made = MaskedReverse.__new__(MaskedReverse)
                made.__dict__.update(num_classes=num_classes, pad=pad)
                out = made._joint(logits, log_odds).log_softmax(-1).gather(-1, index[:, None])[:, 0]
            else:
                out = dense(logits, log_odds, num_classes, pad).gather(-1, index[:, None])[:, 0]
            live = out > -math.inf
            gradients = torch.autograd.grad(torch.where(live, out, 0.0).mul(upstream).sum(), (logits, log_odds))
        results.append((out.detach(), *gradients))
    for actual in results[:2]:
        torch.testing.assert_close(actual, results[2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype: torch.dtype) -> None:
    logits = (3 * torch.randn(4, 5000)).to(dtype).requires_grad_()
    index = torch.tensor([0, 7, 4999, 1])
    out, _ = _LogProbAt.apply(logits, index, 5000, None)
    assert out.dtype == torch.float32
    expected = logits.detach().float().log_softmax(-1).gather(-1, index[:, None])[:, 0]
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
    out.sum().backward()
    assert logits.grad is not None
    assert logits.grad.dtype == dtype


@pytest.mark.parametrize(("name", "kind"), [("absorbing", MaskedReverse), ("uniform", PredictingReverse)])
def test_a_time_independent_denoiser_is_not_told_the_step(name: str, kind: type) -> None:
    for is_told in (True, False):
        _, reverse = make(name, Spec(3, (2,), 4), partial(kind, time_independent=not is_told))
        z = all_states(3 + int(name == "absorbing"), 2)
        said = [reverse.logits(z, torch.full((len(z),), t)) for t in (1, 4)]
        assert torch.equal(*said) != is_told


@pytest.mark.parametrize("name", PROCESSES)
def test_weights_of_one_state_are_that_state(name: str) -> None:
    process, reverse = make(name, Spec(3, (2,), 3))
    z = all_states(process.num_states, 2)
    t = torch.full((len(z),), 2)
    at_mask = z == 3 if isinstance(reverse, MaskedReverse) else torch.ones_like(z, dtype=torch.bool)
    weights = one_hot(z, process.num_states)
    torch.testing.assert_close(reverse.log_prob(weights, t)[at_mask], reverse.log_prob(z, t)[at_mask])


@pytest.mark.parametrize("name", PROCESSES)
def test_only_what_fits_a_process_is_taken(name: str) -> None:
    process = PROCESSES[name](Spec(3, (2,), 3))
    masks = isinstance(process, MaskProcess)
    for kind, fits in (
        (MaskedReverse, masks),
        (DirectReverse, not masks),
        (PredictingReverse, not masks and not process.learned),
    ):
        if fits:
            kind(process.spec, process, small_mlp)
        else:
            with pytest.raises(FLDDError, match=r"only masks|MaskedReverse"):
                kind(process.spec, process, small_mlp)


def test_a_fixed_mask_process_predicts_x_and_follows_the_schedule_exactly() -> None:
    process, reverse = make("staggered", Spec(3, (4,), 4))
    assert reverse.network.mix_out.out_features == 4 * 3  # no logit for MASK
    masked = torch.full((2, 4), 3)
    for t in (2, 3, 4):
        stay = reverse.log_prob(masked, torch.full((2,), t))[..., 3].exp()
        torch.testing.assert_close(stay[0], process.log_stay_odds()[t].sigmoid())


def test_the_logit_of_mask_has_its_gradient() -> None:
    logits = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    index = torch.tensor([0, 2, 1, 1, 0])
    torch.autograd.gradcheck(lambda each: _LogProbAt.apply(each, index, 3, None), logits)
