"""What is learning worth? The same model with parts of its forward process held as they start, at equal operations.

    python benchmarks/held.py --kind qm9 --path train_smile.txt

Everything starts at conventional masked diffusion with T = 4. No order is set by hand, nothing is fitted beforehand.
The forward process has two parts that gradients on the bound may move, the schedule and the latent's encoder q(c|x).
A row holds none of them, the schedule, the encoder, or both. The denoiser learns in all of them, and so do the decoder
and the prior of an autoencoder. (The tables of a mixture or a chain are encoder and decoder in one.)

A model whose schedule is held has no network for it, and trains for as many more steps as that network would have cost.
All rows of a kind have one learning rate: that of the learned model without a latent (``tuning.csv``). Rows that are
there are not measured again. One thread a run.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from common import made_with, measured, one_thread, run_missing, train
from factorial import STEPS, build, chosen_rate
from kinds import KINDS, Kind
from lightning.pytorch import seed_everything
from torch import nn
from work import counted

from fldd_lightning import FLDD, AutoencoderLatent, DiscreteDataModule

__all__ = ["HELD", "main", "run"]

HELD = ("nothing", "schedule", "encoder", "both")
LEARNED = "learned from masks"


def made(kind: Kind, held: str, rate: float, data: DiscreteDataModule) -> FLDD:
    """The model of a row."""
    process = "masked at T" if held in ("schedule", "both") else LEARNED
    model = build(kind, process, "joint", STEPS[0], rate, data)
    if held in ("encoder", "both"):
        for latent in model.latents:
            part: nn.Module = latent.autoencoder.encode if isinstance(latent, AutoencoderLatent) else latent
            part.requires_grad_(False)
    return model


def operations(model: FLDD, data: DiscreteDataModule) -> int:
    """Of one training step of a model, on one batch."""
    batch = next(iter(data.train_dataloader()))
    model.train()
    total = counted(lambda: model.training_step(batch, 0).backward())
    model.zero_grad()
    return total


def run(kind: str, held: str, seed: int, steps: int, path: str, output: Path) -> dict[str, object]:
    """Train and measure one row."""
    chosen = KINDS[kind]
    rate = chosen_rate(kind, LEARNED, "no", path, output)
    seed_everything(seed, verbose=False)
    data = chosen.data(path, batch_size=chosen.batch, seed=0)
    whole, own = (operations(made(chosen, each, rate, data), data) for each in ("nothing", held))
    own_steps = round(steps * whole / own)
    seed_everything(seed, verbose=False)
    model = made(chosen, held, rate, data)
    val, seconds = train(model, data, own_steps, precision=chosen.precision)
    logged = measured(model, data, [], chosen.tested)
    x = model.sample(chosen.samples, seed, batch_size=500)
    said = chosen.measure(model, data, x, output.parent)
    return {
        "kind": kind, "held": held, "seed": seed, "steps": steps, "own_steps": own_steps, "lr": rate,
        "training_gflop": round(own * own_steps / 1e9), "val_nelbo": f"{val:.4f}",
        "nelbo": f"{logged['test/nelbo']:.4f}", "nelbo_se": f"{logged['test/nelbo_se']:.4f}",
        "quality": f"{said[chosen.quality[0]]:.4f}", "diversity": f"{said[chosen.diversity]:.4f}",
        "seconds": round(seconds), **made_with(chosen.precision),
    }  # fmt: skip


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=KINDS, required=True)
    parser.add_argument("--path", required=True, help="the kind's data: a folder or a file")
    parser.add_argument("--held", nargs="+", choices=HELD, default=list(HELD))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="optimiser steps of the learned model, if not those of the kind")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/held.csv"))
    arguments = parser.parse_args()
    one_thread()
    steps = arguments.steps or KINDS[arguments.kind].steps
    keys = [
        {"kind": arguments.kind, "held": held, "seed": seed, "steps": steps}
        for seed in arguments.seeds
        for held in arguments.held
    ]
    run_missing(arguments.output, keys, partial(run, path=arguments.path, output=arguments.output))


if __name__ == "__main__":
    main()
