"""The benchmark of speed measures what it says, in the small, and the page quotes what it found."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import speed
import torch

from conftest import small_mlp
from fldd_lightning import FLDD, MixtureLatent

ROOT = Path(__file__).parents[2]


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        speed, "CONFIGS", {"tiny": (partial(speed.learned, 3, (4,), small_mlp, latents=MixtureLatent), 8)}
    )


def test_three_forms_of_the_coupling_are_the_same() -> None:
    log_u_s, log_u_t = torch.randn(2, 10, 6, dtype=torch.float64).log_softmax(-1)
    z = torch.randint(6, (10,))
    q, entropy = speed.by_closed_form(log_u_s, log_u_t, z)
    for form in (speed.by_matrix, speed.by_loop):
        other, other_entropy = form(log_u_s, log_u_t, z)
        torch.testing.assert_close(other, q)
        torch.testing.assert_close(other_entropy, entropy)


def test_a_step_is_compared_with_its_networks(tiny: None) -> None:
    found = speed.measured_step("tiny", "cpu", 3)
    assert found["step_over_networks"] > 1
    assert found["operations"] > found["operations_of_networks"] > 20


def test_a_step_of_fit_is_compared_with_one_of_a_loop(tiny: None) -> None:
    found = speed.measured_fit("tiny", 3, 2)
    assert found["fit_over_step"] > 1
    assert found["fit_milliseconds"] > 0


def test_samples_are_compared_with_passes(tiny: None) -> None:
    model: FLDD = speed.made("tiny", "cpu")[0].eval()
    assert speed.sampling(model, 4, 3, "cpu")["ratio"] > 1


def test_the_page_has_the_numbers() -> None:
    found = json.loads((ROOT / "benchmarks" / "results" / "speed.json").read_text())
    assert speed.table(found) in (ROOT / "docs" / "results.md").read_text()
