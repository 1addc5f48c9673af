"""Images of a few levels or classes, from the hub, from folders, tables or idx files."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import FLDDError
from ..ranges import BETWEEN, COUNT, NATURAL, SHARE, Range, check_kinds, check_numbers
from .base import DiscreteDataModule, Split, joined
from .hub import load_hub, load_local, split_names
from .idx import idx_folder, read_idx_images
from .loaders import Visit
from .pixels import Pixels

__all__ = ["ImageDataModule", "ImageSplit"]

_WANTED = "pictures such as .png and .jpg, MNIST's files such as train-images-idx3-ubyte.gz"
_ONE_SIZE = "Set --data.size to bring all to one size, and --data.grey true if colours are mixed with grey."


class ImageDataModule(DiscreteDataModule):
    """Discrete images ``(height, width)`` if grey, ``(3, height, width)`` if in colour.

    All images are read once, brought to ``size`` and held in memory as bytes. Splits named
    ``train``, ``validation`` and ``test`` are used as they are; without ``validation``, ``num_val``
    images of ``train`` are held out, and without ``test`` as many again.

    Args:
        path: A folder of images (``imagefolder``), a parquet file, a folder of them, or a folder
            with MNIST's idx files (or one of these). Overrides ``name``.
        name: A data set of the Hugging Face hub.
        subset: One of its configurations.
        image_column: Column with the images or their encoded bytes; by default the only one declared as images.
        label_column: Column with class labels 0, 1, ...; used if it exists. None does without labels.
        size: Height and width. Where it divides both sides, pixels are averaged; other sizes are
            resized with antialiasing. None keeps the images as they are.
        padding: Pixels of black added on each side before that.
        grey: Turn colour images grey.
        background: Brightness behind transparent pixels, from 0 for black to 1 for white.
        value_range: The pixel values that are black and white, ``[low, high]``; values outside count as these. It is
            needed for real numbers, and helps where files of 16 bits hold fewer. None takes the whole range of 8
            or 16 bits.
        label_maps: Pixel values are classes, not brightness: they stay as they are, and ``size`` picks pixels in
            place of averaging them.
        levels: K, the number of grey or colour levels, 2 to 256; 256 if not given. With ``label_maps`` the number of
            classes: if not given, the largest value plus one. Checkpoints keep it.
        threshold: For ``levels=2``, the brightness in (0, 1) above which a pixel is 1.
        stochastic: For ``levels=2``: a pixel is 1 with probability equal to its brightness, drawn
            anew whenever it is read in training and once, by ``seed``, for the other splits.
        flip: Mirror training images at random. Like the draws of ``stochastic``, this goes by seed, epoch and image.
        num_val: Training images held out where there is no validation split.
        batch_size: Images per batch and process.
        num_workers: Worker processes of the loaders.
        seed: Seed of the split, of the binarisation and of the training order.

    Raises:
        FLDDError: If an option is out of range, or (when read) the data are missing, broken, or of several sizes
            although no ``size`` is given; and if all pixels of all images are equal.
    """

    classes_option = "levels"

    def __init__(
        self,
        path: str | None = None,
        name: str | None = None,
        subset: str | None = None,
        image_column: str | None = None,
        label_column: str | None = "label",
        size: int | None = None,
        padding: int = 0,
        grey: bool = False,
        background: float = 1.0,
        value_range: Sequence[float] | None = None,
        label_maps: bool = False,
        levels: int | None = None,
        threshold: float = 0.5,
        stochastic: bool = False,
        flip: bool = False,
        num_val: int = 5_000,
        batch_size: int = 128,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers, seed)
        check_kinds(locals(), path=str | PathLike | None)
        if path is None and name is None:
            raise FLDDError("set --data.path to local images, or --data.name to a data set of the hub.")
        most = Range(2, inf if label_maps else 256, is_whole=True)
        check_numbers(locals(), size=COUNT.or_none, padding=NATURAL, background=SHARE, levels=most.or_none)
        check_numbers(locals(), threshold=BETWEEN, num_val=COUNT)
        if value_range is not None and (len(value_range) != 2 or not value_range[0] < value_range[1]):
            raise FLDDError(f"value_range is {value_range}, but it must be two numbers, [low, high], the lower first.")
        if label_maps and (stochastic or value_range is not None or (threshold, background) != (0.5, 1.0)):
            raise FLDDError(
                "label_maps takes values as they are: leave value_range, threshold, background and stochastic out."
            )
        if stochastic and levels != 2:
            raise FLDDError(f"stochastic binarisation needs levels=2, not {levels}.")
        self.save_hyperparameters(logger=False)
        self.path, self.name, self.subset = None if path is None else Path(path).expanduser(), name, subset
        self.image_column, self.label_column = image_column, label_column
        self.size, self.padding = size, padding
        self.levels = 256 if levels is None and not label_maps else levels
        self.grey, self.background, self.value_range, self.label_maps = grey, background, value_range, label_maps
        self.threshold, self.stochastic, self.flip, self.num_val = threshold, stochastic, flip, num_val

    @property
    def num_classes(self) -> int:
        """K, the number of levels or classes."""
        if self.levels is None:
            _ = self.splits  # finds it
        assert self.levels is not None
        return self.levels

    def load(self) -> dict[str, Split]:
        pixels = self._pixels()
        parts = self._held_out(self._parts_of_one_shape(pixels))
        splits: dict[str, Split] = {}
        for i, (name, (images, labels)) in enumerate(parts.items()):
            is_train = name == "train"
            if self.stochastic and is_train:
                splits[name] = ImageSplit(images, labels, True, self.flip, self.seed)
            else:
                generator = torch.Generator().manual_seed(1_000_003 * (self.seed + 1) + i)
                x = self._quantise(images, generator)
                splits[name] = ImageSplit(x, labels, False, self.flip and is_train, self.seed)
        pixels.check(split.x for split in splits.values())
        return splits

    def all_rows(self) -> Split:
        """All images, none mirrored: the source's own splits one after the other, each in the source's order."""
        pixels = self._pixels()
        parts = self._parts_of_one_shape(pixels)
        generator = torch.Generator().manual_seed(1_000_003 * (self.seed + 1))
        found = [parts[name] for name in ("train", "val", "test") if name in parts]
        pixels.warn_if_narrow()  # all pixels may be equal, as those of one picture
        return joined([Split(self._quantise(images, generator), labels) for images, labels in found])

    def _pixels(self) -> Pixels:
        """What turns images into levels or classes."""
        return Pixels(self.grey, self.background, self.value_range, self.label_maps)

    def _parts_of_one_shape(self, pixels: Pixels) -> dict[str, tuple[Tensor, Tensor | None]]:
        parts = self._parts(pixels)
        pixels.check_scale()
        shapes = {name: tuple(images.shape[1:]) for name, (images, _) in parts.items()}
        if len(set(shapes.values())) > 1:
            raise FLDDError(f"images of the splits differ in shape: {shapes}. {_ONE_SIZE}")
        if self.label_maps:
            self._count_classes(pixels)
        return parts

    def _count_classes(self, pixels: Pixels) -> None:
        """Take K of label maps from their values, or check these against it."""
        highest = int(pixels.high)
        if self.levels is None:
            self.levels = max(2, highest + 1)
            self.keep_classes(self.levels)
        elif highest >= self.levels:
            raise FLDDError(
                f"label maps have classes up to {highest}, but levels is {self.levels}. Set --data.levels "
                f"{highest + 1} to train a model; one that is trained keeps its classes."
            )

    def _parts(self, pixels: Pixels) -> dict[str, tuple[Tensor, Tensor | None]]:
        """The splits there are, each images ``(N, [3,] H, W)`` as bytes at their final size, and labels."""
        idx = None if self.path is None else idx_folder(self.path)
        if idx is not None:
            raw = {name: read_idx_images(idx, part) for name, part in (("train", "train"), ("test", "t10k"))}
            read = {
                name: (torch.from_numpy(pixels.scaled(i.numpy(), name)), labels) for name, (i, labels) in raw.items()
            }
            return {name: (self._resized(images), labels) for name, (images, labels) in read.items()}
        table = (
            load_local(self.path, folder_kind="imagefolder", folder_holds=_WANTED)
            if self.path is not None
            else load_hub(str(self.name), self.subset)
        )
        return {key: self._decode(part, key, pixels) for key, part in split_names(table).items()}

    def _decode(self, table: Any, split: str, pixels: Pixels) -> tuple[Tensor, Tensor | None]:
        import datasets

        columns = [key for key, feature in table.features.items() if isinstance(feature, datasets.Image)]
        column = self.image_column or (columns[0] if len(columns) == 1 else None)
        if column is None or column not in table.features:
            raise FLDDError(
                f"image_column is {self.image_column!r}; columns with images: {columns or 'none'}; all columns: "
                f"{list(table.features)}. Set --data.image_column."
            )
        raw = table.cast_column(column, datasets.Image(decode=False))[column]
        images: list[Tensor] = []
        for i, item in enumerate(raw):
            image = self._resized(pixels.read(item, f"{split} image {i}").unsqueeze(0))[0]
            if images and image.shape != images[0].shape:
                raise FLDDError(
                    f"{split} image {i} has shape {tuple(image.shape)}, but image 0 has {tuple(images[0].shape)}. "
                    f"{_ONE_SIZE}"
                )
            images.append(image)
        if not images:
            raise FLDDError(f"the {split} split is empty: give more data.")
        return torch.stack(images), self._labels(table, split)

    def _labels(self, table: Any, split: str) -> Tensor | None:
        if self.label_column not in table.features:
            return None
        labels = list(table[self.label_column])
        wrong = [label for label in labels if not isinstance(label, int) or label < 0]
        if wrong:
            raise FLDDError(
                f"the {split} split has the label {wrong[0]!r} in column '{self.label_column}', but labels must be "
                "integers from 0 on. Set --data.label_column to another column, or to null to do without labels."
            )
        return torch.tensor(labels)

    def _resized(self, images: Tensor) -> Tensor:
        """Bytes or classes ``(N, C, H, W)`` to ``(N, H, W)`` or ``(N, 3, H, W)`` at the final size."""
        if self.padding:
            images = F.pad(images, [self.padding] * 4)
        height, width = images.shape[-2:]
        if self.size is not None and (height, width) != (self.size, self.size):
            parts = []
            for part in torch.split(images, 4096):
                values = part.float()
                if self.label_maps:
                    values = F.interpolate(values, (self.size, self.size), mode="nearest-exact")
                elif height % self.size == 0 and width % self.size == 0:
                    values = F.avg_pool2d(values, (height // self.size, width // self.size))
                else:
                    values = F.interpolate(values, (self.size, self.size), mode="bilinear", antialias=True)
                parts.append(values.round().to(images.dtype))
            images = torch.cat(parts)
        return images.squeeze(1) if images.shape[1] == 1 else images

    def _quantise(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Bytes to levels 0..K-1, as bytes; classes as they are."""
        if self.label_maps:
            return images.byte() if self.num_classes <= 256 else images
        if self.stochastic:
            return binarise(images, generator)
        if self.levels == 2:
            return (images.float() > 255 * self.threshold).byte()
        return (images.int() * self.num_classes // 256).byte()

    def _held_out(self, parts: dict[str, tuple[Tensor, Tensor | None]]) -> dict[str, tuple[Tensor, Tensor | None]]:
        """All three splits; missing ones are drawn from the training images."""
        missing = [name for name in ("val", "test") if name not in parts]
        images, labels = parts["train"]
        wanted = len(missing) * self.num_val
        if missing and not 0 < wanted < len(images):
            raise FLDDError(
                f"num_val is {self.num_val} for each of {' and '.join(missing)}, but there are {len(images)} training "
                "images to choose from."
            )
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(self.seed))
        chosen = {name: order[i * self.num_val : (i + 1) * self.num_val] for i, name in enumerate(missing)}
        chosen["train"] = order[wanted:] if missing else torch.arange(len(images))
        drawn = {n: (images[index], None if labels is None else labels[index]) for n, index in chosen.items()}
        return {name: drawn.get(name, parts.get(name, drawn["train"])) for name in ("train", "val", "test")}


class ImageSplit(Split):
    """Images as bytes, optionally binarised and mirrored anew at every reading.

    In training the draws go by the seed, the epoch and the example, else by torch's global generator.
    """

    def __init__(self, x: Tensor, labels: Tensor | None, stochastic: bool, flip: bool, seed: int = 0) -> None:
        super().__init__(x, labels)
        self.stochastic, self.flip, self.seed = stochastic, flip, seed

    def look_up(self, indices: list[int]) -> list[dict[str, Tensor]]:
        items = super().look_up(indices)
        if self.stochastic or self.flip:
            for index, item in zip(indices, items, strict=True):
                generator = index.generator(self.seed) if isinstance(index, Visit) else None
                if self.stochastic:
                    item["x"] = binarise(item["x"], generator)
                if self.flip and bool(torch.rand((), generator=generator) < 0.5):
                    item["x"] = item["x"].flip(-1)
        return items


def binarise(images: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draw pixels that are 1 with probability brightness / 255 (Salakhutdinov and Murray, 2008)."""
    return (torch.rand(images.shape, generator=generator) * 255 < images).byte()
