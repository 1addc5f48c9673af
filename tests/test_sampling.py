from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
from scipy.stats import chisquare

from conftest import PROCESSES, all_states, exact_log_likelihood, make
from fldd_lightning.categorical import sample_categorical, sample_from_uniform
from fldd_lightning.errors import FLDDError
from fldd_lightning.sampling import ancestral_sample
from fldd_lightning.spec import Spec


@pytest.mark.parametrize("name", PROCESSES)
def test_frequencies_match_the_model(name: str) -> None:
    process, reverse = make(name, Spec(3, (2,), 3))
    n = 20_000
    x = ancestral_sample(process, reverse, n, torch.Generator().manual_seed(0))
    assert int(x.max()) < 3
    data = all_states(3, 2)
    states = all_states(process.num_states, 2)
    p = exact_log_likelihood(process, reverse, 3).detach()[(states < 3).all(1)].exp()
    counts = torch.bincount(x[:, 0] * 3 + x[:, 1], minlength=len(data))
    keep = p * n > 5
    expected = torch.cat([p[keep] * n, (p[~keep] * n).sum()[None] + 1e-9])
    observed = torch.cat([counts[keep], counts[~keep].sum()[None]]).double()
    assert chisquare(observed, expected * observed.sum() / expected.sum()).pvalue > 1e-3


def test_trajectory_and_seed() -> None:
    process, reverse = make("learned_mask", Spec(3, (2, 2), 4))
    states = ancestral_sample(process, reverse, 5, torch.Generator().manual_seed(3), trajectory=True)
    again = ancestral_sample(process, reverse, 5, torch.Generator().manual_seed(3))
    assert states.shape == (5, 5, 2, 2)
    assert (states[0] == 3).all()  # the prior is MASK
    assert torch.equal(states[-1], again)
    kept = states[:-1] != 3
    assert (states[1:][kept] == states[:-1][kept]).all()  # unmasked coordinates carry over


def test_other_number_of_steps_is_an_error() -> None:
    process, reverse = make("uniform", Spec(3, (2,), 4))
    with pytest.raises(FLDDError, match="trained with T=4"):
        ancestral_sample(process, reverse, 2, torch.Generator(), num_steps=8)


@pytest.mark.parametrize("draw", ["gumbel", "inverse"])
def test_categorical_frequencies(draw: str) -> None:
    p = torch.tensor([0.5, 0.0, 0.3, 0.2, 0.0], dtype=torch.float64)
    log_p = p.log().expand(50_000, -1)
    generator = torch.Generator().manual_seed(0)
    if draw == "gumbel":
        z = sample_categorical(log_p, generator)
    else:
        z = sample_from_uniform(log_p, torch.rand(50_000, dtype=torch.float64, generator=generator))
    counts = torch.bincount(z, minlength=5)
    assert counts[1] == counts[4] == 0
    keep = p > 0
    assert chisquare(counts[keep], (p.double() * 50_000)[keep]).pvalue > 1e-3


def test_draws_are_the_same_in_chunks() -> None:
    log_p = torch.randn(7, 3, 11)
    whole = sample_categorical(log_p, torch.Generator().manual_seed(0))
    with patch("fldd_lightning.categorical._CHUNK", 40):
        assert torch.equal(sample_categorical(log_p, torch.Generator().manual_seed(0)), whole)
    assert sample_categorical(log_p[0, 0], torch.Generator().manual_seed(0)).shape == ()


def test_inverse_never_leaves_the_support() -> None:
    log_p = torch.tensor([[0.3, 0.7, 0.0]]).log()
    for u in (0.0, 0.3, 1 - 1e-16):
        assert int(sample_from_uniform(log_p, torch.tensor([u], dtype=torch.float64))) < 2
