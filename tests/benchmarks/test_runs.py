"""Benchmarks run, on little data and for two steps; and every row that is kept has a command that repeats it."""

from __future__ import annotations

import csv
from functools import partial
from pathlib import Path

import any_steps
import autoregressive
import collapse
import completion
import cost
import digits
import estimators
import factorial
import file_size
import kinds
import mnist
import molecules
import one_stage
import published
import pytest
import text
import torch
import vocabulary
import zinc

from fldd_lightning import MLP, Transformer

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
KNOWN = {  # CSV, column: what may stand there
    "any_steps": {"process": any_steps.COMPARED, "trained": ["all", "each"]},
    "collapse": {"problem": collapse.CASES, "recipe": collapse.RECIPES},
    "collapse_ablations": {"problem": collapse.CASES, "recipe": collapse.RECIPES},
    "completion": {"source": completion.SOURCES, "process": completion.PROCESSES, "way": completion.WAYS},
    "digits": {"process": digits.PROCESSES},
    "estimators": {"problem": [*collapse.CASES, "mnist8"], "estimator": estimators.ESTIMATORS},
    "factorial": {"kind": kinds.KINDS, "process": factorial.PROCESSES, "decoding": factorial.DECODINGS},
    "autoregressive": {"kind": autoregressive.SIZES},
    "published": {"setup": published.SETUPS, "method": published.METHODS},
    "held": {"kind": kinds.KINDS, "held": one_stage.HELD},
    "file_size": {"kind": file_size.KINDS},
    "guidance": {"weight": ["0", "0.5", "1", "2", "4", "data"]},
    "soak": {"outcome": ["ok", "ok, enumerated"]},
    "zinc": {"method": zinc.METHODS, "decoding": zinc.DECODINGS},
    "one_stage": {"kind": one_stage.OPERATIONS, "held": one_stage.HELD},
    "tuning": {
        "kind": [*kinds.KINDS, "zinc"],
        "process": [
            *factorial.PROCESSES,
            *map(one_stage.tuned_as, one_stage.HELD),
            "autoregressive",
            *zinc.METHODS,
        ],
        "latent": ["no", "yes", "joint", "its own"],
    },
    "mnist": {"process": ["data", *mnist.PROCESSES], "network": mnist.NETWORKS},
    "molecules": {"process": molecules.PROCESSES, "network": molecules.NETWORKS},
    "text": {"process": text.PROCESSES, "network": text.NETWORKS},
    "vocabulary": {"case": vocabulary.CASES, "classes": map(str, vocabulary.SIZES), "kind": ["step", "all states"]},
}


@pytest.mark.parametrize("name", [path.stem for path in sorted(RESULTS.glob("*.csv"))])
def test_every_row_has_a_command(name: str) -> None:
    with (RESULTS / f"{name}.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows
    for column, values in KNOWN[name].items():
        assert {row[column] for row in rows} <= set(values), column


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, case in list(collapse.CASES.items()):
        make = partial(case.make, num_train=600, num_held=64)
        monkeypatch.setitem(collapse.CASES, name, collapse.Case(make, case.num_steps))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("recipe", ["default", "first_order2", "straight_through", "paper", "chain", "oracle"])
def test_known_optima(recipe: str, small: None) -> None:
    problem = "walk16" if recipe in ("chain", "oracle") else "xor"
    num_steps = collapse.CASES[problem].num_steps
    row = collapse.run(problem, recipe, num_steps, 0, 2)
    assert float(str(row["gap"])) > -0.5
    assert len(str(row["shares"]).split()) == num_steps + (recipe not in ("paper", "oracle"))  # the latent's last


@pytest.mark.filterwarnings("ignore")
def test_estimators_are_measured(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimators, "ESTIMATORS", {"REINFORCE, no baseline": (estimators.NoBaseline, 1)})
    monkeypatch.setattr(estimators, "SETTLING", 1)
    (row,) = estimators.compare("xor", collapse.CASES["xor"], 2, 2)
    assert list(row) == list(estimators.FIELDS)


@pytest.mark.parametrize("case", vocabulary.CASES)
def test_steps_at_large_vocabularies(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network = partial(Transformer, width=8, depth=1, heads=2)
    monkeypatch.setattr(vocabulary, "NETWORK", network)
    process, estimator, draws = vocabulary.CASES[case]
    process = partial(process.func, network=MLP) if isinstance(process, partial) else process
    monkeypatch.setitem(vocabulary.CASES, case, (process, estimator, draws))
    monkeypatch.setitem(vocabulary.SIZES, 27, (8, 4))
    torch.manual_seed(0)
    for run in vocabulary.make_steps(case, 27, "cpu").values():
        run()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("way", completion.WAYS)
def test_completions_are_counted(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source = partial(completion.XORBlocks, num_train=600, num_held=64, batch_size=64)
    monkeypatch.setitem(completion.SOURCES, "xor", source)
    row = completion.run("xor", "order by hand", way, 0, 2, examples=3, samples=400)
    assert 0 < float(str(row["variation_exact"])) < float(str(row["variation"])) < 1  # it is untrained
    assert float(str(row["p_value"])) < 0.01


def test_exact_draws_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """The chi-square test accepts what is drawn from the source itself, and holds what is given."""
    source = completion.XORBlocks(num_train=10, num_held=10)

    class Exact:
        def sample(self, num_samples: int, seed: int, given: torch.Tensor, **_: object) -> torch.Tensor:
            x, p = completion.conditional(source, given)
            generator = torch.Generator().manual_seed(100 + seed)
            return x[torch.multinomial(p, num_samples, True, generator=generator)]

    found = completion.agreement(Exact(), source, completion.Ancestral(), 12, 1_000)  # type: ignore[arg-type]
    assert found.p_value > 1e-3
    assert found.variation < 1.5 * found.exact
    assert found.degrees > 20


@pytest.mark.parametrize("kind", file_size.KINDS)
def test_files_of_a_size_are_read(kind: str, tmp_path: Path) -> None:
    path = tmp_path / ("x.txt" if kind == "text" else "x.npy")
    file_size.write(kind, path, 1)
    assert 990_000 < path.stat().st_size <= 1_000_200
    data = file_size.read(kind, path)
    assert (data.num_classes, data.shape) == (27, (1_024,))
    assert next(iter(data.train_dataloader()))["x"].shape == (128, 1_024)


def test_the_forecast_of_several_gpus() -> None:
    rates = {"tflops": 100.0, "inside": 200.0, "between": 20.0, "node": 8}
    assert cost.forecast(1e12, 1e9, gpus=1, **rates) == (10.0, 0.0)
    milliseconds, gigabytes = cost.forecast(1e12, 1e9, gpus=8, **rates)
    assert (milliseconds, gigabytes) == pytest.approx((10 + 35, 7))  # each sends 2 7/8 times 4 GB, at 200 GB/s
    assert cost.forecast(1e12, 1e9, gpus=16, **rates) == pytest.approx((10 + 375, 7.5))
