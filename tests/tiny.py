"""A tiny model, tiny data and a quiet trainer, for tests of what happens in a run."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer

from conftest import small_mlp
from fldd_lightning import FLDD, MixtureLatent
from fldd_lightning.data import DiscreteDataModule, Split
from fldd_lightning.estimators import RLOO
from fldd_lightning.forward import LearnedMaskProcess, ResidualUniformProcess


class Pairs(DiscreteDataModule):
    """Two equal ternary coordinates: H = log 3, sum of the marginals' entropies 2 log 3."""

    def load(self) -> dict[str, Split]:
        generator = torch.Generator().manual_seed(0)
        x = torch.randint(3, (97, 1), generator=generator).expand(-1, 2)
        return {"train": Split(x[:64]), "val": Split(x[64:81]), "test": Split(x[81:])}


def build(cls: type[FLDD] = FLDD, **options: Any) -> FLDD:
    """A model of two ternary coordinates with T = 2, or of what ``options`` say."""
    defaults: dict[str, Any] = {
        "num_classes": 3,
        "shape": (2,),
        "num_steps": 2,
        "forward_process": partial(ResidualUniformProcess, network=small_mlp),
        "denoiser": small_mlp,
        "estimator": partial(RLOO, samples=2),
        "freeze_steps": 2,
    }
    return cls(**{**defaults, **options})


def with_latent(**options: Any) -> FLDD:
    """A model that masks, with a mixture of four values or the ``latents`` of ``options``."""
    mask = partial(LearnedMaskProcess, network=small_mlp)
    return build(**{"forward_process": mask, "latents": partial(MixtureLatent, size=4), **options})


def trainer(folder: Path, **options: Any) -> Trainer:
    """A trainer on the CPU that writes and shows nothing."""
    defaults: dict[str, Any] = {
        "default_root_dir": folder,
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    return Trainer(**{**defaults, **options})


def fit(folder: Path, model: FLDD, data: DiscreteDataModule, ckpt_path: str | None = None, **options: Any) -> Trainer:
    """Train, and give the trainer."""
    run = trainer(folder, **options)
    run.fit(model, data, ckpt_path=ckpt_path)
    return run


def clear(folder: Path) -> None:
    """Take samples away, which are not written over."""
    for path in folder.glob("s.*"):
        path.unlink()
