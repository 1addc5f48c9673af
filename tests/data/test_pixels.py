"""Images whose files do not simply hold brightness: transparency, 16 bits, real numbers, label maps."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fldd_lightning import FLDDError, ImageDataModule
from fldd_lightning.cli import main
from fldd_lightning.data.pixels import Pixels

VALUES = np.arange(64).reshape(8, 8)


def folder(tmp_path: Path, images: Sequence[Image.Image], ending: str = "png", **how: Any) -> str:
    tmp_path.mkdir(exist_ok=True)
    for i, image in enumerate(images):
        image.save(tmp_path / f"{i}.{ending}", **how)
    return str(tmp_path)


def four(values: np.ndarray, mode: str | None = None) -> list[Image.Image]:
    """Four images, each with the values turned further, so that all of them differ."""
    images = [Image.fromarray(np.ascontiguousarray(np.rot90(values, i))) for i in range(4)]
    return images if mode is None else [image.convert(mode) for image in images]


def read(path: str, **options: Any) -> tuple[torch.Tensor, ImageDataModule]:
    """All examples, and their data module."""
    data = ImageDataModule(path, num_val=1, **options)
    return torch.cat([data.splits[name].x for name in ("train", "val", "test")]).long(), data


def as_read(values: np.ndarray) -> list[list[int]]:
    return sorted(np.rot90(values, i, (-2, -1)).reshape(-1).tolist() for i in range(4))


def glyph(alpha: np.ndarray, colour: int) -> np.ndarray:
    """Pixels ``(8, 8, 4)`` of one grey colour, whose picture is in their alpha."""
    return np.stack([np.full((8, 8), colour)] * 3 + [alpha], -1).astype(np.uint8)


@pytest.mark.parametrize(("colour", "background"), [(0, 1.0), (255, 0.0), (0, 0.5)])
def test_what_is_transparent_shows_the_background(colour: int, background: float, tmp_path: Path) -> None:
    path = folder(tmp_path, four(glyph(4 * VALUES, colour)))
    x, data = read(path, grey=True, background=background)
    assert data.shape == (8, 8)
    share = 4 * VALUES / 255
    expected = np.rot90(share * colour + (1 - share) * round(255 * background))
    assert min(float((x_i.double() - torch.from_numpy(expected.copy())).abs().max()) for x_i in x) <= 1
    assert len(x.unique()) > 30
    in_colour, _ = read(path, background=background)
    assert torch.equal(in_colour[:, 0], x)


@pytest.mark.parametrize("colour", [0, 255])
def test_a_picture_of_the_background_colour_is_refused(colour: int, tmp_path: Path) -> None:
    path = folder(tmp_path, four(glyph(4 * VALUES, colour)))
    with pytest.raises(FLDDError, match=f"every pixel of every image is equal.*--data.background {int(colour == 0)}"):
        read(path, background=colour // 255)


@pytest.mark.parametrize("mode", ["LA", "PA", "P"])
def test_other_modes_with_transparency(mode: str, tmp_path: Path) -> None:
    images = four(glyph(255 * (VALUES % 2), 0), None if mode == "P" else mode)
    how = {}
    if mode == "P":
        images = [Image.fromarray((VALUES % 2).astype(np.uint8)).convert("P") for _ in range(4)]
        for image in images:
            image.putpalette([0] * 768)  # all black
        how = {"transparency": 0}
    x, _ = read(folder(tmp_path, images, "tiff" if mode == "PA" else "png", **how), grey=True)
    assert sorted(x.unique().tolist()) == [0, 255]


def test_opaque_pictures_stay_as_they_are(tmp_path: Path) -> None:
    pixels = glyph(np.full((8, 8), 255), 0)
    pixels[..., 1] = 4 * VALUES
    x, _ = read(folder(tmp_path, four(pixels)), background=0.3)
    assert sorted(x[:, 1].flatten(1).tolist()) == as_read(4 * VALUES)
    assert x[:, 0].max() == 0


@pytest.mark.parametrize(
    ("values", "ending", "value_range"),
    [
        (VALUES.astype(np.float32) / 63, "tif", [0.0, 1.0]),
        (VALUES.astype(np.float32) * 100 - 1000, "tif", [-1000.0, 5300.0]),
        (VALUES.astype(np.int32) * 10_000, "tif", [0, 630_000]),
    ],
)
def test_numbers_of_no_known_range(values: np.ndarray, ending: str, value_range: list[float], tmp_path: Path) -> None:
    path = folder(tmp_path, four(values), ending)
    with pytest.raises(FLDDError) as caught:
        read(path)
    assert f'set --data.value_range "{value_range}"' in str(caught.value)
    with pytest.raises(FLDDError, match="does not say which values are black and white"):
        ImageDataModule(path, levels=2).all_rows()  # to be scored
    x, _ = read(path, value_range=value_range)
    assert sorted(x.flatten(1).tolist()) == as_read(np.round(VALUES / 63 * 255).astype(int))
    x, _ = read(path, value_range=value_range, levels=2)
    assert sorted(x.flatten(1).tolist()) == as_read((VALUES >= 32).astype(int))


def test_sixteen_bits_of_which_ten_are_used(tmp_path: Path) -> None:
    path = folder(tmp_path, four((VALUES * 16).astype(np.uint16)))
    with pytest.warns(UserWarning, match=r'go from 0 to 1008, and could go to 65535.*value_range "\[0, 1008\]"'):
        read(path)
    with pytest.raises(FLDDError, match=r'every pixel of every image is equal.*value_range "\[0, 1008\]"'):
        read(path, levels=4)
    with pytest.warns(UserWarning, match=r'go from 0 to 1008.*value_range "\[0, 1008\]"'):
        ImageDataModule(path, levels=4).all_rows()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        x, _ = read(path, value_range=[0, 1008], levels=4)
    assert sorted(x.flatten(1).tolist()) == as_read(VALUES // 16)
    low, _ = read(path, value_range=[504, 1008], levels=4)
    assert (low == 0).sum() > (x == 0).sum()  # what is below counts as black


@pytest.mark.parametrize("mode", ["L", "P", "I;16", "I"])
def test_label_maps_keep_their_values(mode: str, tmp_path: Path) -> None:
    classes = VALUES % 6 + (300 if mode.startswith("I") else 0) * (VALUES == 7)
    images = four(classes.astype({"I;16": np.uint16, "I": np.int32}.get(mode, np.uint8)))
    if mode == "P":
        images = [image.convert("P") for image in images]
        for image in images:
            image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255, 7, 7, 7, 9, 9, 9])
    path = folder(tmp_path, images, "tif" if mode == "I" else "png")
    x, data = read(path, label_maps=True)
    assert (data.num_classes, data.shape) == (int(classes.max()) + 1, (8, 8))
    assert sorted(x.flatten(1).tolist()) == as_read(classes)
    assert read(path, label_maps=True, levels=400)[1].num_classes == 400
    with pytest.raises(FLDDError, match=f"--data.levels {classes.max() + 1}"):
        read(path, label_maps=True, levels=3)
    small, data = read(path, label_maps=True, size=4)
    assert data.shape == (4, 4)
    assert set(small.unique().tolist()) <= set(classes.flatten().tolist())  # nothing in between


def test_label_maps_taken_for_brightness(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder(tmp_path / "maps", four((VALUES % 6).astype(np.uint8)))
    with pytest.warns(UserWarning, match=r"from 0 to 5, and could go to 255.*label_maps true"):
        read(path)
    config = ["--config", "configs/mnist.yaml", "--data", "ImageDataModule", "--data.path", path, "--data.num_val", "1"]
    assert main(["fit", *config, "--data.levels", "2", "--trainer.accelerator", "cpu"]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: every pixel of every image is equal")
    assert "--data.label_maps true" in error


def test_label_maps_that_are_none(tmp_path: Path) -> None:
    colours = folder(tmp_path / "colours", four(glyph(VALUES, 9)))
    with pytest.raises(FLDDError, match="of mode RGBA, but a label map"):
        read(colours, label_maps=True)
    real = folder(tmp_path / "real", four(VALUES.astype(np.float32)), "tif")
    with pytest.raises(FLDDError, match="label maps are classes: whole numbers"):
        read(real, label_maps=True)
    negative = folder(tmp_path / "negative", four(VALUES.astype(np.int32) - 1), "tif")
    with pytest.raises(FLDDError, match="values from -1 to 62"):
        read(negative, label_maps=True)


@pytest.mark.parametrize("options", [{}, {"stochastic": True, "levels": 2}, {"label_maps": True}, {"grey": True}])
def test_images_of_one_colour_are_refused(options: dict[str, Any], tmp_path: Path) -> None:
    path = folder(tmp_path, [Image.new("L", (8, 8), 5)] * 4)
    with pytest.raises(FLDDError, match=r"every pixel of every image is equal.*one colour: set --data\.path"):
        read(path, **options)
    assert len(ImageDataModule(path, **options).all_rows()) == 4  # which a model may be asked about


def test_images_without_a_number_are_refused(tmp_path: Path) -> None:
    values = np.where(VALUES == 3, np.nan, VALUES).astype(np.float32)
    with pytest.raises(FLDDError, match=r"image 0 .*no finite numbers"):
        read(folder(tmp_path, four(values), "tif"), value_range=[0, 1])
    with pytest.raises(FLDDError, match="train has no pixels"):
        Pixels().scaled(np.zeros((0, 1, 28, 28), np.uint8), "train")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"background": 1.5}, "background of .* is 1.5"),
        ({"value_range": [1, 1]}, r"value_range is \[1, 1\]"),
        ({"value_range": [1]}, r"two numbers, \[low, high\]"),
        ({"label_maps": True, "value_range": [0, 1]}, "label_maps takes values as they are"),
        ({"label_maps": True, "threshold": 0.4}, "label_maps takes values as they are"),
        ({"label_maps": True, "background": 0.0}, "label_maps takes values as they are"),
        ({"levels": 300}, "levels of .* is 300"),
    ],
)
def test_options_that_do_not_go(options: dict[str, Any], message: str) -> None:
    with pytest.raises(FLDDError, match=message):
        ImageDataModule("x", **options)
