"""Does a learned forward process collapse on SMILES of ZINC? The paper's recipe, ours and masked diffusion.

    python benchmarks/zinc.py --path train_smile.txt
    python benchmarks/zinc.py --figure

Others report 3.0 % valid molecules of FLDD here with T = 50, and 58.7 % of masked diffusion (VSDD, arXiv 2609.35166),
with a large Transformer and 50 epochs. This is a small version, with one denoiser for all and learning curves:

- ``masked``: masked diffusion, as strong as we know it. One training serves every T.
- ``paper``: tokens may move to any other. Concrete draws for a third of the steps, then REINFORCE. No latent.
- ``ours``: a schedule learned from an order by hand, with a mixture that is fitted before training.
- ``one stage``: a schedule learned from masked diffusion, with a mixture that is trained with the rest.

All have the operations of ``masked``: fewer optimiser steps where a step costs more. The learning rate is chosen on
validation data at T = 4, after a third of the steps (``tuning.csv``). Rows that are there are not measured again. One
thread a run.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from common import MASKED, Recipe, append_row, joined, made_with, measured, one_thread, rows_of, train, tuned_rate
from factorial import train_a_third
from kinds import Kind, molecules, of_molecules, smiles
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import Callback
from work import TrainingWork, costs, step_operations

from fldd_lightning import (
    FLDD,
    MLP,
    AbsorbingProcess,
    Ancestral,
    Concrete,
    ConfidentFirst,
    Decoding,
    DiscreteDataModule,
    LearnedMaskProcess,
    MixtureLatent,
    Reinforce,
    ResidualUniformProcess,
    TrainedMixtureLatent,
    WarmUp,
)

__all__ = ["METHODS", "ZINC", "Curve", "main", "run"]

ZINC = Kind(
    smiles, molecules, partial(MLP, width=512), partial(MLP, width=64), MixtureLatent, batch=256, steps=12_000,
    samples=1_000, measure=of_molecules, quality=("valid", False), diversity="unique", tested=2_048,
    precision="bf16-mixed",
)  # fmt: skip


def methods(steps: int) -> dict[str, Recipe]:
    """What is compared, for a training of so many steps."""
    warm_up = partial(WarmUp, first=Concrete, then=Reinforce, steps=steps // 3)
    return {
        "masked": MASKED,
        "paper": Recipe(ResidualUniformProcess, (), warm_up),
        "ours": Recipe(LearnedMaskProcess, MixtureLatent),
        "one stage": Recipe(partial(LearnedMaskProcess, base=AbsorbingProcess), TrainedMixtureLatent),
    }


METHODS = tuple(methods(1))
STEPS = (4, 10, 50)
DECODINGS: dict[str, Decoding] = {"ancestral": Ancestral(), "confident first": ConfidentFirst(noise=1.0)}
VALIDATIONS = 12


class Curve(Callback):
    """Remembers what the validations of a training find.

    Attributes:
        found: Optimiser steps and ``val/nelbo``.
    """

    def __init__(self) -> None:
        self.found: dict[int, float] = {}

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking and "val/nelbo" in trainer.callback_metrics:
            self.found[trainer.global_step] = float(trainer.callback_metrics["val/nelbo"])

    def state_dict(self) -> dict[str, Any]:
        return {"found": self.found}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.found = dict(state_dict["found"])

    def said(self) -> str:
        """As one column."""
        return " ".join(f"{step}={nelbo:.3f}" for step, nelbo in sorted(self.found.items()))


def made(kind: Kind, method: str, num_steps: int, steps: int, rate: float, data: DiscreteDataModule) -> FLDD:
    """The model of a row."""
    return kind.build(methods(steps)[method], num_steps, rate, data)


def own_steps(kind: Kind, method: str, data: DiscreteDataModule) -> int:
    """As many optimiser steps as the operations of masked diffusion allow."""
    allowed, own = (step_operations(made(kind, each, STEPS[0], 3, 1e-3, data), data) for each in ("masked", method))
    return kind.steps * allowed // own


def run(kind: Kind, method: str, num_steps: tuple[int, ...], seed: int, path: str, output: Path) -> None:
    """Train one model and append its rows, of several T where one training serves them all."""
    is_timeless = methods(1)[method].is_timeless
    decodings = list(DECODINGS) if is_timeless else ["ancestral"]
    key = {"method": method, "seed": seed}
    keys = [{**key, "num_steps": t, "decoding": d} for t in num_steps for d in decodings]
    keys = [each for each in keys if not rows_of(output, each)]
    if not keys:
        return
    seed_everything(0, verbose=False)
    data, work, curve = kind.data(path, batch_size=kind.batch, seed=0), TrainingWork(), Curve()
    steps = own_steps(kind, method, data)

    tuned = {"kind": "zinc", "process": method, "latent": "its own"}
    at = partial(train_a_third, kind, partial(made, kind, method, STEPS[0], steps // 3), path)
    rate = tuned_rate(output.with_name("tuning.csv"), tuned, kind.rates, steps, at)
    seed_everything(seed, verbose=False)
    trained = made(kind, method, num_steps[0], steps, rate, data)
    _, seconds = train(trained, data, steps, [work, curve], kind.precision, VALIDATIONS)
    logged: dict[int, dict[str, float]] = {}  # the bound is the same whatever the decoding
    for each in keys:
        t = int(str(each["num_steps"]))
        model = trained.with_num_steps(t) if is_timeless else trained
        if t not in logged:
            logged[t] = measured(model, data, [], kind.tested)
        x = model.sample(kind.samples, seed, batch_size=500, decoding=DECODINGS[str(each["decoding"])])
        said = kind.measure(model, data, x, output.parent)
        row = {
            **each, "steps": steps, "lr": rate,
            **{name: f"{logged[t][f'test/{name}']:.4f}" for name in ("nelbo", "nelbo_se")},
            "measures": joined(said), "samples": kind.samples, "curve": curve.said(),
            **costs(model, work.total(steps)), "seconds": round(seconds), **made_with(kind.precision),
        }  # fmt: skip
        append_row(output, row)
        print(row, flush=True)


def main(args: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", help="file with one SMILES a line")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=ZINC.steps, help="optimiser steps of masked diffusion")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/zinc.csv"))
    parser.add_argument("--figure", action="store_true", help="draw what is in the CSV and run nothing")
    arguments = parser.parse_args(args)
    if arguments.figure:
        from zinc_figure import draw

        draw(arguments.output)
        return
    if arguments.path is None:
        parser.error("give --path, or --figure")
    one_thread()
    kind = replace(ZINC, steps=arguments.steps)
    for seed in arguments.seeds:
        for method in arguments.methods:
            groups = [STEPS] if methods(1)[method].is_timeless else [(t,) for t in STEPS]
            for num_steps in groups:
                run(kind, method, num_steps, seed, arguments.path, arguments.output)


if __name__ == "__main__":
    main()
