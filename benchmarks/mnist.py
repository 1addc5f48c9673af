"""Process x T x seeds on binarised MNIST: NELBO and sample quality at the same number of denoiser passes.

    python benchmarks/mnist.py --path FOLDER_WITH_IDX_FILES --network unet --sizes 28 --steps 3000 --samples 5000
    python benchmarks/mnist.py --path FOLDER_WITH_IDX_FILES --sizes 8 16 --seeds 0 1 2
    python benchmarks/mnist.py --report benchmarks/results/mnist.csv

Every run keeps its first 64 samples in the folder ``mnist_samples`` beside the CSV. The report is, for each
network and size, a figure of samples side by side.

Sample quality is the Fréchet distance between samples and the test images. It is measured in the pixels, and in the
64 features of the classifier that ``classifier.py`` trains on the same images, seed 0. This is not FID. The process
``data`` puts validation images, as many as there are, in the place of samples: the distance of real against real.
MLPs are of width 32 x size. One thread a run; ``--network unet-large`` is for a GPU, and takes it if there is one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from classifier import ClassifierFeatures, train_classifier
from common import (
    MASKED,
    Recipe,
    comparison_keys,
    comparison_parser,
    kl_shares,
    machine,
    one_thread,
    read_rows,
    run_missing,
    train_and_test,
)
from lightning.pytorch import seed_everything
from torch import Tensor
from work import COSTS, TrainingWork, costs

from fldd_lightning import (
    MLP,
    AbsorbingProcess,
    AutoencoderLatent,
    ConvAutoencoder,
    D3PMProcess,
    FeatureExtractor,
    ImageFLDD,
    LearnedMaskProcess,
    MixtureLatent,
    MNISTDataModule,
    PixelFeatures,
    ResidualAbsorbingProcess,
    ResidualUniformProcess,
    SampleQuality,
    StaggeredProcess,
    UNet,
    UniformProcess,
)
from fldd_lightning.categorical import grey_levels


@dataclass(frozen=True)
class Network:
    """A backbone for images of a given size, and the denoiser passes of a training step that suit it."""

    make: Callable[[int], Any]
    passes: int


NETWORKS = {
    "mlp": Network(lambda size: partial(MLP, width=32 * size, embedding=4), 4 * 128),
    "unet": Network(lambda size: partial(UNet, widths=(16, 32, 64)), 4 * 32),
    "unet-large": Network(lambda size: partial(UNet, widths=(32, 64, 128), dropout=0.1), 4 * 128),
}
OF_MIXTURE = partial(AutoencoderLatent, couplings=0)  # MLPs, and no flow
CONVOLUTIONAL = partial(AutoencoderLatent, autoencoder=ConvAutoencoder)
LARGER = partial(AutoencoderLatent, autoencoder=partial(ConvAutoencoder, features=32), fit_steps=12_000)  # for a GPU
PROCESSES = {
    "learned": Recipe(LearnedMaskProcess, MixtureLatent),
    "learned, autoencoder": Recipe(LearnedMaskProcess, OF_MIXTURE),
    "learned, convolutional autoencoder": Recipe(LearnedMaskProcess, CONVOLUTIONAL),
    "learned, larger convolutional autoencoder": Recipe(LearnedMaskProcess, LARGER),
    "learned, no latent": Recipe(LearnedMaskProcess),
    "learned from absorbing": Recipe(partial(LearnedMaskProcess, base=AbsorbingProcess), MixtureLatent),
    "learned from absorbing, no latent": Recipe(partial(LearnedMaskProcess, base=AbsorbingProcess)),
    "learned general": Recipe(ResidualAbsorbingProcess, MixtureLatent),
    "staggered, latent": Recipe(StaggeredProcess, MixtureLatent),
    "staggered, autoencoder": Recipe(StaggeredProcess, OF_MIXTURE),
    "staggered": Recipe(StaggeredProcess),
    "masked, exactly n": MASKED,
    "absorbing": Recipe(AbsorbingProcess),
    "absorbing, latent": Recipe(AbsorbingProcess, MixtureLatent),
    "learned uniform": Recipe(ResidualUniformProcess, MixtureLatent),
    "learned uniform, no latent": Recipe(ResidualUniformProcess),
    "uniform": Recipe(UniformProcess),
    "D3PM": Recipe(D3PMProcess),
}
COMPARED = ("learned", "learned, autoencoder", "learned general", "absorbing", "uniform", "D3PM")
MODELS = [f"{process}:{steps}" for steps in (2, 4, 10) for process in COMPARED]
MOST_PANELS = 6
SHOWN = {  # process and T, of a figure that would have more panels
    ("unet", "28"): [
        ("absorbing", 4), ("absorbing", 64), ("D3PM", 10),
        ("learned", 4), ("learned, convolutional autoencoder", 2), ("learned, convolutional autoencoder", 4),
    ]
}  # fmt: skip
KEYS = ("network", "size", "process", "num_steps", "seed", "steps")


def made(
    path: str, network: str, size: int, process: str, num_steps: int, seed: int
) -> tuple[ImageFLDD, MNISTDataModule]:
    """The model of a row, and its data."""
    seed_everything(seed, verbose=False)
    chosen = NETWORKS[network]
    backbone, data = chosen.make(size), MNISTDataModule(path, size=size, batch_size=chosen.passes, seed=seed)
    arguments = PROCESSES[process].arguments(backbone)
    return ImageFLDD(2, (size, size), denoiser=backbone, num_steps=num_steps, **arguments), data


def run(
    path: str,
    output: Path,
    network: str,
    size: int,
    process: str,
    num_steps: int,
    seed: int,
    steps: int,
    samples: int,
) -> dict[str, object]:
    """Train and test one model; returns a row of the table."""
    classifier = classifier_features(path, size, output.parent)  # its training sets a seed of its own
    key = dict(zip(KEYS, (network, size, process, num_steps, seed, steps), strict=True))
    passes = NETWORKS[network].passes
    row: dict[str, object] = {**key, "nelbo": "", "shares": "", "seconds": 0}
    spent: dict[str, Any] = dict.fromkeys(COSTS, "")
    if process == "data":
        data = MNISTDataModule(path, size=size, batch_size=passes, seed=seed)
        drawn = data.splits["val"].x[:samples]
    else:
        (model, data), work = made(path, network, size, process, num_steps, seed), TrainingWork()
        logged, seconds = train_and_test(model, data, steps, callbacks=[work])
        spent = costs(model, work.total(steps))
        model.to("cuda" if torch.cuda.is_available() else "cpu")
        drawn = model.sample(samples, 0, batch_size=500)
        samples_path = samples_file(output, key)
        samples_path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(samples_path, x=drawn[:64].to(torch.uint8).numpy())
        shares = kl_shares(logged, num_steps)
        row |= {"nelbo": f"{logged['test/nelbo']:.4f}", "shares": shares, "seconds": round(seconds)}
    for name, extractor in (("frechet", classifier), ("frechet_pixels", PixelFeatures())):
        values = quality(extractor, drawn, data.splits["test"].x)
        row[name] = f"{values[extractor.metric_name]:.4f}"
        if extractor is classifier:
            row |= {each: f"{values[f'{each}_{extractor.name}']:.4f}" for each in ("density", "coverage")}
    row |= {"samples": samples, "passes": passes, "torch": torch.__version__, "machine": machine()}
    return {**row, **spent}


def classifier_features(path: str, size: int, folder: Path) -> ClassifierFeatures:
    """The classifier of a size, trained if it is not there yet."""
    file = folder / f"mnist_classifier{size}.pt"
    if not file.exists():
        train_classifier(MNISTDataModule(path, size=size), str(file))
    return ClassifierFeatures(str(file))


@torch.no_grad()
def quality(extractor: FeatureExtractor, samples: Tensor, real: Tensor) -> dict[str, float]:
    """Distances between binary images ``(N, H, W)`` in the extractor's features."""
    metric = SampleQuality(extractor, grey_levels(real[:1], 2))
    for images, is_real in ((samples, False), (real, True)):
        for first in range(0, len(images), 1_000):
            metric.update(grey_levels(images[first : first + 1_000].unsqueeze(1), 2), first, is_real)
    return {name: float(value) for name, value in metric.compute().items()}


def samples_file(csv_path: Path, key: dict[str, Any]) -> Path:
    """Where the samples of a run are kept."""
    name = "-".join(str(key[field]).replace(" ", "_") for field in KEYS)
    return csv_path.parent / f"{csv_path.stem}_samples" / f"{name}.npz"


def figure(rows: list[dict[str, str]], csv_path: Path, path: Path) -> None:
    """Samples side by side, a panel for each row."""
    from matplotlib.figure import Figure

    columns = min(3, len(rows))
    lines = -(-len(rows) // columns)
    drawn = Figure(figsize=(2.5 * columns, 2.9 * lines), layout="constrained")
    axes = drawn.subplots(lines, columns, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, row in zip(axes, rows, strict=False):
        x = np.load(samples_file(csv_path, row))["x"][:36]  # (36, H, W)
        height, width = x.shape[1:]
        grid = np.pad(x.astype(float), ((0, 0), (1, 1), (1, 1)), constant_values=0.35)
        grid = grid.reshape(6, 6, height + 2, width + 2).swapaxes(1, 2).reshape(6 * (height + 2), -1)
        axis.imshow(grid, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        title = f"{row['process']}, T = {row['num_steps']}"
        axis.set_title(f"{title}\n{float(row['nelbo']):.1f} nats, Fréchet {float(row['frechet']):.2f}", fontsize=8)
    drawn.savefig(path, dpi=150)


def report(csv_path: Path) -> None:
    """Write the figures of what is in the CSV: of every process and T the fewest steps and the lowest seed."""
    rows = sorted(read_rows(csv_path), key=lambda row: (int(row["steps"]), int(row["seed"])), reverse=True)
    for network, size in sorted({(row["network"], row["size"]) for row in rows}):
        same = [row for row in rows if (row["network"], row["size"]) == (network, size) and row["process"] != "data"]
        each = {([*PROCESSES].index(row["process"]), int(row["num_steps"])): row for row in same}
        chosen = [each[key] for key in sorted(each)]
        if len(chosen) > MOST_PANELS and (network, size) in SHOWN:
            chosen = [each[[*PROCESSES].index(process), num_steps] for process, num_steps in SHOWN[network, size]]
        if len(chosen) > 1:
            figure(chosen, csv_path, csv_path.with_name(f"{csv_path.stem}_{network}{size}.png"))


def main() -> None:
    """The command line."""
    models = ["data:0", *MODELS, "absorbing:16", "absorbing:64"]
    parser = comparison_parser(__doc__, "mnist", ["data", *PROCESSES], models, steps=6_000, samples=10_000)
    parser.add_argument("--path", help="folder with the idx files")
    parser.add_argument("--network", choices=NETWORKS, default="mlp")
    parser.add_argument("--sizes", nargs="+", type=int, default=[8, 16])
    parser.add_argument("--report", type=Path, help="make the figures of this CSV and run nothing")
    arguments = parser.parse_args()
    if arguments.report is not None:
        report(arguments.report)
        return
    one_thread()
    keys = comparison_keys(arguments, network=[arguments.network], size=arguments.sizes)
    run_missing(arguments.output, keys, partial(run, arguments.path, arguments.output))


if __name__ == "__main__":
    main()
