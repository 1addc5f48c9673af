"""Temperature, top-p and the best of n, with every decoding, from Python and the command line."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from conftest import PROCESSES, make, randomise, small_mlp
from fldd_lightning import (
    AbsorbingProcess,
    Ancestral,
    ConfidentFirst,
    ExactlyN,
    FLDDError,
    GreedyEnd,
    LearnedMaskProcess,
    Spec,
)
from fldd_lightning.cli import main
from tiny import build, trainer


def test_temperature_and_top_p_by_hand() -> None:
    log_p = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    cold = Ancestral(temperature=0.5).sharpened(log_p).exp()
    torch.testing.assert_close(cold, log_p.exp() ** 2 / (log_p.exp() ** 2).sum())
    for top_p, kept in ((0.01, 1), (0.49, 1), (0.51, 2), (0.79, 2), (0.81, 3), (1.0, 4)):
        p = Ancestral(top_p=top_p).sharpened(log_p[[2, 0, 3, 1]]).exp()[[1, 3, 0, 2]]
        expected = log_p.exp() * (torch.arange(4) < kept)
        torch.testing.assert_close(p, expected / expected.sum())
    assert torch.equal(Ancestral().sharpened(log_p), log_p)


@pytest.mark.parametrize("name", PROCESSES)
def test_a_schedule_stays_what_it_is(name: str) -> None:
    """What a coordinate turns to is sharpened, how often it turns is not; in the last step all is sharpened."""
    process, reverse = make(name, Spec(3, (1,), 2))
    n, t = 8_000, torch.full((8_000,), 2)
    z = torch.full((n, 1), process.num_states - 1)  # MASK, where there is one
    p = reverse.log_prob(z[:1], t[:1])[0, 0].exp().detach().double()
    drawn = Ancestral(temperature=0.5).draw(reverse, z, 2, torch.Generator().manual_seed(0), ())
    squares = p[:-1] ** 2 / (p[:-1] ** 2).sum() * (1 - p[-1])  # of what it turns to
    expected = torch.cat([squares, p[-1:]])
    live = expected > 1e-9
    counts = drawn.flatten().bincount(minlength=len(p))
    assert counts[~live].sum() == 0
    assert chisquare(counts[live], n * expected[live] / expected[live].sum()).pvalue > 1e-3
    last = reverse.log_prob(z[:1], t[:1] - 1)[0, 0].exp().detach().double() ** 2
    live = last > 0
    counts = (
        Ancestral(temperature=0.5)
        .draw(reverse, z, 1, torch.Generator().manual_seed(1), ())
        .flatten()
        .bincount(minlength=len(p))
    )
    assert counts[~live].sum() == 0
    assert chisquare(counts[live], n * last[live] / last[live].sum()).pvalue > 1e-3


@pytest.mark.parametrize("decoding", [Ancestral, GreedyEnd, ExactlyN, ConfidentFirst])
def test_every_decoding_takes_them(decoding: Any) -> None:
    model = build(forward_process=AbsorbingProcess, shape=(4,), num_steps=3)
    randomise(model.reverse, 1.0)
    kinds = [
        len(model.sample(300, decoding=decoding(**options)).unique(dim=0))
        for options in ({}, {"temperature": 0.2}, {"top_p": 1e-6}, {"temperature": 1e3})
    ]
    assert kinds[2] <= kinds[1] < kinds[0]
    assert kinds[0] <= kinds[3] or decoding is GreedyEnd
    assert decoding().at(0.5).temperature == 0.5
    assert decoding(top_p=0.9).at(0.5).top_p == 0.9
    assert "temperature=0.5, top_p=0.9" in decoding(temperature=0.5, top_p=0.9).configuration()


def test_no_control_changes_nothing() -> None:
    model = build(forward_process=partial(LearnedMaskProcess, network=small_mlp))
    randomise(model)
    assert torch.equal(model.sample(50), model.sample(50, decoding=Ancestral(temperature=1.0, top_p=1.0), best_of=1))


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.1}])
def test_wrong_controls_are_named(options: Any) -> None:
    with pytest.raises(FLDDError, match=next(iter(options))):
        ExactlyN(**options)
    with pytest.raises(FLDDError, match="temperature"):
        Ancestral().at(0.0)


@pytest.mark.parametrize("trajectory", [False, True])
def test_the_best_of_n_has_the_lowest_bound(trajectory: bool) -> None:
    model = build(forward_process=AbsorbingProcess, shape=(4,), num_steps=2)
    randomise(model.reverse, 1.0)
    with patch.object(type(model), "nelbo", autospec=True, side_effect=type(model).nelbo) as bound:
        best = model.sample(40, best_of=5, trajectory=trajectory)
    candidates = [call.args[1]["x"] for call in bound.call_args_list]
    assert len(candidates) == 5
    assert not torch.equal(candidates[0], candidates[1])
    values = torch.stack([model.nelbo(x, draws=4).nelbo for x in candidates])  # (5, 40)
    expected = torch.stack(candidates)[values.argmin(0), torch.arange(40)]
    assert torch.equal(best[-1] if trajectory else best, expected)
    assert best.shape == ((3, 40, 4) if trajectory else (40, 4))
    if trajectory:
        assert ((best[1] == best[2]) | (best[1] == 3)).all()  # states of one sample
    with pytest.raises(FLDDError, match="best_of of"):
        model.sample(2, best_of=0)


def test_controls_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = build(forward_process=AbsorbingProcess, shape=(6,))
    randomise(model.reverse, 1.0)
    run = trainer(tmp_path)
    run.strategy.connect(model)
    run.save_checkpoint(tmp_path / "model.ckpt")
    start = ["sample", "--ckpt_path", str(tmp_path / "model.ckpt"), "--output", str(tmp_path / "s")]
    controls = ["--decoding", "GreedyEnd", "--decoding.temperature", "0.5", "--decoding.top_p", "0.9", "--best_of", "3"]
    assert main([*start, "--num_samples", "30", *controls]) in (0, None)
    expected = model.sample(30, decoding=GreedyEnd(temperature=0.5, top_p=0.9), best_of=3)
    assert np.array_equal(np.load(tmp_path / "s.npy"), expected)
    assert main([*start, "--decoding", "Ancestral", "--decoding.temperature", "0"]) not in (0, None)
    assert "error: temperature of Ancestral is 0" in capsys.readouterr().err
