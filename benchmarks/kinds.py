"""The kinds of data of the comparison tables: what all rows of a table share.

A kind has its data, the networks, the latent and the measures of samples. Rows differ in process, latent and T.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from common import Recipe
from mnist import classifier_features, quality
from torch import Tensor
from torch.nn import functional as F

from fldd_lightning import (
    FLDD,
    MLP,
    AutoencoderLatent,
    ChainLatent,
    ConvAutoencoder,
    DiscreteDataModule,
    GeneratedText,
    ImageFLDD,
    MixtureLatent,
    MNISTDataModule,
    NGramJudge,
    Split,
    TextDataModule,
    TextFLDD,
    TrainedChainLatent,
    TrainedMixtureLatent,
    Transformer,
    UNet,
)

__all__ = ["KINDS", "Kind", "Source"]


@dataclass(frozen=True)
class Source:
    """Data, with what all models of them share.

    Attributes:
        data: Makes the data from a path, a batch size and a seed.
        model: The class of the module.
        denoiser: Makes the denoiser.
        forward: Makes the network of a learned process.
        latent: Makes the latent.
        batch: Examples of a training step, one draw of z_t each.
        steps: Training steps.
        samples: How many samples are measured.
        measure: Says of samples ``(N, *shape)`` how good they are, given model, data and a folder for files.
    """

    data: Callable[..., DiscreteDataModule]
    model: Callable[..., FLDD]
    denoiser: Any
    forward: Any
    latent: Any
    batch: int
    steps: int
    samples: int
    measure: Callable[[Any, DiscreteDataModule, Tensor, Path], dict[str, float]]

    def build(self, recipe: Recipe, num_steps: int, lr: float, data: DiscreteDataModule) -> FLDD:
        """A model of the data, by a recipe."""
        return self.model(
            data.num_classes, data.shape, denoiser=self.denoiser, num_steps=num_steps, padded=data.padded, lr=lr,
            **recipe.arguments(self.forward),
        )  # fmt: skip


@dataclass(frozen=True)
class Kind(Source):
    """A kind of data of the tables.

    Attributes:
        quality: The name of the measure that is compared, and whether less of it is better.
        diversity: The name of the measure that must stand beside it.
        tested: How many test examples the bound is of, None for all.
        rates: Learning rates that are tried on validation data.
        joint: Makes a latent that is trained with the rest from the first step.
        precision: Of the networks in training.
        validations: In a training, whose best weights are kept.
    """

    quality: tuple[str, bool]
    diversity: str
    tested: int | None = None
    rates: tuple[float, ...] = (1e-3, 2e-3, 4e-3, 8e-3)
    joint: Any = TrainedMixtureLatent
    precision: str = "32-true"
    validations: int = 4


def of_pictures(model: FLDD, data: DiscreteDataModule, x: Tensor, folder: Path) -> dict[str, float]:
    """Fréchet distance to the test images, and coverage, in the features of a small classifier."""
    assert isinstance(data, MNISTDataModule)
    extractor = classifier_features(data.path, data.shape[0], folder)
    values = quality(extractor, x, data.splits["test"].x)
    return {"frechet": values[extractor.metric_name], "coverage": values[f"coverage_{extractor.name}"]}


_QUALITIES: dict[str, Any] = {}  # by the data: a distance knows the features of its training molecules


def of_molecules(model: FLDD, data: DiscreteDataModule, x: Tensor, folder: Path) -> dict[str, float]:
    """Shares that are valid, unique and novel, and the distance in ChemNet's features."""
    from examples.molecules.smiles import MoleculeQuality

    assert data.vocabulary is not None
    if (key := repr(data.hparams)) not in _QUALITIES:
        _QUALITIES[key] = MoleculeQuality(data.splits["train"].x, list(data.vocabulary))
    values = _QUALITIES[key]
    values.reset()
    values.update(x)
    return {name: float(value) for name, value in values.compute().items()}


def of_texts(model: Any, data: DiscreteDataModule, x: Tensor, folder: Path) -> dict[str, float]:
    """Bits a character in the eyes of a 5-gram judge, and the entropy of the samples' characters."""
    assert isinstance(data, TextDataModule)
    judge = _judge(data)
    metric = GeneratedText(judge.name, model.spec.pad)
    metric.update(x, judge(model.texts(x)), torch.zeros(len(x), 0))
    return {name: float(value) for name, value in metric.compute().items() if value.numel() == 1}


@lru_cache(1)
def _judge(data: TextDataModule) -> NGramJudge:
    judge = NGramJudge()
    judge.prepare(data.texts("train"), getattr(data.tokenizer, "alphabet", None))
    return judge


def smiles(path: str, batch_size: int, seed: int) -> DiscreteDataModule:
    """Molecules as SMILES, of as many tokens as the longest has."""
    from examples.molecules.smiles import SmilesDataModule

    return SmilesDataModule(path, batch_size=batch_size, seed=seed)


def smiles_of_length(path: str, batch_size: int, seed: int, length: int) -> DiscreteDataModule:
    """Molecules as SMILES, of so many tokens; those that are longer are left out."""
    from examples.molecules.smiles import SmilesDataModule

    class OfLength(SmilesDataModule):
        def load(self) -> dict[str, Split]:
            splits, pad = super().load(), len(self.vocabulary) - 1
            x = {name: F.pad(each.x, (0, max(0, length - each.x.shape[1])), value=pad) for name, each in splits.items()}
            return {name: Split(each[(each[:, length:] == pad).all(1), :length]) for name, each in x.items()}

    return OfLength(path, batch_size=batch_size, seed=seed)


def molecules(*args: Any, **options: Any) -> FLDD:
    """The module of the molecules example, which draws no samples of its own here."""
    from examples.molecules.smiles import MoleculeFLDD

    class Quiet(MoleculeFLDD):
        def make_metrics(self) -> dict[str, Any]:
            return {}

        def update_metrics(self, metrics: Any, batch: Any, nelbo: Tensor) -> None: ...

    return Quiet(*args, **options)


sys.path.append(str(Path(__file__).parents[1]))  # for the example

KINDS = {
    "mnist16": Kind(
        partial(MNISTDataModule, size=16), ImageFLDD, partial(MLP, width=512, embedding=4),
        partial(MLP, width=512, embedding=4), MixtureLatent, batch=512, steps=3_000, samples=5_000,
        measure=of_pictures, quality=("frechet", True), diversity="coverage", precision="bf16-mixed",
    ),
    "mnist28": Kind(
        partial(MNISTDataModule, size=28), ImageFLDD, partial(UNet, widths=(16, 32, 64)),
        partial(UNet, widths=(16, 32, 64)), partial(AutoencoderLatent, autoencoder=ConvAutoencoder), batch=128,
        steps=600, samples=2_000, measure=of_pictures, quality=("frechet", True), diversity="coverage",
        tested=1_024, rates=(4e-3, 8e-3),
        joint=partial(AutoencoderLatent, autoencoder=ConvAutoencoder, fit_steps=0), precision="bf16-mixed",
        validations=1,  # two passes through the data
    ),
    "qm9": Kind(
        smiles, molecules, partial(MLP, width=512), partial(MLP, width=512), MixtureLatent, batch=256, steps=3_000,
        samples=1_000, measure=of_molecules, quality=("valid", False), diversity="unique", tested=4_096,
    ),
    "text64": Kind(
        partial(TextDataModule, length=64), TextFLDD, partial(Transformer, width=128, depth=3, heads=4),
        partial(Transformer, width=64, depth=2, heads=4), ChainLatent, batch=64, steps=1_500, samples=500,
        measure=of_texts, quality=("gen_bits_5gram", True), diversity="entropy", tested=1_024, rates=(5e-4, 1e-3, 2e-3),
        joint=TrainedChainLatent,
    ),
}  # fmt: skip
