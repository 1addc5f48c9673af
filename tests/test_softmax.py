"""log_prob_at against the definition: values, gradients, precisions, chunks."""

from __future__ import annotations

import math
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import logsigmoid

from fldd_lightning.softmax import log_prob_at, masked_logits


def dense(logits: torch.Tensor, index: torch.Tensor, odds: torch.Tensor, excluded: int | None) -> torch.Tensor:
    """The definition in probabilities, with every tensor in full."""
    weights = logits[..., :-1].exp()
    if excluded is not None:
        weights = weights.masked_fill(torch.arange(weights.shape[-1]) == excluded, 0.0)
    total = weights.sum(-1, keepdim=True)
    mask = total * (logits[..., -1:] + odds.unsqueeze(-1)).exp()
    p = (torch.cat([weights, mask], -1) / (total + mask)).gather(-1, index)
    return torch.where(p > 0, torch.where(p > 0, p, 1.0).log(), -math.inf)


def in_two(logits: torch.Tensor, index: torch.Tensor, odds: torch.Tensor, excluded: int | None) -> torch.Tensor:
    """Of MASK and of the data values apart."""
    is_mask = index == logits.shape[-1] - 1
    values, mask = log_prob_at(logits, index.masked_fill(is_mask, 0), excluded)
    mask = (mask + odds).unsqueeze(-1)
    return torch.where(is_mask, logsigmoid(mask), values + logsigmoid(-mask))


def joint(logits: torch.Tensor, index: torch.Tensor, odds: torch.Tensor, excluded: int | None) -> torch.Tensor:
    """Of all states at once."""
    return masked_logits(logits, odds, excluded).log_softmax(-1).gather(-1, index)


@settings(max_examples=100, deadline=None)
@given(
    rows=st.integers(1, 7),
    num_states=st.integers(3, 9),
    m=st.integers(1, 3),
    chunk=st.integers(1, 80),
    excluded=st.sampled_from([None, 1]),
    scale=st.sampled_from([1.0, 50.0]),
    seed=st.integers(0, 2**31),
)
def test_equals_the_dense_one(
    rows: int, num_states: int, m: int, chunk: int, excluded: int | None, scale: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    leaf = scale * torch.randn(rows, 2, num_states, generator=generator, dtype=torch.float64)
    index = torch.randint(num_states, (rows, 2, m), generator=generator)
    odds = torch.randn(rows, 2, generator=generator, dtype=torch.float64)
    odds[0] = -math.inf  # the last step: MASK is impossible
    upstream = torch.randn(rows, 2, m, generator=generator, dtype=torch.float64)
    results = []
    for function in (in_two, joint, dense):
        logits, log_odds = leaf.clone().requires_grad_(), odds.clone().requires_grad_()
        with patch("fldd_lightning.softmax._CHUNK", chunk):
            out = function(logits, index, log_odds, excluded)
            live = out > -math.inf
            gradients = torch.autograd.grad(torch.where(live, out, 0.0).mul(upstream).sum(), (logits, log_odds))
        results.append((out.detach(), *gradients))
    for actual in results[:2]:
        torch.testing.assert_close(actual, results[2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype: torch.dtype) -> None:
    logits = (3 * torch.randn(4, 5000)).to(dtype).requires_grad_()
    index, odds = torch.tensor([[0, 4999]] * 4), torch.zeros(4)
    out = in_two(logits, index, odds, None)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, dense(logits.detach().float(), index, odds, None), atol=1e-5, rtol=1e-5)
    out.sum().backward()
    assert logits.grad is not None
    assert logits.grad.dtype == dtype
