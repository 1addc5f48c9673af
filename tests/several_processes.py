"""Trains models on two processes; started by test_several_processes.py, which trains them on one."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import Callback

from conftest import small_mlp
from fldd_lightning import (
    FLDD,
    RLOO,
    AbsorbingProcess,
    AutoencoderLatent,
    Concrete,
    ExactMasks,
    LearnedMaskProcess,
    MaskedReverse,
    MLPAutoencoder,
    Reinforce,
    TrainedChainLatent,
    TrainedMixtureLatent,
    WarmUp,
)
from tiny import Pairs, build, trainer, with_latent

STEPS = 8
LEARNED = partial(LearnedMaskProcess, network=small_mlp, base=AbsorbingProcess)
FREE: dict[str, Any] = {"freeze_steps": 0, "num_steps": 3}
TIMELESS = {"forward_process": AbsorbingProcess, "reverse": partial(MaskedReverse, time_independent=True)}
SMALL = partial(
    AutoencoderLatent, size=2, autoencoder=partial(MLPAutoencoder, width=8), components=2, couplings=2, fit_steps=0
)
MODELS: dict[str, Callable[[], FLDD]] = {
    "learned": partial(build, forward_process=LEARNED, estimator=Reinforce, **FREE),
    "leave one out": partial(build, forward_process=LEARNED, estimator=partial(RLOO, samples=2), **FREE),
    "as many steps as examples": partial(
        build, forward_process=LEARNED, estimator=Reinforce, **{**FREE, "num_steps": 16}
    ),
    "dense": partial(build, estimator=Reinforce, **FREE),
    "relaxed": partial(build, estimator=partial(WarmUp, first=Concrete, then=Reinforce, steps=4), **FREE),
    "exactly n masks": partial(build, estimator=ExactMasks, **TIMELESS),
    "observed": partial(build, forward_process=LEARNED, estimator=Reinforce, observed=0.5, **FREE),
    "mixture": partial(with_latent, latents=partial(TrainedMixtureLatent, size=4), estimator=Reinforce, **FREE),
    "chain": partial(with_latent, latents=partial(TrainedChainLatent, size=4, part=1), estimator=Reinforce, **FREE),
    "autoencoder": partial(with_latent, latents=SMALL, estimator=Reinforce, **FREE),
    "fitted mixture": partial(with_latent, estimator=Reinforce, **FREE),
}


class SaveAt(Callback):
    """Writes a checkpoint after five steps."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        if trainer.global_step == 5:
            trainer.save_checkpoint(self.path)


def trained(folder: Path, name: str, batch_size: int, start: Path | None = None, **options: Any) -> Any:
    """Train a model, from a checkpoint if one is given; returns its trainer."""
    seed_everything(3, verbose=False)
    run = trainer(folder, max_steps=STEPS, limit_val_batches=0, **options)
    run.fit(MODELS[name](), Pairs(batch_size=batch_size), ckpt_path=None if start is None else str(start))
    return run


def is_finite(run: Any) -> bool:
    """Whether all that was logged of the last step is a number."""
    return all(bool(value.isfinite()) for value in run.lightning_module.logged.values())


def weights(run: Any) -> dict[str, torch.Tensor]:
    """The parameters, the running means and the tables at the end of a training."""
    return {name: value.detach().clone() for name, value in run.lightning_module.state_dict().items()}


if __name__ == "__main__":
    folder, two = Path(sys.argv[1]), {"strategy": "ddp", "devices": 2}
    for name in MODELS:
        torch.save(weights(run := trained(folder, name, 8, **two)), folder / f"{name}{run.global_rank}.pt")
        assert is_finite(run), name
    trained(folder, "mixture", 8, callbacks=[SaveAt(folder / "of_two.ckpt")], **two)
    run = trained(folder, "mixture", 8, start=folder / "of_one.ckpt", **two)
    torch.save(weights(run), folder / f"resumed{run.global_rank}.pt")
