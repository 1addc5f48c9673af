"""Nothing fitted beforehand and nothing set by hand: how good is it, and what of it is learning worth?

    python benchmarks/one_stage.py --kind qm9 --path train_smile.txt
    python benchmarks/one_stage.py --kind qm9 --path train_smile.txt --held nothing

Training starts at conventional masked diffusion with T = 4. From the first step gradients on the bound move all parts:
denoiser, schedule and latent. A learned schedule hardly depends on x, so its network is small here, and the operations
that this saves go into more steps. ``OPERATIONS`` says how many there are: those of an order by hand with a schedule
learned from it and a latent that is fitted beforehand, of the fit, too; ``--count`` counts them again.

A row holds a part of the forward process as it starts: nothing, the schedule, the latent's encoder q(c|x), or both. The
denoiser learns in all of them, and so do the decoder and the prior of an autoencoder. (The tables of a mixture or a
chain are encoder and decoder in one.) A schedule that is held has no network. All rows have equal operations.

Each row has its own learning rate, by ``val/nelbo`` after a third of the steps (``tuning.csv``). Rows that are there
are not measured again. One thread a run.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from common import joined, made_with, measured, one_thread, run_missing, train, tuned_rate
from factorial import STEPS, build, train_a_third
from kinds import KINDS, Kind
from lightning.pytorch import seed_everything
from torch import nn
from work import TrainingWork, costs, costs_untrained, step_operations

from fldd_lightning import FLDD, MLP, AutoencoderLatent, DiscreteDataModule, Transformer, UNet

__all__ = ["HELD", "OPERATIONS", "SMALL", "main", "run", "tuned_as"]

HELD = ("nothing", "schedule", "encoder", "both")
# GFLOP of the recipe that is partly fitted and set by hand: steps of ``kinds.py``, and the latent's fit
OPERATIONS = {"mnist16": 36_687, "mnist28": 59_422, "qm9": 14_198, "text64": 32_810}
SMALL: dict[str, Any] = {
    "mnist16": partial(MLP, width=64, embedding=4),
    "mnist28": partial(UNet, widths=(8, 16, 32)),
    "qm9": partial(MLP, width=64),
    "text64": partial(Transformer, width=32, depth=1, heads=2),
}
RATES = {
    "mnist16": (2e-3, 4e-3, 8e-3), "mnist28": (4e-3, 8e-3), "qm9": (2e-3, 4e-3, 8e-3), "text64": (1e-3, 2e-3),
}  # fmt: skip


def small(name: str) -> Kind:
    """A kind of data whose learned processes have a small network."""
    return replace(KINDS[name], forward=SMALL[name])


def made(name: str, held: str, rate: float, data: DiscreteDataModule) -> FLDD:
    """The model of a row."""
    process = "masked at T" if held in ("schedule", "both") else "learned from masks"
    model = build(small(name), process, "joint", STEPS[0], rate, data)
    if held in ("encoder", "both"):
        for latent in model.latents:
            part: nn.Module = latent.autoencoder.encode if isinstance(latent, AutoencoderLatent) else latent
            part.requires_grad_(False)
    return model


def num_steps_of(name: str, held: str, data: DiscreteDataModule) -> int:
    """As many optimiser steps as the operations allow."""
    return int(OPERATIONS[name] * 1e9 // step_operations(made(name, held, 1e-3, data), data))


def tuned_as(held: str) -> str:
    """What a row is called where its learning rate was chosen."""
    return "one stage" if held == "nothing" else f"one stage, {held} held"


def run(kind: str, held: str, seed: int, path: str, output: Path) -> dict[str, object]:
    """Train and measure one row."""
    chosen = KINDS[kind]
    data, work = chosen.data(path, batch_size=chosen.batch, seed=0), TrainingWork()
    steps = num_steps_of(kind, held, data)
    tuned = {"kind": kind, "process": tuned_as(held), "latent": "joint"}
    at = partial(train_a_third, small(kind), partial(made, kind, held), path)
    rate = tuned_rate(output.with_name("tuning.csv"), tuned, RATES[kind], steps, at)
    seed_everything(seed, verbose=False)
    model = made(kind, held, rate, data)
    val, seconds = train(model, data, steps, [work], chosen.precision, chosen.validations)
    logged = measured(model, data, [], chosen.tested)
    x = model.sample(chosen.samples, seed, batch_size=500)
    said = chosen.measure(model, data, x, output.parent)
    return {
        "kind": kind, "held": held, "seed": seed, "num_steps": STEPS[0], "steps": steps, "lr": rate,
        "val_nelbo": f"{val:.4f}", **{name: f"{logged[f'test/{name}']:.4f}" for name in ("nelbo", "nelbo_se")},
        "quality": f"{said[chosen.quality[0]]:.4f}", "diversity": f"{said[chosen.diversity]:.4f}",
        "measures": joined(said), "samples": chosen.samples, "allowed_gflop": OPERATIONS[kind],
        **costs(model, work.total(steps)), "seconds": round(seconds), **made_with(chosen.precision),
    }  # fmt: skip


def count(name: str, path: str) -> int:
    """GFLOP of the recipe that is partly fitted and set by hand."""
    kind = KINDS[name]

    def make() -> tuple[FLDD, DiscreteDataModule]:
        data = kind.data(path, batch_size=kind.batch, seed=0)
        return build(kind, "learned", "yes", STEPS[0], 1e-3, data), data

    return costs_untrained(make, kind.steps)["training_gflop"]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=OPERATIONS, required=True)
    parser.add_argument("--path", required=True, help="the kind's data: a folder or a file")
    parser.add_argument("--held", nargs="+", choices=HELD, default=list(HELD), help="what does not learn, a row each")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--count", action="store_true", help="count the operations that are allowed, and train nothing")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/one_stage.csv"))
    arguments = parser.parse_args()
    one_thread()
    if arguments.count:
        print(f"{arguments.kind}: {count(arguments.kind, arguments.path):,.0f} GFLOP")
        return
    keys = [{"kind": arguments.kind, "held": held, "seed": seed} for held in arguments.held for seed in arguments.seeds]
    run_missing(arguments.output, keys, partial(run, path=arguments.path, output=arguments.output))


if __name__ == "__main__":
    main()
