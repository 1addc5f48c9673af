"""What does the work: the process, the latent, or the number of steps? All combinations, at equal steps.

    python benchmarks/factorial.py --kind mnist16 --path FOLDER_WITH_IDX_FILES
    python benchmarks/factorial.py --kind qm9 --path train_smile.txt --baselines
    python benchmarks/factorial.py --figure

{masked diffusion, order by hand, learned} x {no latent, latent} x T in {2, 4, 16, 64}; three seeds at T = 4, one at
others. ``--baselines`` adds uniform diffusion and D3PM, which predict x. ``--one_stage`` adds, at T = 4, a schedule
learned from masked diffusion, and latents that are trained with the rest instead of before it. Masked diffusion is
trained as well as we know: the denoiser does not see the step, and exactly n coordinates are masked (``ExactMasks``).
One training serves every T. T = 1 is the latent and one pass of the denoiser. Its samples are drawn ancestrally, with a
fixed number revealed at each step, and by confidence.

Each process, and each with a latent, has its own learning rate. It is the best of four, by ``val/nelbo`` at T = 4 after
a third of the steps (``tuning.csv``); of three on text, of two on 28×28 MNIST. All rows have as many steps and
examples. A learned process costs up to twice the operations, which stand in each row, with those of a latent's fit.
Rows that are there are not measured again. One thread a run.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from common import (
    MASKED,
    UNIFORM,
    Recipe,
    append_row,
    joined,
    made_with,
    measured,
    one_thread,
    rows_of,
    train,
    tuned_rate,
)
from kinds import KINDS, Kind
from lightning.pytorch import seed_everything
from work import TrainingWork, sampling_work, trained_numbers

from fldd_lightning import (
    FLDD,
    AbsorbingProcess,
    Ancestral,
    AnyOrderBound,
    ConfidentFirst,
    D3PMProcess,
    Decoding,
    DiscreteDataModule,
    ExactlyN,
    LearnedMaskProcess,
    PredictingReverse,
    StaggeredProcess,
)

__all__ = ["Cell", "cells", "chosen_rate", "main", "run"]


PROCESSES = {
    "masked": MASKED,
    "masked at T": Recipe(AbsorbingProcess),  # told the step, as learned ones are
    "order by hand": Recipe(StaggeredProcess),
    "learned": Recipe(LearnedMaskProcess),
    "learned from masks": Recipe(partial(LearnedMaskProcess, base=AbsorbingProcess)),
    "uniform": UNIFORM,
    "D3PM": Recipe(D3PMProcess, options={"reverse": PredictingReverse}),
}
FACTORS = ("masked", "order by hand", "learned")
BASELINES = ("uniform", "D3PM")
ONE_STAGE = (("learned from masks", "no"), ("learned from masks", "joint"), ("order by hand", "joint"))
STEPS = (4, 2, 16, 64)  # the first is the one with three seeds
DECODINGS: dict[str, Decoding] = {
    "ancestral": Ancestral(), "exactly n": ExactlyN(), "confident first": ConfidentFirst(noise=1.0),
}  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One training: of several T where the process serves them all.

    Attributes:
        kind: Of the data.
        process: The forward process.
        latent: ``no``, ``yes`` for one that is fitted before training, ``joint`` for one that is trained with the rest.
        num_steps: Each T.
        seed: Of weights and noise.
    """

    kind: str
    process: str
    latent: str
    num_steps: tuple[int, ...]
    seed: int

    def rows(self, steps: int) -> list[dict[str, object]]:
        """What tells the rows of this cell from others, after so many optimiser steps."""
        decodings = list(DECODINGS) if self.process == "masked" else ["ancestral"]
        base = {"kind": self.kind, "process": self.process, "latent": self.latent}
        pairs = [(t, d) for t in self.num_steps for d in decodings if t > 1 or d == "ancestral"]
        return [{**base, "num_steps": t, "seed": self.seed, "decoding": d, "steps": steps} for t, d in pairs]


def cells(kind: str, processes: tuple[str, ...] = FACTORS, seeds: int = 3) -> Iterator[Cell]:
    """All trainings of a kind, the most telling first."""
    for seed in range(seeds):
        for steps in STEPS if seed == 0 else STEPS[:1]:
            for latent in ("no", "yes"):
                for process in processes:
                    if not PROCESSES[process].is_timeless:
                        yield Cell(kind, process, latent, (steps,), seed)
                    elif steps == STEPS[0]:
                        alone = (1,) if latent == "yes" else ()
                        yield Cell(kind, process, latent, (*alone, *(STEPS if seed == 0 else STEPS[:1])), seed)


def one_stage(kind: str, seeds: int = 3) -> Iterator[Cell]:
    """The trainings of a kind in which nothing is fitted beforehand, at T = 4."""
    for seed in range(seeds):
        for process, latent in ONE_STAGE:
            yield Cell(kind, process, latent, STEPS[:1], seed)


def build(kind: Kind, process: str, latent: str, num_steps: int, rate: float, data: DiscreteDataModule) -> FLDD:
    """The model of a cell."""
    latents = {"no": (), "yes": kind.latent, "joint": kind.joint}[latent]
    recipe = replace(PROCESSES[process], latents=latents)
    return kind.build(recipe, num_steps, rate, data)


def chosen_rate(name: str, process: str, latent: str, path: str, output: Path, steps: int | None = None) -> float:
    """The learning rate that does best at T = 4 after a third of the steps; see :func:`common.tuned_rate`."""
    kind, key = KINDS[name], {"kind": name, "process": process, "latent": latent}
    at = partial(train_a_third, kind, partial(build, kind, process, latent, STEPS[0]), path)
    return tuned_rate(output.with_name("tuning.csv"), key, kind.rates, steps or kind.steps, at)


def train_a_third(
    kind: Kind, make: Callable[[float, DiscreteDataModule], FLDD], path: str, rate: float, steps: int
) -> tuple[float, float]:
    """Train for a third of a run, with a third of its freeze; returns ``val/nelbo`` and seconds.

    Args:
        kind: Of the data.
        make: Makes the model, of a learning rate and the data.
        path: Of the data.
        rate: The learning rate.
        steps: A third of a run.
    """
    seed_everything(0, verbose=False)
    data = kind.data(path, batch_size=kind.batch, seed=0)
    model = make(rate, data)
    model.freeze_steps //= 3  # as the steps
    return train(model, data, steps, [TrainingWork()], kind.precision, kind.validations)


def run(cell: Cell, path: str, output: Path, steps: int | None = None) -> None:
    """Train and measure one cell; appends the rows that are missing."""
    kind = KINDS[cell.kind]
    steps = steps or kind.steps
    missing = [key for key in cell.rows(steps) if not rows_of(output, key)]
    if not missing:
        return
    rate = chosen_rate(cell.kind, cell.process, cell.latent, path, output, steps)
    seed_everything(cell.seed, verbose=False)
    data, work = kind.data(path, batch_size=kind.batch, seed=0), TrainingWork()
    timeless = PROCESSES[cell.process].is_timeless
    # validation chooses among checkpoints at T = 4 where one training serves all
    trained = build(kind, cell.process, cell.latent, STEPS[0] if timeless else cell.num_steps[0], rate, data)
    _, seconds = train(trained, data, steps, [work], kind.precision, kind.validations)
    for num_steps in cell.num_steps:
        if not any(key["num_steps"] == num_steps for key in missing):
            continue
        model = trained.with_num_steps(num_steps) if timeless else trained
        logged = measured(model, data, [AnyOrderBound()] if timeless else [], kind.tested)
        operations, numbers = sampling_work(model)
        for key in (key for key in missing if key["num_steps"] == num_steps):
            x = model.sample(kind.samples, cell.seed, batch_size=500, decoding=DECODINGS[str(key["decoding"])])
            said = kind.measure(model, data, x, output.parent)
            row = {
                **key, "lr": rate,
                **{name: f"{logged[f'test/{name}']:.4f}" for name in ("nelbo", "nelbo_se")},
                "nelbo_any_order": f"{logged['test/nelbo_any_order']:.4f}" if timeless else "",
                "quality": f"{said[kind.quality[0]]:.4f}", "diversity": f"{said[kind.diversity]:.4f}",
                "measures": joined(said),
                "samples": kind.samples, "training_gflop": round(work.total(steps) / 1e9),
                "fit_gflop": round(work.fit / 1e9), "sample_mflop": round(operations / 1e6, 3),
                "numbers_sampling": numbers, "numbers_training": trained_numbers(model), "seconds": round(seconds),
                **made_with(kind.precision),
            }  # fmt: skip
            append_row(output, row)
            print(row, flush=True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=KINDS)
    parser.add_argument("--path", help="the kind's data: a folder or a file")
    parser.add_argument("--baselines", action="store_true", help="also uniform diffusion and D3PM")
    parser.add_argument("--one_stage", action="store_true", help="also models in which nothing is fitted beforehand")
    parser.add_argument("--steps", type=int, help="optimiser steps, if not those of the kind")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/factorial.csv"))
    parser.add_argument("--figure", action="store_true", help="draw what is in the CSV and run nothing")
    arguments = parser.parse_args()
    if arguments.figure:
        from factorial_figure import draw

        draw(arguments.output)
        return
    if arguments.kind is None or arguments.path is None:
        parser.error("give --kind and --path, or --figure")
    one_thread()
    chosen = [*cells(arguments.kind, (*FACTORS, *BASELINES) if arguments.baselines else FACTORS)]
    for cell in [*one_stage(arguments.kind), *chosen] if arguments.one_stage else chosen:
        run(cell, arguments.path, arguments.output, arguments.steps)


if __name__ == "__main__":
    main()
