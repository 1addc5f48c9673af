"""Guidance of a labelled model: how often samples show their label, and how diverse they stay, for each weight.

    python benchmarks/guidance.py --path FOLDER_WITH_IDX_FILES
    python benchmarks/guidance.py --path FOLDER_WITH_IDX_FILES --sizes 16 --steps 3000

One model of binarised MNIST is trained with a tenth of its labels dropped. Samples are asked for the labels of
the first test images. ``accuracy`` is the share of samples to which the classifier of ``classifier.py`` gives that
label; it has seen no sample. Fréchet distance and coverage are taken in its features, as in ``mnist.py``. The row of
weight ``data`` puts validation images, with their own labels, in the place of samples. One thread.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path

import torch
from common import made_with, measured, one_thread, run_missing, train
from lightning.pytorch import seed_everything
from mnist import classifier_features, quality
from torch import Tensor
from work import COSTS, TrainingWork, costs

from fldd_lightning import MLP, Guided, ImageFLDD, LabelLatent, LearnedMaskProcess, MNISTDataModule
from fldd_lightning.categorical import grey_levels

NUM_STEPS, DROPPED = 4, 0.1


def made(path: str, size: int, seed: int) -> tuple[ImageFLDD, MNISTDataModule]:
    """The model of a row before training, and its data."""
    seed_everything(seed, verbose=False)
    data = MNISTDataModule(path, size=size, batch_size=256, seed=seed)
    network = partial(MLP, width=32 * size, embedding=4)
    model = ImageFLDD(
        data.num_classes,
        data.shape,
        partial(LearnedMaskProcess, network=network),
        network,
        latents=partial(LabelLatent, dropped=DROPPED),
        condition_sizes=data.condition_sizes,
        num_steps=NUM_STEPS,
    )
    return model, data


@lru_cache(1)
def trained(path: str, size: int, seed: int, steps: int) -> tuple[ImageFLDD, dict[str, object]]:
    """A trained model, and columns of its rows: its bound of the test set, seconds of training, and what it costs."""
    (model, data), work = made(path, size, seed), TrainingWork()
    _, seconds = train(model, data, steps, [work])
    nelbo = f"{measured(model, data)['test/nelbo']:.4f}"
    return model, {"nelbo": nelbo, "seconds": round(seconds), **costs(model, work.total(steps))}


def run(path: str, output: Path, size: int, weight: str, seed: int, steps: int, samples: int) -> dict[str, object]:
    """Draw and measure samples of one weight; returns a row of the table."""
    classifier = classifier_features(path, size, output.parent)
    data = MNISTDataModule(path, size=size)
    test, val = data.splits["test"], data.splits["val"]
    assert test.labels is not None
    assert val.labels is not None
    said_of: dict[str, object] = {"nelbo": "", "seconds": 0, **dict.fromkeys(COSTS, "")}
    if weight == "data":
        drawn, asked = val.x[:samples], val.labels[:samples]
    else:
        model, said_of = trained(path, size, seed, steps)
        asked = test.labels[:samples]
        decoding = Guided(float(weight))
        drawn = model.sample(samples, batch_size=500, decoding=decoding, condition={"label": asked})
    values = quality(classifier, drawn, test.x)
    with torch.no_grad():
        said = torch.cat([_pictures_said(classifier.network, part) for part in torch.split(drawn, 1_000)])
    return {
        "size": size,
        "weight": weight,
        "seed": seed,
        "steps": steps,
        "samples": samples,
        "accuracy": f"{float((said == asked).float().mean()):.4f}",
        "frechet": f"{values[classifier.metric_name]:.4f}",
        "coverage": f"{values[f'coverage_{classifier.name}']:.4f}",
        "nelbo": said_of["nelbo"],
        "classifier": f"{classifier.accuracy:.4f}",
        "seconds": said_of["seconds"],
        **made_with(),
        **{name: said_of[name] for name in COSTS},
    }


def _pictures_said(network: torch.nn.Module, x: Tensor) -> Tensor:
    """The label that a classifier gives to binary images ``(N, H, W)``, ``(N,)``."""
    labels: Tensor = network(grey_levels(x.unsqueeze(1), 2)).argmax(-1)
    return labels


def main(args: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", required=True, help="folder with the files of MNIST")
    parser.add_argument("--sizes", nargs="+", type=int, default=[8])
    parser.add_argument("--weights", nargs="+", default=["0", "0.5", "1", "2", "4", "data"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=1_500, help="optimiser steps")
    parser.add_argument("--samples", type=int, default=5_000)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/guidance.csv"))
    arguments = parser.parse_args(args)
    one_thread()
    keys = [
        {"size": size, "weight": weight, "seed": seed, "steps": arguments.steps, "samples": arguments.samples}
        for size in arguments.sizes
        for seed in arguments.seeds
        for weight in arguments.weights
    ]
    run_missing(arguments.output, keys, partial(run, arguments.path, arguments.output))


if __name__ == "__main__":
    main()
