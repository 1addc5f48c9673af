"""The comparison of processes, latents and steps: what it runs, what it counts, what it skips."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import any_steps
import autoregressive
import common
import count
import factorial
import kinds
import one_stage
import published
import pytest
import torch
import work as work_of
import zinc
import zinc_figure
from common import append_row, read_rows
from factorial_figure import FIXED, draw, steps_saved
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import Callback, LambdaCallback
from torch import Tensor
from work import TrainingWork, counted, sampling_work, step_operations, trained_numbers

from conftest import all_states, small_mlp
from fldd_lightning import (
    FLDD,
    AbsorbingProcess,
    AutoencoderLatent,
    Backbone,
    DigitsDataModule,
    DiscreteDataModule,
    ImageFLDD,
    MixtureLatent,
    Reinforce,
    Spec,
    TextDataModule,
    TrainedMixtureLatent,
    Transformer,
)
from fldd_lightning.networks.base import as_weights
from tiny import Pairs, build, fit


def measure(model: FLDD, data: DiscreteDataModule, x: Tensor, folder: Path) -> dict[str, float]:
    return {"good": float(x.float().mean()), "varied": 1.0}


TINY = kinds.Kind(
    lambda path, batch_size, seed: DigitsDataModule(batch_size=batch_size, seed=seed), ImageFLDD, small_mlp, small_mlp,
    partial(MixtureLatent, size=4), batch=32, steps=3, samples=8, measure=measure, quality=("good", True),
    diversity="varied", tested=64, rates=(1e-3, 2e-3),
)  # fmt: skip


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(kinds.KINDS, "mnist16", TINY)
    monkeypatch.setattr(factorial, "STEPS", (4, 2))


class Interrupted(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.step:
            raise KeyError("the lights went out")


def test_an_interrupted_training_goes_on_and_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common, "_KEPT_EVERY", timedelta(microseconds=1))

    kind = replace(TINY, latent=partial(AutoencoderLatent, fit_steps=2))

    def trained(*callbacks: Callback) -> tuple[dict[str, Tensor], float, TrainingWork]:
        seed_everything(0, verbose=False)
        data, work = DigitsDataModule(batch_size=32, seed=0), TrainingWork()
        model = factorial.build(kind, "learned", "yes", 4, 1e-2, data)
        val, _ = common.train(model, data, 8, [work, *callbacks])
        return model.state_dict(), val, work

    whole, val, work = trained()
    assert not any(each.is_dir() for each in common.UNFINISHED.iterdir())
    with pytest.raises(KeyError, match="lights"):
        trained(Interrupted(5))
    assert len(list(common.UNFINISHED.glob("*/last.ckpt"))) == 1
    started: list[int] = []
    noted = LambdaCallback(on_train_batch_start=lambda trainer, *_: started.append(trainer.global_step))
    after, its_val, its_work = trained(noted)
    assert started == [5, 6, 7]
    assert its_val == val
    assert its_work.total(8) == work.total(8) > 8 * work.step
    torch.testing.assert_close(after, whole, rtol=0, atol=0, equal_nan=True)
    assert not any(each.is_dir() for each in common.UNFINISHED.iterdir())


@pytest.mark.filterwarnings("ignore")
def test_a_latent_is_fitted_once_for_trainings_that_need_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    fits: list[int] = []
    fit = AutoencoderLatent.fit

    def noted(self: AutoencoderLatent, x: Tensor, seed: int = 0) -> dict[str, float]:
        fits.append(seed)
        return fit(self, x, seed)

    monkeypatch.setattr(AutoencoderLatent, "fit", noted)

    def trained(process: str, num_steps: int, fit_steps: int, seed: int = 0) -> tuple[FLDD, TrainingWork]:
        seed_everything(seed, verbose=False)
        data, work = DigitsDataModule(batch_size=32, seed=0), TrainingWork()
        kind = replace(TINY, latent=partial(AutoencoderLatent, fit_steps=fit_steps))
        model = factorial.build(kind, process, "yes", num_steps, 1e-2, data)
        common.train(model, data, 2, [work])
        return model, work

    one, work = trained("learned", 4, 2)
    again, its_work = trained("learned", 4, 2)
    assert len(fits) == 1
    torch.testing.assert_close(again.state_dict(), one.state_dict(), rtol=0, atol=0, equal_nan=True)
    other, other_work = trained("order by hand", 2, 2)
    assert len(fits) == 1
    assert bool(other.latents[0].is_fitted)
    assert other_work.fit == its_work.fit == work.fit > 0
    trained("learned", 4, 3)
    trained("learned", 4, 2, seed=1)
    assert len(fits) == 3


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_long_training_is_compiled_from_its_second_step_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common, "_WORTH_COMPILING", 3)
    found, works = [], []
    for steps in (2, 3):
        seed_everything(0, verbose=False)
        data, work, was = DigitsDataModule(batch_size=32, seed=0), TrainingWork(), []
        model = factorial.build(TINY, "learned", "no", 4, 1e-2, data)
        noted = LambdaCallback(on_train_batch_start=lambda trainer, module, *_, was=was: was.append(module.compiled))
        common.train(model, data, steps, [work, noted], "bf16-mixed")
        found.append(was)
        works.append(work.step)
    assert found == [[False, False], [False, True, True]]
    assert works[0] == works[1] > 0  # operations are counted, though not of a graph


@pytest.mark.filterwarnings("ignore")
def test_costs_are_known_without_a_training() -> None:
    def make() -> tuple[FLDD, DiscreteDataModule]:
        data = TINY.data("", batch_size=32, seed=0)
        return factorial.build(kind, "learned", "yes", 4, 1e-2, data), data

    kind, work = replace(TINY, latent=partial(AutoencoderLatent, fit_steps=30)), TrainingWork()
    model, data = make()
    common.train(model, data, 3, [work])
    costs = work_of.costs_untrained(make, 3)
    assert costs == work_of.costs(model, work.total(3))
    assert work.fit > 3 * work.step
    assert costs["numbers_training"] > costs["numbers_sampling"]


def test_rows_that_do_not_say_their_costs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, made = tmp_path / "out.csv", []
    for process, seed in (("data", 0), ("absorbing", 0), ("absorbing", 1), ("learned", 0)):
        append_row(path, {"process": process, "seed": seed, "steps": 10, "nelbo": f"{seed}.5"})

    def costs(make: Any, steps: int) -> dict[str, object]:
        made.append(make.keywords)
        return dict.fromkeys(work_of.COSTS, steps)

    monkeypatch.setattr(count, "costs_untrained", costs)
    monkeypatch.setitem(count.TABLES, "mnist", (FLDD, ("process", "seed")))
    count.fill("mnist", "folder", path, [("process", "absorbing")])
    assert made == [{"process": "absorbing", "seed": 0}]  # once for both seeds
    count.fill("mnist", "folder", path)
    assert len(made) == 2
    rows = read_rows(path)
    assert [row["training_gflop"] for row in rows] == ["", "10", "10", "10"]
    assert [row["nelbo"] for row in rows] == ["0.5", "0.5", "1.5", "0.5"]


def test_every_combination_is_there_once() -> None:
    rows = [tuple(row.values()) for cell in factorial.cells("mnist16") for row in cell.rows(7)]
    assert len(rows) == len(set(rows))
    plain = {row[:5] for row in rows if row[5] == "ancestral"}
    wanted = {
        ("mnist16", process, latent, steps, seed)
        for process in factorial.FACTORS
        for latent in ("no", "yes")
        for steps in factorial.STEPS
        for seed in (range(3) if steps == 4 else range(1))
    }
    assert wanted <= plain
    one_stage = [row for cell in factorial.one_stage("mnist16") for row in cell.rows(7)]
    assert len({tuple(row.values()) for row in one_stage} - set(rows)) == len(one_stage) == 9
    alone = {row for row in plain if row[3] == 1}
    assert plain - wanted == alone == {("mnist16", "masked", "yes", 1, seed) for seed in range(3)}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_rows_are_complete_and_not_measured_again(tiny: None, tmp_path: Path) -> None:
    path = tmp_path / "factorial.csv"
    every = [*factorial.cells("mnist16", (*factorial.FACTORS, *factorial.BASELINES)), *factorial.one_stage("mnist16")]
    chosen = [cell for cell in every if cell.seed == 0]
    for cell in chosen:
        factorial.run(cell, "", path)
    rows = read_rows(path)
    assert len(rows) == sum(len(cell.rows(3)) for cell in chosen)
    assert {row["lr"] for row in rows} <= {"0.001", "0.002"}
    tried = read_rows(tmp_path / "tuning.csv")
    assert len(tried) == 2 * len({(cell.process, cell.latent) for cell in chosen})  # the same effort for all
    for row in rows:
        assert float(row["nelbo_se"]) > 0
        assert int(row["numbers_training"]) >= int(row["numbers_sampling"]) > 0
        assert (row["nelbo_any_order"] != "") == (row["process"] == "masked")
    learned = next(row for row in rows if (row["process"], row["latent"]) == ("learned", "no"))
    assert int(learned["numbers_training"]) > int(learned["numbers_sampling"])  # the forward process's network
    before = path.read_text()
    for cell in chosen:
        factorial.run(cell, "", path)
    assert path.read_text() == before
    factorial.run(chosen[0], "", path, steps=2)  # another training is another row
    assert len(read_rows(path)) == len(rows) + len(chosen[0].rows(2))
    draw(path)
    assert path.with_suffix(".png").stat().st_size > 1_000


@pytest.mark.filterwarnings("ignore")
def test_one_training_for_all_steps_against_one_for_each(tiny: None, tmp_path: Path) -> None:
    path = tmp_path / "any_steps.csv"
    for budgets in ((2, 4), (1,)):
        any_steps.run("mnist16", "learned", budgets, 0, "", path, steps=2, rate=1e-3)
    rows = read_rows(path)
    assert [(row["trained"], row["num_steps"]) for row in rows] == [("all", "2"), ("all", "4"), ("each", "1")]
    assert len({row["nelbo"] for row in rows}) == 3
    before = path.read_text()
    any_steps.run("mnist16", "learned", (2, 4), 0, "", path, steps=2, rate=1e-3)
    assert path.read_text() == before
    key = {"kind": "mnist16", "process": "learned", "num_steps": 4, "seed": 0, "steps": 2, "latent": "no"}
    same = {**key, "decoding": "ancestral", **dict.fromkeys(any_steps.MEASURED, "of the same training")}
    append_row(tmp_path / "factorial.csv", same)
    any_steps.run("mnist16", "learned", (4,), 0, "", path, steps=2, rate=1e-3)
    assert read_rows(path)[-1]["nelbo"] == "of the same training"


def test_steps_saved() -> None:
    def row(process: str, steps: int, value: float) -> dict[str, str]:
        shared = {"kind": "k", "seed": "0", "decoding": "ancestral"}
        return {**shared, "process": process, "num_steps": str(steps), "nelbo": str(value)}

    rows = [row("learned", 4, 3.0), row("masked", 4, 9.0), row("masked", 16, 3.0), row("masked", 64, 2.0)]
    assert steps_saved(rows, "k", "nelbo", less_is_better=True) == "T = 16"
    assert steps_saved(rows[:2], "k", "nelbo", less_is_better=True) == "not reached at T = 4"
    assert steps_saved(rows[:1], "k", "nelbo", less_is_better=True) == "not measured"
    assert steps_saved(rows, "k", "nelbo", less_is_better=False) == "T = 4"
    by_hand = [*rows, row("order by hand", 4, 2.5)]
    assert steps_saved(by_hand, "k", "nelbo", less_is_better=True) == "T = 16"
    assert steps_saved(by_hand, "k", "nelbo", less_is_better=True, against=("order by hand",)) == "T = 4"


def test_the_page_says_what_is_saved() -> None:
    titles = {
        "mnist16": "16×16 MNIST", "mnist28": "28×28 MNIST", "qm9": "QM9", "text64": "text of 64 characters",
    }  # fmt: skip
    root = Path(__file__).parents[2]
    rows, page = read_rows(root / "benchmarks/results/factorial.csv"), (root / "docs/results.md").read_text()
    for kind, title in titles.items():
        less = {"nelbo": True, "quality": kinds.KINDS[kind].quality[1]}
        said = [
            steps_saved(rows, kind, column, less[column], against).removeprefix("T = ")
            for against in (FIXED, ("order by hand",))
            for column in less
        ]
        line = " | ".join([title, *(each.replace("not reached at T =", "more than") for each in said)])
        assert f"| {line} |" in page


class Plain(Backbone):
    """Two linear layers on one-hot states, whose operations are known."""

    def __init__(self, spec: Spec, num_inputs: int, num_outputs: int) -> None:
        super().__init__()
        self.shape = (*spec.shape, num_outputs)
        self.first = torch.nn.Linear(spec.num_dims * num_inputs, 32)
        self.last = torch.nn.Linear(32, spec.num_dims * num_outputs)
        self.num_inputs = num_inputs

    def forward(self, state: Tensor, t: Tensor, condition: tuple[Tensor, ...] = ()) -> Tensor:
        hidden = self.first(as_weights(state, self.num_inputs).flatten(1)).relu()
        return self.last(hidden).view(-1, *self.shape)


@pytest.mark.filterwarnings("ignore")
def test_operations_and_numbers_are_counted(tmp_path: Path) -> None:
    """A linear layer of a by b costs 2 a b an example; its gradients twice that, but for inputs without any."""
    work = TrainingWork()
    model = build(forward_process=AbsorbingProcess, denoiser=Plain, estimator=Reinforce)
    fit(tmp_path, model, Pairs(batch_size=16), max_steps=2, callbacks=[work])
    first, last = 2 * (2 * 4) * 32, 2 * 32 * (2 * 3)
    assert work.step == 16 * (2 * first + 3 * last)
    assert work.fit == 0
    assert work.total(10) == 10 * work.step
    operations, numbers = sampling_work(model, 4)
    assert operations == model.spec.num_steps * (first + last)
    assert numbers == sum(p.numel() for p in model.reverse.parameters()) == trained_numbers(model)

    with_latent = TrainingWork()
    latent = build(forward_process=AbsorbingProcess, latents=partial(MixtureLatent, size=4))
    fit(tmp_path, latent, Pairs(batch_size=16), max_steps=2, callbacks=[with_latent])
    assert with_latent.fit > 0


def test_attention_is_counted() -> None:
    """Scores and mixtures of L by L by width: 4 L L width a block, beside the layers that see each position."""
    length, width = 16, 8
    network = Transformer(Spec(3, (length,), 2), 4, 4, width=width, depth=1, heads=2, time_width=8)
    with torch.no_grad():
        found = counted(lambda: network(torch.zeros(1, length, dtype=torch.long), torch.ones(1, dtype=torch.long)))
    layers = 2 * length * width * (3 * width + width + 8 * width + 4)
    of_step = 2 * 8 * (6 * width + 2 * width)  # and what makes the step's embedding
    assert layers + 4 * length * length * width + of_step <= found < layers + 4 * length * length * width + 3 * of_step


@pytest.mark.filterwarnings("ignore")
def test_the_ceiling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "words.txt").write_text("\n".join(["spam and eggs"] * 400))
    kind = replace(
        TINY, data=lambda path, batch_size, seed: TextDataModule(path, length=8, batch_size=batch_size, seed=seed)
    )
    monkeypatch.setitem(kinds.KINDS, "text64", kind)
    autoregressive.run("text64", str(tmp_path / "words.txt"), tmp_path / "out.csv", 0, 4)
    autoregressive.run("text64", str(tmp_path / "words.txt"), tmp_path / "out.csv", 0, 4)
    (row,) = read_rows(tmp_path / "out.csv")
    assert float(row["nelbo"]) > 0
    assert float(row["sample_mflop"]) > 0
    assert len(read_rows(tmp_path / "tuning.csv")) == 2


def test_the_ceiling_is_a_distribution() -> None:
    """Over all sequences that can be: nothing after the first PAD but PAD."""
    model = autoregressive.Autoregressive(3, 3, True, 1e-3, 8, 1, 2)
    states = all_states(3, 3)
    ended = (states == 2).int().cummax(1).values
    proper = states[((states == 2) == ended.bool()).all(1)]
    assert float((-model.nats(proper)).exp().sum().detach()) == pytest.approx(1.0, abs=1e-5)
    x = model.sample(50, 0)
    assert ((x == 2).int().diff(dim=1) >= 0).all()


def test_weights_come_back_from_their_files(tmp_path: Path) -> None:
    few = {"a": torch.randn(10), "n": torch.tensor(3)}
    work = TrainingWork()
    work.fit, work.step = 5, 2
    assert len(published.save_parts(few, few, 7, work, tmp_path, "few")) == 1
    state, done, kept = published.load_parts(tmp_path, "few")
    assert (done, kept.total(done)) == (7, 5 + 7 * 2)
    assert all(torch.equal(state[key], value) for key, value in few.items())
    many = {str(i): torch.randn(2_000_000) for i in range(8)}
    many["table"] = torch.randn(10)
    paths = published.save_parts(many, set(many) - {"table"}, 9, work, tmp_path, "many")
    assert len(paths) == 3
    assert all(path.stat().st_size < 14_000_000 for path in paths)
    state, done, _ = published.load_parts(tmp_path, "many")
    assert done == 9
    assert torch.equal(state.pop("table"), many.pop("table"))  # what is no parameter is not rounded
    assert all(torch.equal(state[key], value.bfloat16()) for key, value in many.items())
    torch.save({**torch.load(paths[1]), "done": 8}, paths[1])
    with pytest.raises(SystemExit, match="different pieces"):
        published.load_parts(tmp_path, "many")
    assert published.load_parts(tmp_path, "none")[:2] == ({}, 0)


def test_molecules_of_a_length_are_filled_up_or_left_out(tmp_path: Path) -> None:
    lines = ["c1ccccc1", *("C" * n + end for n in (1, 2) for end in "CNOFPSIB"), *("O" * n for n in range(1, 5))]
    (tmp_path / "a.smi").write_text("\n".join(lines))
    for length, kept in ((4, 20), (32, 21)):
        data = kinds.smiles_of_length(str(tmp_path / "a.smi"), batch_size=4, seed=0, length=length)
        assert data.shape == (length,)
        x = torch.cat([split.x for split in data.splits.values()])
        pad = data.num_classes - 1
        assert sorted((x != pad).sum(1).tolist()) == sorted(map(len, lines))[:kept]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", published.METHODS)
def test_pieces_go_on(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    setup = replace(
        published.SETUPS["mnist28"], data=TINY.data, model=ImageFLDD, denoiser=small_mlp, forward=small_mlp,
        beside_latent=None, latent=partial(MixtureLatent, size=4), batch=64, steps=30, samples=8, measure=measure,
    )  # fmt: skip
    monkeypatch.setitem(published.SETUPS, "mnist28", setup)
    args = ["--setup", "mnist28", "--method", method, "--path", "", "--checkpoints", str(tmp_path)]
    args += ["--output", str(tmp_path / "out.csv")]
    published.main([*args, "--smoke"])
    assert "4 of 4 steps" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []  # nothing that a real run could find
    data = TINY.data("", batch_size=8, seed=0)
    begun = published.build("mnist28", method, 4, data)
    if method == "ours":
        fit_latents_of(begun, data)
    state = begun.state_dict()
    label = f"mnist28-{method}-seed0" if method == "masked" else f"mnist28-{method}-T4-seed0"
    work = TrainingWork()
    work.fit = 10**12  # in the first piece alone
    published.save_parts(state, state, 20, work, tmp_path, label)
    published.main(args)
    said = capsys.readouterr().out
    assert "30 of 30 steps" in said
    assert "'split': 'test'" in said
    after, done, work = published.load_parts(tmp_path, label)
    assert done == 30
    assert work.fit == 10**12
    assert work.step > 0
    assert any(not torch.equal(after[key], value) for key, value in state.items())
    published.main(args)  # nothing left to do
    assert "has a row" in capsys.readouterr().out
    (row,) = read_rows(tmp_path / "out.csv")
    assert (row["done"], row["training_gflop"]) == ("30", str(round(work.total(30) / 1e9)))
    if method == "masked":  # nothing left to train, but another T to measure
        published.main([*args, "--num_steps", "9"])
        assert "steps; kept" not in capsys.readouterr().out
        assert [row["num_steps"] for row in read_rows(tmp_path / "out.csv")] == ["4", "9"]


def fit_latents_of(model: FLDD, data: DiscreteDataModule) -> None:
    for latent in model.latents:
        latent.fit(data.splits["train"].x.long())


@pytest.fixture
def tiny_one_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(kinds.KINDS, "mnist16", replace(TINY, joint=partial(TrainedMixtureLatent, size=4)))
    monkeypatch.setitem(one_stage.SMALL, "mnist16", small_mlp)
    monkeypatch.setitem(one_stage.RATES, "mnist16", (1e-3, 2e-3))


def test_held_parts_do_not_move_and_work_is_equal(tiny_one_stage: None, monkeypatch: pytest.MonkeyPatch) -> None:
    data = TINY.data("", batch_size=32, seed=0)
    models = {name: one_stage.made("mnist16", name, 1e-3, data) for name in one_stage.HELD}
    assert {name: model.forward_process.learned for name, model in models.items()} == {
        "nothing": True, "schedule": False, "encoder": True, "both": False
    }  # fmt: skip
    for name, model in models.items():
        moves = {p.requires_grad for p in model.latents.parameters()}
        assert moves == {name in ("nothing", "schedule")}
    work = {name: step_operations(model, data) for name, model in models.items()}
    assert all(p.grad is None for model in models.values() for p in model.parameters())
    monkeypatch.setitem(one_stage.OPERATIONS, "mnist16", 7.5 * work["nothing"] / 1e9)
    steps = {name: one_stage.num_steps_of("mnist16", name, data) for name in one_stage.HELD}
    assert steps == {name: int(7.5 * work["nothing"] / each) for name, each in work.items()}
    assert steps["schedule"] > steps["nothing"] == 7


def test_one_stage_starts_at_masked_diffusion(tiny_one_stage: None) -> None:
    model = one_stage.made("mnist16", "nothing", 1e-3, TINY.data("", batch_size=32, seed=0))
    assert type(model.forward_process.base) is AbsorbingProcess  # no order by hand
    assert model.forward_process.learned
    (latent,) = model.latents
    assert isinstance(latent, TrainedMixtureLatent)
    assert all(p.requires_grad for p in model.parameters())
    assert set(one_stage.OPERATIONS) == set(one_stage.SMALL) == set(one_stage.RATES) == set(kinds.KINDS)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("held", "tuned"), [("nothing", "one stage"), ("schedule", "one stage, schedule held")])
def test_rows_of_one_stage(
    held: str, tuned: str, tiny_one_stage: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(one_stage, "num_steps_of", lambda *_: 6)
    row = one_stage.run("mnist16", held, 0, "", tmp_path / "one_stage.csv")
    assert (row["held"], row["steps"]) == (held, 6)
    assert float(str(row["nelbo"])) > 0
    assert [tried["process"] for tried in read_rows(tmp_path / "tuning.csv")] == [tuned] * 2
    monkeypatch.setitem(kinds.KINDS, "mnist16", replace(kinds.KINDS["mnist16"], steps=10**9))
    assert one_stage.count("mnist16", "") > 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_collapse_on_molecules_is_compared_at_equal_operations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zinc, "STEPS", (2, 3))
    path, kind = tmp_path / "zinc.csv", replace(TINY, steps=24)
    for method in zinc.METHODS:
        for num_steps in [zinc.STEPS] if method == "masked" else [(3,)]:
            zinc.run(kind, method, num_steps, 0, "", path)
    rows = read_rows(path)
    assert [(row["method"], row["num_steps"], row["decoding"]) for row in rows] == [
        ("masked", "2", "ancestral"), ("masked", "2", "confident first"),
        ("masked", "3", "ancestral"), ("masked", "3", "confident first"),
        *((method, "3", "ancestral") for method in ("paper", "ours", "one stage")),
    ]  # fmt: skip
    assert int(rows[0]["steps"]) == 24 > max(int(row["steps"]) for row in rows[4:])
    for row in rows:
        assert len(row["curve"].split()) == min(12, int(row["steps"]))
    zinc.run(kind, "masked", zinc.STEPS, 0, "", path)
    assert read_rows(path) == rows
    zinc_figure.draw(path)
    assert path.with_suffix(".png").stat().st_size > 1_000
