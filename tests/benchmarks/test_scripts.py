"""Benchmarks are run by hand and rarely: here each is imported, and what has no data to wait for runs in the small."""

from __future__ import annotations

import importlib
import sys
from functools import partial
from pathlib import Path

import collapse
import digits
import estimators
import pytest
import torch
import yaml
from common import kl_shares, read_rows, run_missing
from handwritten import PairLatent
from lightning.pytorch import seed_everything
from other_estimators import entropies, mean_weights
from sources import MarkovChain, XORBlocks

from fldd_lightning import FLDD, MLP, DirectReverse, LearnedMaskProcess, MixtureLatent, Spec

FOLDER = Path(__file__).parents[2] / "benchmarks"
NAMES = [file.stem for file in FOLDER.glob("*.py")]


@pytest.mark.parametrize("name", NAMES)
def test_what_a_benchmark_uses_is_there(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    module = importlib.import_module(name)
    if hasattr(module, "main"):
        with pytest.raises(SystemExit) as stop:
            module.main()
        assert stop.value.code == 0


def test_runs_that_have_a_row_are_not_repeated(tmp_path: Path) -> None:
    path, calls = tmp_path / "rows.csv", []

    def run(seed: int, steps: int) -> dict[str, object]:
        calls.append((seed, steps))
        if calls == [(0, 5), (1, 5)]:
            raise KeyboardInterrupt
        return {"seed": seed, "steps": steps, "gap": 0.5}

    keys = [{"seed": seed, "steps": 5} for seed in range(3)]
    with pytest.raises(KeyboardInterrupt):
        run_missing(path, keys, run)
    run_missing(path, [*keys, {"seed": 0, "steps": 6}], run)
    assert calls == [(0, 5), (1, 5), (1, 5), (2, 5), (0, 6)]
    assert path.read_text().splitlines() == ["seed,steps,gap", "0,5,0.5", "1,5,0.5", "2,5,0.5", "0,6,0.5"]


@pytest.mark.slow
def test_digits_run_through_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = yaml.safe_load((digits.CONFIGS / "digits.yaml").read_text())
    config["model"]["init_args"]["denoiser"]["init_args"]["width"] = 16
    (tmp_path / "digits.yaml").write_text(yaml.safe_dump(config))
    output = tmp_path / "rows.csv"
    monkeypatch.setattr(digits, "CONFIGS", tmp_path)
    options = ["--processes", "learned", "--num-steps", "2", "--seeds", "0", "--steps", "2", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", ["digits", *options])
    digits.main()
    (row,) = read_rows(output)
    assert (row["process"], row["num_steps"], row["seed"]) == ("learned", "2", "0")
    assert 0 < float(row["nelbo"]) < 64
    assert row["best_step"] in ("1", "2")
    assert int(row["numbers_training"]) > int(row["numbers_sampling"]) > 0
    assert row["training_gflop"]


def xor_model() -> tuple[XORBlocks, FLDD]:
    """A model whose schedule depends on x, and whose denoiser says something."""
    seed_everything(0, verbose=False)
    data = XORBlocks(num_train=64, num_held=64)
    network = partial(MLP, width=16)
    process = partial(collapse.MASK, network=network)
    model = FLDD(data.num_classes, data.shape, process, network, latents=MixtureLatent)
    for p in model.parameters():
        p.data.add_(0.1 * torch.randn_like(p))
    return data, model


@pytest.mark.parametrize("name", estimators.ESTIMATORS)
def test_every_estimator_gives_a_gradient(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimators, "PASSES", 64)
    data, model = xor_model()
    meter = estimators.Meter(model, data.splits["train"].x.long(), *estimators.ESTIMATORS[name])
    meter.gradient(0)  # of REINFORCE, the first sets the mean and has no score
    gradient = meter.gradient(1)
    assert len(gradient) == sum(p.numel() for p in model.forward_process.parameters())
    assert gradient.isfinite().all()
    assert gradient.any()


def test_what_other_estimators_ask_of_a_masked_step_is_what_all_states_say() -> None:
    data, model = xor_model()
    process = model.forward_process
    assert isinstance(process, LearnedMaskProcess)
    x = data.splits["train"].x[:8].long()
    t = torch.arange(8) % 4 + 1
    condition = (torch.zeros(8, 1, dtype=torch.long),)
    step, dense = process.step(x, t, condition), process.dense_step(x, t, condition)
    u_t = dense.log_u_t.exp()
    torch.testing.assert_close(mean_weights(step), u_t)
    torch.testing.assert_close(mean_weights(dense), u_t)
    # of states that z_t cannot be in, nobody asks
    torch.testing.assert_close(u_t * entropies(step), u_t * entropies(dense))


@pytest.mark.parametrize("problem", collapse.BY_HAND)
def test_processes_by_hand_have_a_bound(problem: str) -> None:
    case = collapse.CASES[problem]
    data = case.make(num_train=4, num_held=4)
    process = partial(collapse.BY_HAND[problem], seed=0)
    model = FLDD(data.num_classes, data.shape, process, partial(MLP, width=16), num_steps=case.num_steps)
    assert isinstance(model.reverse, DirectReverse)
    batch = {"x": data.splits["train"].x, "index": torch.arange(4)}
    bound = float(model.evaluate([batch])["nelbo"])
    assert 0 < bound < float("inf")
    z_t = torch.rand(4, *data.shape, model.forward_process.num_states).softmax(-1)
    times = torch.full((4,), 2), torch.full((4,), 1)
    halves = [model.forward_process.posterior_logits(w, *times) for w in (z_t, z_t.flip(0))]
    whole = model.forward_process.posterior_logits((z_t + z_t.flip(0)) / 2, *times)
    torch.testing.assert_close(whole, (halves[0] + halves[1]) / 2)  # linear, as estimators over relaxed states need


def test_pairs_say_what_neighbours_are_like() -> None:
    data = MarkovChain(num_classes=4, length=16, num_train=2_000, num_held=4)
    found = PairLatent(Spec(4, (16,), 2)).fit(data.splits["train"].x.long())
    assert found["values"] == 16
    assert data.entropy - 1 < found["nll"] < found["nll_marginals"] - 1


def test_shares_of_the_bound_are_of_the_steps_and_then_of_the_latent() -> None:
    logged = {"test/nelbo": 8.0, "test/kl_t1": 2.0, "test/kl_t2": 4.0, "test/kl_mixture": 2.0}
    assert kl_shares(logged, 2) == "0.25 0.50 0.25"


def test_a_process_by_hand_that_nobody_has_written_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["collapse", "--problems", "xor", "--recipes", "oracle"])
    with pytest.raises(SystemExit):
        collapse.main()
    assert "nobody has written a process by hand for xor" in capsys.readouterr().err
