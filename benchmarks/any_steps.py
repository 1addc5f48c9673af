"""One training for any number of steps against one training for each: bound and quality of samples at equal steps.

    python benchmarks/any_steps.py --kind mnist16 --path FOLDER_WITH_IDX_FILES
    python benchmarks/any_steps.py --kind text64 --path text8.txt --steps 500 --lr 1e-3

Processes without a latent: an order set by hand, and a schedule learned from it. For each, T in {1, 2, 4, 8, 16, 64}.
``each`` trains a model for every T. ``all`` trains one model with ``budgets``, in as many optimiser steps as one of
those. All have the learning rate that ``factorial.py`` chose for the process (``tuning.csv``). At T = 1 there is
nothing to learn, and the schedule is that of the order by hand. Rows that are there are not measured again, nor are
those of ``factorial.csv``, which come from the same trainings. One thread a run.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from common import append_row, joined, made_with, measured, one_thread, rows_of, train
from factorial import PROCESSES, chosen_rate
from kinds import KINDS
from lightning.pytorch import seed_everything
from work import COSTS, TrainingWork, costs

from fldd_lightning import FLDD, DiscreteDataModule

__all__ = ["BUDGETS", "main", "run"]

BUDGETS = (1, 2, 4, 8, 16, 64)
CHECKED = 4  # the T at which validation chooses among the checkpoints of a model of all T
COMPARED = ("order by hand", "learned")
MEASURED = (
    "lr", "nelbo", "nelbo_se", "quality", "measures", "samples", "seconds", "version", "torch", "machine", *COSTS,
)  # fmt: skip


def build(kind: str, process: str, budgets: tuple[int, ...], rate: float, data: DiscreteDataModule) -> FLDD:
    """A model of one number of steps or of several."""
    if len(budgets) > 1:
        recipe = replace(PROCESSES[process], options={"budgets": budgets})
        return KINDS[kind].build(recipe, CHECKED, rate, data)
    fixed = "order by hand" if budgets == (1,) else process
    return KINDS[kind].build(PROCESSES[fixed], budgets[0], rate, data)


def made(
    path: str, kind: str, process: str, trained: str, num_steps: int, seed: int
) -> tuple[FLDD, DiscreteDataModule]:
    """The model of a row, before its training, and its data."""
    seed_everything(seed, verbose=False)
    data = KINDS[kind].data(path, batch_size=KINDS[kind].batch, seed=0)
    model = build(kind, process, BUDGETS if trained == "all" else (num_steps,), 1e-3, data)
    return model, data


def run(
    kind: str,
    process: str,
    budgets: tuple[int, ...],
    seed: int,
    path: str,
    output: Path,
    steps: int,
    rate: float | None = None,
) -> None:
    """Train one model and measure it at each of its numbers of steps; appends the rows that are missing.

    Args:
        kind: Of the data.
        process: The forward process.
        budgets: One number of steps, or those of a model of several.
        seed: Of weights and noise.
        path: The kind's data.
        output: The CSV.
        steps: Optimiser steps.
        rate: Learning rate; None for the one that ``factorial.py`` chose, or would choose.
    """
    chosen = KINDS[kind]
    base = {"kind": kind, "process": process, "trained": "all" if len(budgets) > 1 else "each"}
    keys = [{**base, "num_steps": t, "seed": seed, "steps": steps} for t in budgets]
    missing = [key for key in keys if not rows_of(output, key)]
    if len(budgets) == 1 and missing:
        missing = [key for key in missing if not taken_over(key, output)]
    if not missing:
        return
    rate = rate or chosen_rate(kind, process, "no", path, output)
    seed_everything(seed, verbose=False)
    data = chosen.data(path, batch_size=chosen.batch, seed=0)
    trained = build(kind, process, budgets, rate, data)
    work = TrainingWork()
    _, seconds = train(trained, data, steps, [work])
    for key in missing:
        model = trained.with_num_steps(key["num_steps"]) if len(budgets) > 1 else trained
        logged = measured(model, data, most=chosen.tested)
        x = model.sample(chosen.samples, seed, batch_size=500)
        said = chosen.measure(model, data, x, output.parent)
        row = {
            **key, "lr": rate,
            **{name: f"{logged[f'test/{name}']:.4f}" for name in ("nelbo", "nelbo_se")},
            "quality": f"{said[chosen.quality[0]]:.4f}", "measures": joined(said), "samples": chosen.samples,
            "seconds": round(seconds), **made_with(), **costs(model, work.total(steps)),
        }  # fmt: skip
        append_row(output, row)
        print(row, flush=True)


def taken_over(key: Mapping[str, object], output: Path) -> bool:
    """Append the row of a model of one T from ``factorial.csv``; False if it has none."""
    same = {name: value for name, value in key.items() if name != "trained"}
    found = rows_of(output.with_name("factorial.csv"), {**same, "latent": "no", "decoding": "ancestral"})
    if found:
        append_row(output, {**key, **{name: found[0][name] for name in MEASURED}})
    return bool(found)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=("mnist16", "text64"), required=True)
    parser.add_argument("--path", required=True, help="the kind's data: a folder or a file")
    parser.add_argument("--processes", nargs="+", choices=COMPARED, default=COMPARED)
    parser.add_argument("--trained", nargs="+", choices=("all", "each"), default=("all", "each"))
    parser.add_argument("--steps", type=int, help="optimiser steps, if not those of the kind")
    parser.add_argument("--lr", type=float, help="learning rate of all models, if not those of tuning.csv")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/any_steps.csv"))
    arguments = parser.parse_args()
    one_thread()
    steps = arguments.steps or KINDS[arguments.kind].steps
    chosen = partial(run, path=arguments.path, output=arguments.output, steps=steps, rate=arguments.lr)
    for seed in arguments.seeds:
        for process in arguments.processes:
            for trained in arguments.trained:
                for budgets in [BUDGETS] if trained == "all" else [(t,) for t in BUDGETS]:
                    chosen(arguments.kind, process, budgets, seed)


if __name__ == "__main__":
    main()
