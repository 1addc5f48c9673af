"""A small classifier in whose features samples are compared, for pictures that Inception says little about.

    python benchmarks/classifier.py --config configs/mnist28.yaml --output classifier.pt
    python benchmarks/classifier.py --data MNISTDataModule --data.path FOLDER_WITH_IDX_FILES --output classifier.pt

``--config`` takes the data section of a configuration of ``fldd-lightning fit``. ``ClassifierFeatures(path)`` is then
an extractor for ``FIDCallback`` and ``SampleQuality``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
import yaml
from jsonargparse import ArgumentParser
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import default_collate

from fldd_lightning import FLDDError
from fldd_lightning.categorical import grey_levels
from fldd_lightning.data import DiscreteDataModule
from fldd_lightning.metrics import FeatureExtractor

__all__ = ["Classifier", "ClassifierFeatures", "main", "train_classifier"]


class Classifier(nn.Module):
    """A small convolutional network whose 64 hidden features tell classes apart.

    Args:
        channels: Of the pictures.
        num_labels: Classes.
    """

    def __init__(self, channels: int, num_labels: int) -> None:
        super().__init__()
        first = nn.Conv2d(channels, 32, 3, padding=1)
        self.convs = nn.ModuleList([first, nn.Conv2d(32, 64, 3, 2, 1), nn.Conv2d(64, 64, 3, 2, 1)])
        self.norms = nn.ModuleList(nn.GroupNorm(8, width) for width in (32, 64, 64))
        self.hidden, self.out = nn.Linear(64 * 16, 64), nn.Linear(64, num_labels)

    def features(self, pictures: Tensor) -> Tensor:
        """``(N, 64)`` from pictures ``(N, C, H, W)`` of any size."""
        for conv, norm in zip(self.convs, self.norms):
            pictures = F.silu(norm(conv(pictures)))
        pooled = F.adaptive_avg_pool2d(pictures, 4)  # (N, 64, 4, 4)
        return F.silu(self.hidden(pooled.flatten(1)))

    def forward(self, pictures: Tensor) -> Tensor:
        """Logits ``(N, num_labels)``."""
        logits: Tensor = self.out(self.features(pictures))
        return logits


class ClassifierFeatures(FeatureExtractor):
    """The hidden features of a classifier that :func:`train_classifier` has trained.

    Their distances compare models on one data set and with one classifier. They are no FID and compare with none.

    Args:
        path: What :func:`train_classifier` wrote; read without unpickling.

    Raises:
        FLDDError: If the file is missing or of another kind, or the pictures do not fit it.
    """

    name = "classifier"

    def __init__(self, path: str) -> None:
        super().__init__()
        if not Path(path).is_file():
            raise FLDDError(f"no classifier at '{path}'. Train one with 'python benchmarks/classifier.py'.")
        try:
            saved = torch.load(path, map_location="cpu", weights_only=True)
            self.picture_shape = tuple(saved["picture_shape"])
            self.network = Classifier(self.picture_shape[0], saved["num_labels"])
            self.network.load_state_dict(saved["state_dict"])
        except Exception as error:  # reading raises many kinds
            raise FLDDError(f"'{path}' was not written by benchmarks/classifier.py: {error}") from error
        self.path, self.accuracy = path, float(saved["accuracy"])
        self.requires_grad_(False).eval()

    def forward(self, pictures: Tensor) -> Tensor:
        if tuple(pictures.shape[1:]) != self.picture_shape:
            raise FLDDError(
                f"the classifier '{self.path}' was trained on pictures {self.picture_shape}, not "
                f"{tuple(pictures.shape[1:])}. Train one on this data with 'python benchmarks/classifier.py'."
            )
        return self.network.features(pictures.float())

    def describe(self) -> str:
        return f"classifier {Path(self.path).name}, {100 * self.accuracy:.1f} % right"


def train_classifier(data: DiscreteDataModule, output: str, epochs: int = 3, seed: int = 0) -> float:
    """Train a classifier of images and write it for :class:`ClassifierFeatures`.

    Args:
        data: Images with labels.
        output: File to write.
        epochs: Passes over the training images.
        seed: Of the weights and of the order.

    Returns:
        Share of the test images it gets right.

    Raises:
        FLDDError: If the data have no labels or are no images.
    """
    train, test = data.splits["train"], data.splits["test"]
    if train.labels is None or test.labels is None:
        raise FLDDError("the data have no labels to train a classifier on.")
    if len(data.shape) not in (2, 3):
        raise FLDDError(f"a classifier needs images, not examples of shape {data.shape}.")

    def pictures(x: Tensor) -> Tensor:
        return grey_levels(x.unsqueeze(1) if x.dim() == 3 else x, data.num_classes)  # (N, C, H, W)

    torch.manual_seed(seed)
    num_labels = int(train.labels.max()) + 1
    shape = pictures(test.x[:1]).shape[1:]
    network = Classifier(shape[0], num_labels)
    optimizer = torch.optim.AdamW(network.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 2e-3, epochs=epochs, steps_per_epoch=-(-len(train) // 128)
    )
    for _ in range(epochs):
        for index in torch.split(torch.randperm(len(train)), 128):
            # through the split, which may binarise and mirror anew
            batch = default_collate(train.__getitems__(index.tolist()))
            loss = F.cross_entropy(network(pictures(batch["x"])), batch["label"])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        predicted = torch.cat([network(pictures(part)).argmax(-1) for part in torch.split(test.x, 1000)])
    accuracy = float((predicted == test.labels).float().mean())
    path = Path(output)
    path.parent.mkdir(parents=True, exist_ok=True)
    saved = {"picture_shape": list(shape), "num_labels": num_labels, "accuracy": accuracy}
    torch.save({**saved, "state_dict": network.state_dict()}, path)
    return accuracy


def main(args: list[str] | None = None) -> None:
    """Train on the data of the command line, or of a configuration."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config")
    found, rest = first.parse_known_args(args)
    if found.config is not None:
        section = yaml.safe_load(Path(found.config).read_text())["data"]
        rest = ["--data", json.dumps(section), *rest]
    parser = ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", help="a configuration of 'fldd-lightning fit'; its data section is used")
    parser.add_subclass_arguments(DiscreteDataModule, "data", required=True)
    parser.add_function_arguments(train_classifier, skip={"data"})
    options = parser.parse_args(rest)
    accuracy = train_classifier(parser.instantiate(options).data, options.output, options.epochs, options.seed)
    print(f"wrote {options.output}: {100 * accuracy:.1f} % of the test images right")


if __name__ == "__main__":
    main()
