"""``features``: trains the small classifier in whose features samples are compared."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch
import yaml
from torch.nn import functional as F
from torch.utils.data import default_collate

from ..categorical import grey_levels
from ..data import DiscreteDataModule
from ..errors import FLDDError
from ..metrics.features import Classifier
from .mistakes import OptionParser
from .train import packaged_config

__all__ = ["features_command", "train_classifier"]


def train_classifier(data: DiscreteDataModule, output: str, epochs: int = 3, seed: int = 0) -> float:
    """Train a classifier of images and write it for ``ClassifierFeatures``.

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

    def pictures(x: torch.Tensor) -> torch.Tensor:
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


def features_command(args: Sequence[str]) -> None:
    """Parse the options of ``features`` and run it."""
    parser = OptionParser(prog="fldd-lightning features", description="Train a classifier for ClassifierFeatures.")
    parser.add_argument("--config", help="a config of 'fit'; its data section is used")
    parser.add_subclass_arguments(DiscreteDataModule, "data", required=True)
    parser.add_function_arguments(train_classifier, skip={"data"})
    options = parser.parse_args(_with_data_of_config(list(args)))
    instantiate = getattr(parser, "instantiate", parser.instantiate_classes)  # its name before jsonargparse 4.49
    made = instantiate(options)
    accuracy = train_classifier(made.data, options.output, options.epochs, options.seed)
    print(f"wrote {options.output}: {100 * accuracy:.1f} % of the test images right")


def _with_data_of_config(args: list[str]) -> list[str]:
    """Arguments with the data section of ``--config FILE`` put before all others."""
    known, rest = argparse.ArgumentParser(add_help=False, allow_abbrev=False), args
    known.add_argument("--config")
    found, rest = known.parse_known_args(args)
    if found.config is None:
        return rest
    try:
        config = yaml.safe_load(Path(packaged_config(found.config)).read_text())
        section = json.dumps(config["data"])
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise FLDDError(f"'{found.config}' is no config with a data section: {error}") from error
    return ["--data", section, *rest]
