"""One training for several numbers of steps: bounds, gradients and samples against enumeration; the command line."""

from __future__ import annotations

import csv
from functools import partial
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from conftest import PAIRS, PROCESSES, all_states, exact_log_likelihood, exact_step_kl, randomise, small_mlp
from fldd_lightning import (
    FLDD,
    MLP,
    DigitsDataModule,
    FLDDError,
    MaskedReverse,
    PredictingReverse,
    TrainedMixtureLatent,
    load_model,
)
from fldd_lightning.bound import states_drawn, step_terms
from fldd_lightning.cli import main
from fldd_lightning.estimators import RLOO, Concrete, Reinforce, WarmUp
from fldd_lightning.forward import AbsorbingProcess, ForwardProcess, LearnedMaskProcess, StaggeredProcess
from fldd_lightning.forward.step import even_times
from fldd_lightning.spec import Spec
from joint_training import assert_gradients_of
from tiny import Pairs, build, fit

BUDGETS = [1, 2, 4]


def of_budgets(name: str = "learned_mask", reverse: Any = None, **options: Any) -> FLDD:
    """A model of two ternary coordinates for 1, 2 and 4 steps, with random weights."""
    options = {"num_steps": 2, "budgets": BUDGETS, "auxiliary_weight": 0.0, **options}
    model = build(forward_process=PROCESSES[name], reverse=reverse, **options)
    randomise(model.forward_process)
    if isinstance(model.forward_process, LearnedMaskProcess):  # counts ten times
        model.forward_process.order.data /= 10
    randomise(model.reverse)
    return model


def bound_of(model: FLDD, x: Tensor) -> Tensor:
    process, reverse = model.forward_process, model.reverse
    return sum((exact_step_kl(process, reverse, x, t) for t in range(1, process.num_steps + 1)), torch.zeros(()))


class Written(ForwardProcess):
    """The marginals of another process at some of its times, as a process of that many steps."""

    def __init__(self, of: ForwardProcess, num_steps: int) -> None:
        super().__init__(Spec(of.spec.num_classes, of.spec.shape, num_steps), of.num_states)
        self.times, self.whole = even_times(of.spec.num_steps, num_steps), [of]

    def interior_log_marginals(self, x: Tensor, t: Tensor, condition: tuple[Tensor, ...] = ()) -> Tensor:
        return self.whole[0].log_marginals(x, self.times[t], condition)

    def log_prior(self) -> Tensor:
        return self.whole[0].log_prior()

    def posterior_logits(self, state: Tensor, t: Tensor, s: Tensor) -> Tensor:
        raise NotImplementedError


@pytest.mark.parametrize("num_steps", [1, 2, 3, 4])
@pytest.mark.parametrize("name", [name for name in PROCESSES if name != "d3pm"])
def test_the_bound_is_that_of_the_marginals_written_out(name: str, num_steps: int) -> None:
    """By the states of both processes, and by the few numbers of a process that only masks."""
    model, x = of_budgets(name).with_num_steps(num_steps), all_states(3, 2)
    process, reverse = model.forward_process, model.reverse
    written = Written(process, num_steps)
    for t in range(1, num_steps + 1):
        expected = exact_step_kl(written, reverse, x, t)
        torch.testing.assert_close(exact_step_kl(process, reverse, x, t), expected, atol=1e-5, rtol=1e-4)
        many = x.repeat(2_000, 1)
        step = process.step(many, torch.full((len(many),), t))
        z_t = states_drawn(step, torch.Generator().manual_seed(t))
        kl = step_terms(step, reverse, z_t.unsqueeze(0)).kl[0].view(-1, len(x))
        assert ((kl.mean(0) - expected).abs() <= 5 * kl.std(0) / len(kl) ** 0.5 + 1e-5).all()


@pytest.mark.parametrize("name", ["uniform", "d3pm", "absorbing"])
def test_fixed_processes_are_those_of_fewer_steps(name: str) -> None:
    """Which they are where the times are even: posterior, its mean under a prediction, and the denoiser's start."""
    kind = None if name == "absorbing" else PredictingReverse
    model = of_budgets(name, kind).with_num_steps(2)
    process, other = model.forward_process, PROCESSES[name](Spec(3, (2,), 2))
    x, t = all_states(3, 2), torch.tensor([1, 2]).repeat(5)[:9]
    z_t = torch.randint(process.num_states, x.shape)
    for z in (z_t, x):
        posteriors = [each.dense_step(x, t).posterior.posterior(z) for each in (process, other)]
        possible = process.dense_step(x, t).log_u_t.gather(-1, z.unsqueeze(-1)) > -torch.inf
        torch.testing.assert_close(*(p.where(possible, 0.0) for p in posteriors))
    if kind is not None:
        log_p = torch.randn(9, 2, 3).log_softmax(-1)
        closed = process.posterior_under(log_p, x, t)
        torch.testing.assert_close(closed, other.posterior_under(log_p, x, t))
        torch.testing.assert_close(closed.exp(), ForwardProcess.posterior_under(process, log_p, x, t).exp())
    state = torch.rand(9, 2, process.num_states).softmax(-1)
    started = (
        process.posterior_logits(state, process.timesteps.t[t], process.timesteps.s[t]),
        other.posterior_logits(state, t, t - 1),
    )
    torch.testing.assert_close(*started)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 4])
@pytest.mark.parametrize(("name", "kind"), [pair for pair in PAIRS if pair[0] != "absorbing" or pair[1] is None])
def test_it_bounds_the_likelihood_of_what_is_sampled(name: str, kind: Any, num_steps: int) -> None:
    model = of_budgets(name, kind).with_num_steps(num_steps)
    process, x = model.forward_process, all_states(3, 2)
    log_p = exact_log_likelihood(process, model.reverse, num_steps)
    is_data = (all_states(process.num_states, 2) < 3).all(1)
    p = log_p[is_data].detach().exp()
    assert float(p.sum()) == pytest.approx(1.0, abs=1e-5)
    assert (bound_of(model, x) >= -log_p[is_data] - 1e-5).all()
    drawn = of_budgets(name, kind).sample(4_000, num_steps=num_steps, batch_size=4_000)
    counts = torch.bincount(drawn @ torch.tensor([3, 1]), minlength=9)
    assert chisquare(counts, p / p.sum() * len(drawn)).pvalue > 1e-4


def mean_bound(model: FLDD, x: Tensor, condition: tuple[Tensor, ...]) -> Tensor:
    """Of all budgets, each by a walk of its own; with gradients to the model."""
    total, usual = torch.zeros(()), model.spec.num_steps
    for num_steps in BUDGETS:
        model._walk(num_steps)
        steps = range(1, num_steps + 1)
        kl = [exact_step_kl(model.forward_process, model.reverse, x, t, condition) for t in steps]
        total = total + sum(kl, torch.zeros(())) / len(BUDGETS)
    model._walk(usual)
    return total


@pytest.mark.parametrize("estimator", [Reinforce, partial(RLOO, samples=2)])
@pytest.mark.parametrize("name", ["learned_mask", "residual_uniform", "staggered"])
def test_training_has_the_gradient_of_the_mean_bound(name: str, estimator: Any) -> None:
    model, x = of_budgets(name, estimator=estimator), all_states(3, 2)
    process, reverse = model.forward_process, model.reverse
    assert process.timesteps.total == sum(BUDGETS)
    bound = mean_bound(model, x, ()).mean()
    parts = {"process": list(process.parameters()), "denoiser": list(reverse.parameters())}
    assert_gradients_of(bound, model, x, parts, most_error=0.12)


def test_the_gradient_with_a_latent_that_learns() -> None:
    """By the score of its draws, whose control variate goes by what a step reveals."""
    model = of_budgets(latents=partial(TrainedMixtureLatent, size=2))
    latent: Any = model.latents[0]
    randomise(latent)
    latent.anneal(1.0)
    x, process, reverse = all_states(3, 2), model.forward_process, model.reverse
    log_q = latent.posterior(x).log_q.double()  # (B, 2)
    bound = (log_q.exp() * (log_q - latent.log_prior())).sum(1)
    for c in range(2):
        bound = bound + log_q[:, c].exp() * mean_bound(model, x, (torch.full((9, 1), c),))
    parts = {"latent": list(latent.parameters()), "process": list(process.parameters())}
    assert_gradients_of(bound.mean(), model, x, {**parts, "denoiser": list(reverse.parameters())}, most_error=0.12)


def learned_on(shape: tuple[int, ...], budgets: tuple[int, ...], base: Any) -> LearnedMaskProcess:
    """A schedule that is its base, in as many steps as the first of the budgets."""
    spec = Spec(3, shape, max(budgets), budgets=budgets)
    process = LearnedMaskProcess(spec, partial(MLP, width=8, depth=1), base)
    process.walk(budgets[0], budgets[1:])
    return process


@pytest.mark.parametrize("base", [StaggeredProcess, AbsorbingProcess])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 5, 8])
def test_a_learned_schedule_starts_at_the_base_of_each_budget(base: Any, num_steps: int) -> None:
    """As a model of that number of steps alone would."""
    others = tuple(n for n in (1, 2, 3, 5, 8) if n != num_steps)
    process, x = learned_on((8,), (num_steps, *others), base), torch.randint(3, (4, 8))
    alone = base(Spec(3, (8,), num_steps))
    torch.testing.assert_close(process.shared_odds()[: num_steps + 1], alone.log_stay_odds().expand(-1, 8))
    for t in range(1, num_steps + 1):
        mine, its = process.step(x, torch.full((4,), t)), alone.step(x, torch.full((4,), t))
        for name in ("log_gamma", "log_kept", "log_odds"):
            torch.testing.assert_close(getattr(mine, name), getattr(its, name), rtol=1e-4, atol=1e-5)
        time = process.timesteps.t[torch.full((4, 1), t)]
        torch.testing.assert_close(process.kept(x, time), process.kept_at_start(x, time))
    for step, mine in enumerate(process.steps(x), start=1):
        torch.testing.assert_close(mine.log_odds, alone.step(x, torch.full((4,), step)).log_odds, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(process.leaving(torch.tensor([1])), alone.leaving(torch.tensor([1])))


@torch.no_grad()
def test_each_budget_has_an_order_of_its_own() -> None:
    process, x = learned_on((8,), (4, 1, 2), StaggeredProcess), torch.randint(3, (7, 8))
    steps = torch.arange(1, 8)  # four, then one, then two

    def odds() -> Tensor:
        return process.step(x, steps).log_odds

    before, shared = odds(), process.shared_odds()
    process.order[2 + 2] += 1.0  # the rows are of the steps 0..1, 0..2 and 0..4: the second of two steps
    differs = (odds() != before).any(1)
    assert differs.tolist() == [False] * 6 + [True]
    assert (process.shared_odds() != shared).any(1).tolist() == [False] * 7 + [True]


@torch.no_grad()
@pytest.mark.parametrize("first", [4, 16])
def test_what_is_learned_of_many_steps_counts_less(first: int) -> None:
    """Above eight steps by 8 / T, of the table and of the network, alone and among others."""
    process, x = learned_on((8,), (first, 20 - first), StaggeredProcess), torch.randint(3, (20, 8))
    t = torch.arange(1, 21)
    base = process.step(x, t).log_odds
    process.order += 0.1
    for p in process.network.parameters():
        p.normal_(std=0.3)
    at = process.timesteps.t[t].view(-1, 1, 1).expand(-1, 8, 1) - 2
    residual = process.network(x, torch.zeros_like(t), ()).gather(-1, at.clamp_min(0)).squeeze(-1)
    pace = torch.where(process.timesteps.which[t] == (0 if first == 16 else 1), 0.5, 1.0).unsqueeze(1)
    moved = (pace * (1.0 + residual)).masked_fill((process.timesteps.s[t] == 0).unsqueeze(1), 0.0)
    torch.testing.assert_close(process.step(x, t).log_odds, base + moved, rtol=1e-4, atol=1e-4)
    for step, each in enumerate(process.steps(x[:1]), start=1):
        torch.testing.assert_close(each.log_odds, process.step(x[:1], torch.tensor([step])).log_odds)


def test_steps_that_are_no_budget_have_the_base_alone() -> None:
    process, x = learned_on((8,), (4, 2), StaggeredProcess), torch.randint(3, (5, 8))
    with torch.no_grad():
        process.order += 1.0
    process.walk(3, [2, 4])
    base, t = StaggeredProcess(Spec(3, (8,), 4, budgets=(2, 4))), torch.tensor([1, 2, 3, 1, 2])
    base.walk(3, [2, 4])
    torch.testing.assert_close(process.step(x, t).log_odds, base.step(x, t).log_odds, rtol=1e-4, atol=1e-5)
    assert (process.step(x, t + 3).log_odds - base.step(x, t + 3).log_odds).abs().max() > 1
    process.walk(4, [2])
    assert len(process.base_odds) == 2


@torch.no_grad()
@pytest.mark.parametrize("num_steps", BUDGETS)
def test_what_a_step_of_an_own_order_reveals(num_steps: int) -> None:
    model = of_budgets()
    process, x = model.forward_process, all_states(3, 2)
    for p in process.network.parameters():  # type: ignore[union-attr]
        p.zero_()
    model._walk(2)
    first = {2: 1, 1: 3, 4: 4}[num_steps]  # two steps, then one, then four
    mixed = [process.leaving(torch.full((9,), first + i)) for i in range(num_steps)]
    model._walk(num_steps)
    for t in range(1, num_steps + 1):
        times = torch.stack([process.timesteps.t[torch.full((9,), t)], process.timesteps.s[torch.full((9,), t)]], 1)
        kept = process.kept(x, times)
        torch.testing.assert_close(mixed[t - 1], kept[:, 1] - kept[:, 0])


@pytest.mark.parametrize("name", ["absorbing", "staggered"])
def test_what_a_step_reveals(name: str) -> None:
    model = of_budgets(name)
    process, x = model.forward_process, all_states(3, 2)
    for step in range(1, process.timesteps.total + 1):
        t = torch.full((9,), step)
        times = torch.stack([process.timesteps.t[t], process.timesteps.s[t]], 1)
        kept = process.kept(x, times)
        torch.testing.assert_close(process.leaving(t), kept[:, 1] - kept[:, 0])
        made = process.step(x, t)
        auxiliary = step_terms(made, model.reverse, torch.full((1, 9, 2), 3)).auxiliary
        assert auxiliary is not None
        assert name != "absorbing" or float(auxiliary.abs().max()) < 1e-6  # masked diffusion lacks nothing


def test_a_model_of_other_steps_can_be_trained_on() -> None:
    """With the estimator it had, whose numbers are of the steps that there are now."""
    warm = partial(WarmUp, first=partial(Concrete, end=0.5), then=partial(RLOO, samples=3))
    model = of_budgets(estimator=warm)
    for num_steps in (4, 3):
        other = model.with_num_steps(num_steps)
        made: Any = other.estimator
        assert (made.first.end, made.then.samples) == (0.5, 3)
        assert len(made.then.mean) == 1 + other.forward_process.timesteps.total
        assert other.forward_process.timesteps.t[:2].tolist() == [0, 1]
        assert model.spec.num_steps == model.reverse.num_steps == 2


def test_the_denoiser_is_told_both_times() -> None:
    model = of_budgets("residual_uniform")
    state, steps = torch.zeros(7, 2, dtype=torch.long), torch.arange(1, 8)
    said = model.reverse.logits(state, steps)
    at_end = (model.forward_process.timesteps.t[1:] == 4).nonzero().flatten()
    assert len(at_end) == 3  # of two steps, of one and of four
    assert all((said[a] - said[b]).abs().max() > 1e-3 for a in at_end for b in at_end if a < b)
    both = [i for i in range(7) if model.forward_process.timesteps.t[i + 1] == 2]  # to 0, and to 1
    assert (said[both[0]] - said[both[1]]).abs().max() > 1e-3


def test_a_model_learns_all_of_its_budgets(tmp_path: Path) -> None:
    """Two equal ternary coordinates. Masked diffusion draws both in one step with probability 1/T, at twice log 3."""
    process = partial(LearnedMaskProcess, network=small_mlp, base=AbsorbingProcess)
    model = build(forward_process=process, budgets=BUDGETS, estimator=Reinforce, lr=1e-2)
    run = fit(tmp_path, model, Pairs(batch_size=64), max_steps=150, limit_val_batches=0)
    logged = run.callback_metrics
    assert {f"train/nelbo_T{n}" for n in BUDGETS} <= logged.keys()
    assert "train/kl_t1" not in logged
    of_each = [float(logged[f"train/nelbo_T{n}"]) for n in BUDGETS]
    assert float(logged["train/nelbo"]) == pytest.approx(sum(of_each) / 3, rel=0.1)  # 64 examples in three parts
    x = Pairs().splits["test"].x
    bounds = [float(model.with_num_steps(n).nelbo(x, draws=50).nelbo.mean()) for n in (1, 2, 3, 4)]
    masked = [log(3) * (1 + 1 / n) for n in (1, 2, 3, 4)]
    assert bounds[0] == pytest.approx(masked[0], abs=0.1)
    assert all(bound < most + 0.2 for bound, most in zip(bounds, masked, strict=True))  # 2.2 where nothing is learned
    assert model.nelbo(x, draws=50).nelbo.mean() == bounds[1]  # the model itself is of num_steps


def test_mistakes_are_a_sentence() -> None:
    with pytest.raises(FLDDError, match="num_steps=3 is none of the budgets"):
        build(forward_process=AbsorbingProcess, budgets=[1, 2], num_steps=3)
    timeless: Any = partial(MaskedReverse, time_independent=True)
    with pytest.raises(FLDDError, match="leave out budgets"):
        build(forward_process=AbsorbingProcess, reverse=timeless, budgets=[1, 2])
    model = of_budgets()
    for wrong, said in ((0, "a whole number, 1 or more"), (5, "takes from 1 to 4 steps")):
        with pytest.raises(FLDDError, match=said):
            model.with_num_steps(wrong)
    with pytest.raises(FLDDError, match="train one with budgets"):
        build().sample(1, num_steps=3)


def test_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(Path(__file__).parents[1] / "configs" / "digits.yaml")
    monkeypatch.chdir(tmp_path)
    small = ["--trainer.accelerator", "cpu", "--model.latents", "[]", "--model.denoiser.width", "8"]
    small += ["--model.forward_process.network.width", "8", "--trainer.val_check_interval", "2"]
    budgets = ["--model.budgets", "[1,4,6]"]
    assert main(["fit", "--config", config, "--trainer.max_steps", "2", *small, *budgets]) == 0
    (path,) = tmp_path.rglob("last*.ckpt")
    assert load_model(path).spec.budgets == (1, 4, 6)
    for steps in (1, 6, 3):
        out = ["--output", f"of{steps}", "--num_samples", "4", "--num_steps", str(steps), "--trajectory", "true"]
        with pytest.warns(UserWarning, match="T=3 is none") if steps == 3 else monkeypatch.context():
            assert main(["sample", "--ckpt_path", str(path), *out]) in (0, None)
        assert np.load(f"of{steps}_trajectory.npy").shape == (steps + 1, 4, 8, 8)
    capsys.readouterr()
    assert main(["sample", "--ckpt_path", str(path), "--num_samples", "4", "--num_steps", "7"]) == 1
    assert "takes from 1 to 6 steps, not 7" in capsys.readouterr().err
    score = ["score", "--ckpt_path", str(path), "--output"]
    assert main([*score, "scores.csv", "--num_steps", "6"]) == 0
    with open("scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [name for name in rows[0] if name.startswith("kl")] == [f"kl_t{t}" for t in range(1, 7)]
    scores = load_model(path).with_num_steps(6).nelbo(DigitsDataModule().all_rows().x[:3])
    assert [float(row["nelbo"]) for row in rows[:3]] == pytest.approx(scores.nelbo.tolist(), rel=1e-5)
    assert main([*score, "more.csv", "--num_steps", "7"]) == 1
    assert "takes from 1 to 6 steps, not 7" in capsys.readouterr().err
    resumed = ["fit", "--config", config, "--trainer.max_steps", "4", *small, "--ckpt_path", str(path)]
    assert main([*resumed, *budgets]) == 0
    assert {load_model(each).spec.budgets for each in tmp_path.rglob("*.ckpt")} == {(1, 4, 6)}
    capsys.readouterr()
    assert main(resumed) == 1
    assert "budgets: [1, 4, 6] there, None here" in capsys.readouterr().err


def test_a_copy_in_other_steps_is_saved_and_loaded(tmp_path: Path) -> None:
    """Whatever T it is walked in; running means of training are kept where their steps are the same ones."""
    model = of_budgets(latents=partial(TrainedMixtureLatent, size=3))
    model.estimator.mean.fill_(2.0)  # type: ignore[union-attr, operator]
    for num_steps, loaded_steps in ((3, 2), (4, 4), (2, 2)):
        copy = model.with_num_steps(num_steps)
        assert copy.estimator.mean.isnan().all()
        folder = tmp_path / str(num_steps)
        copy.save_pretrained(folder)
        loaded = FLDD.from_pretrained(str(folder))
        assert loaded.spec.num_steps == loaded_steps
        x = torch.zeros(4, 2, dtype=torch.long)
        same = loaded.with_num_steps(num_steps).nelbo(x).nelbo
        assert torch.equal(same, copy.nelbo(x).nelbo)
    model.save_pretrained(tmp_path / "own")
    assert (FLDD.from_pretrained(str(tmp_path / "own")).estimator.mean == 2).all()
    assert FLDD.from_pretrained(str(tmp_path / "own"), num_steps=4).estimator.mean.isnan().all()
