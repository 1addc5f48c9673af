from __future__ import annotations

import shutil
from io import BytesIO
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from fldd_lightning import FLDDError
from fldd_lightning.data import CIFAR10DataModule, FashionMNISTDataModule, ImageDataModule, MNISTDataModule
from fldd_lightning.data.image import binarise


@pytest.fixture(scope="module")
def colours() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (24, 8, 8, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path: Path, colours: np.ndarray) -> Path:
    for i, image in enumerate(colours):
        split = "train" if i < 18 else "test"
        path = tmp_path / "images" / split / "ab"[i % 2] / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return tmp_path / "images"


def by_brightness(x: torch.Tensor) -> list[list[int]]:
    return sorted(x.flatten(1).tolist())


def test_folder_of_images(folder: Path, colours: np.ndarray) -> None:
    data = ImageDataModule(str(folder), num_val=4)
    assert (data.num_classes, data.shape, data.num_labels) == (256, (3, 8, 8), 2)
    sizes = {name: len(split) for name, split in data.splits.items()}
    assert sizes == {"train": 14, "val": 4, "test": 6}
    expected = torch.from_numpy(colours).permute(0, 3, 1, 2).long()
    read = torch.cat([data.splits["train"].x, data.splits["val"].x])
    assert by_brightness(read) == by_brightness(expected[:18])
    assert by_brightness(data.splits["test"].x) == by_brightness(expected[18:])
    again = ImageDataModule(str(folder), num_val=4)
    assert torch.equal(again.splits["val"].x, data.splits["val"].x)
    other = ImageDataModule(str(folder), num_val=4, seed=1)
    assert not torch.equal(other.splits["val"].x, data.splits["val"].x)


def test_parquet_levels_pooling_and_grey(tmp_path: Path, colours: np.ndarray) -> None:
    table = datasets.Dataset.from_dict(
        {"picture": [Image.fromarray(image) for image in colours], "label": [i % 3 for i in range(24)]},
        features=datasets.Features({"picture": datasets.Image(), "label": datasets.Value("int64")}),
    )
    table.to_parquet(str(tmp_path / "train.parquet"))
    data = ImageDataModule(str(tmp_path / "train.parquet"), size=4, levels=4, num_val=5)
    assert (data.num_classes, data.shape, data.num_labels) == (4, (3, 4, 4), 3)
    assert [len(data.splits[n]) for n in ("train", "val", "test")] == [14, 5, 5]
    means = colours.reshape(24, 4, 2, 4, 2, 3).astype(float).mean((2, 4)).transpose(0, 3, 1, 2)
    expected = torch.from_numpy(np.round(means)).long() * 4 // 256
    read = torch.cat([split.x for split in data.splits.values()]).long()
    assert by_brightness(read) == by_brightness(expected)
    table.select(range(6)).to_parquet(str(tmp_path / "latest-test-of-1.parquet"))
    both = ImageDataModule(str(tmp_path), size=4, levels=4, num_val=5)
    assert [len(both.splits[n]) for n in ("train", "val", "test")] == [19, 5, 6]
    odd = ImageDataModule(str(tmp_path), size=5, levels=2, grey=True, num_val=5)
    assert odd.shape == (5, 5)
    assert set(odd.splits["train"].x.flatten().tolist()) == {0, 1}


def test_stochastic_binarisation_and_flips(tmp_path: Path) -> None:
    grey = np.tile(np.linspace(0, 255, 8).round().astype(np.uint8), (40, 8, 1))
    for i, image in enumerate(grey):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    options = {"levels": 2, "stochastic": True, "num_val": 10}
    data = ImageDataModule(str(tmp_path), **options)
    train = data.splits["train"]
    assert not torch.equal(train[0]["x"], train[0]["x"])  # drawn anew
    assert torch.equal(data.splits["val"][0]["x"], ImageDataModule(str(tmp_path), **options).splits["val"][0]["x"])
    drawn = torch.stack([binarise(train.x[0]) for _ in range(3000)]).float().mean((0, 1))
    assert torch.allclose(drawn, torch.from_numpy(grey[0, 0] / 255).float(), atol=0.02)  # 5 standard errors
    flipped = ImageDataModule(str(tmp_path), flip=True, num_val=10).splits
    seen = {tuple(flipped["train"][0]["x"][0].tolist()) for _ in range(40)}
    assert seen == {tuple(grey[0, 0].tolist()), tuple(grey[0, 0, ::-1].tolist())}
    assert len({tuple(flipped["val"][0]["x"][0].tolist()) for _ in range(40)}) == 1


def test_mistakes_are_named(folder: Path, tmp_path: Path) -> None:
    for options, message in (
        ({}, "set --data.path"),
        ({"path": "x", "levels": 1}, "levels of .* is 1"),
        ({"path": "x", "threshold": 0.0}, "threshold of .* is 0"),
        ({"path": "x", "stochastic": True}, "levels=2"),
        ({"path": "x", "size": 0}, "size of ImageDataModule"),
    ):
        with pytest.raises(FLDDError, match=message):
            ImageDataModule(**options)  # type: ignore[arg-type]
    with pytest.raises(FLDDError, match="does not exist"):
        _ = ImageDataModule(str(tmp_path / "nowhere")).splits
    with pytest.raises(FLDDError, match="num_val is 18"):
        _ = ImageDataModule(str(folder), num_val=18).splits
    with pytest.raises(FLDDError, match="columns with images: \\['image'\\]"):
        _ = ImageDataModule(str(folder), image_column="nope").splits
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(FLDDError, match="no known kind"):
        _ = ImageDataModule(str(tmp_path / "notes.txt")).splits


def test_broken_and_unequal_images_are_named(folder: Path) -> None:
    path = folder / "train" / "a" / "04.png"
    whole = path.read_bytes()
    for broken in (whole[:60], whole[:-40], b"", b"GIF89a" + bytes(40)):
        path.write_bytes(broken)
        with pytest.raises(FLDDError, match=r"train image \d+ .*04\.png'\) cannot be read"):
            _ = ImageDataModule(str(folder), num_val=4).splits
    Image.new("RGB", (9, 8)).save(path)
    with pytest.raises(FLDDError, match=r"--data\.size"):
        _ = ImageDataModule(str(folder), num_val=4).splits
    assert ImageDataModule(str(folder), num_val=4, size=4).shape == (3, 4, 4)
    path.write_bytes(whole)
    for file in folder.glob("test/*/*.png"):
        Image.new("RGB", (9, 8)).save(file)
    with pytest.raises(FLDDError, match=r"'test': \(3, 8, 9\).*--data\.size"):
        _ = ImageDataModule(str(folder), num_val=4).splits
    shutil.rmtree(folder / "train")
    with pytest.raises(FLDDError, match="'train'"):
        _ = ImageDataModule(str(folder), num_val=1).splits


def encoded(image: np.ndarray) -> bytes:
    file = BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def test_parquet_of_others(tmp_path: Path, colours: np.ndarray) -> None:
    """Files not written by ``datasets`` do not say which column holds images."""
    path = tmp_path / "other.parquet"

    def read(images: list[bytes | None], labels: list[object], **options: object) -> ImageDataModule:
        datasets.Dataset.from_dict({"picture": images, "label": labels}).to_parquet(str(path))
        return ImageDataModule(str(path), num_val=4, **{"image_column": "picture", **options})  # type: ignore[arg-type]

    images: list[bytes | None] = [encoded(image) for image in colours]
    data = read(images, [3] * 24)
    read_back = torch.cat([split.x for split in data.splits.values()])
    assert by_brightness(read_back) == by_brightness(torch.from_numpy(colours).permute(0, 3, 1, 2))
    assert data.num_labels == 4
    for labels, wrong in ((["cat"] * 24, "'cat'"), ([1] * 23 + [None], "None"), ([1] * 23 + [-1], "-1")):
        data = read(images, labels)
        with pytest.raises(FLDDError, match=f"label {wrong} in column 'label'"):
            _ = data.splits
        assert read(images, labels, label_column=None).num_labels == 0
    data = read(images, [0] * 24, image_column=None)
    with pytest.raises(FLDDError, match="columns with images: none"):
        _ = data.splits
    data = read([*images[:-1], None], [0] * 24)
    with pytest.raises(FLDDError, match="image 23 is missing"):
        _ = data.splits


def test_folders_with_metadata_and_kinds_of_files(folder: Path, tmp_path: Path) -> None:
    names = sorted(path.relative_to(folder / "train") for path in folder.glob("train/*/*.png"))
    rows = [f"{name},{i % 3}" for i, name in enumerate(names)]
    (folder / "train" / "metadata.csv").write_text("\n".join(["file_name,label", *rows]))
    shutil.rmtree(folder / "test")
    assert ImageDataModule(str(folder), num_val=4).num_labels == 3
    deep = np.linspace(0, 65535, 64).round().astype(np.uint16).reshape(8, 8)
    (tmp_path / "deep").mkdir()
    for i in range(4):
        Image.fromarray(deep).save(tmp_path / "deep" / f"{i}.png")
    x = ImageDataModule(str(tmp_path / "deep"), num_val=1).splits["train"].x[0]
    assert torch.equal(x, torch.from_numpy((deep // 257).astype(np.uint8)))
    turned = Image.new("RGB", (8, 6))
    turned.putpixel((0, 0), (255, 255, 255))
    (tmp_path / "turned").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6  # held upright, its first row is the last column
    for i in range(4):
        turned.save(tmp_path / "turned" / f"{i}.png", exif=exif)
    x = ImageDataModule(str(tmp_path / "turned"), num_val=1, grey=True).splits["train"].x[0]
    assert x.shape == (8, 6)
    assert x[0, 5] == 255


def test_workers_draw_anew_and_give_every_image_once(tmp_path: Path) -> None:
    for i in range(24):
        Image.fromarray(np.full((4, 4), 10 * i, np.uint8)).save(tmp_path / f"{i}.png")
    options = {"levels": 2, "stochastic": True, "flip": True, "num_val": 4, "batch_size": 4, "num_workers": 2}
    data = ImageDataModule(str(tmp_path), **options)
    loader = data.train_dataloader()
    first, second = (list(loader) for _ in range(2))
    for epoch in (first, second):
        assert sorted(torch.cat([batch["index"] for batch in epoch]).tolist()) == list(range(16))
    assert not torch.equal(torch.cat([b["x"] for b in first]), torch.cat([b["x"] for b in second]))


@pytest.mark.parametrize("make", [MNISTDataModule, FashionMNISTDataModule, CIFAR10DataModule])
def test_a_path_overrides_the_hub(make: type[ImageDataModule], tmp_path: Path, colours: np.ndarray) -> None:
    (tmp_path / "train").mkdir()
    for i, image in enumerate(colours):
        Image.fromarray(image).resize((32, 32)).save(tmp_path / "train" / f"{i}.png")
    data = make(str(tmp_path), num_val=4)
    assert [len(data.splits[name]) for name in ("train", "val", "test")] == [16, 4, 4]


@pytest.mark.parametrize("make", [MNISTDataModule, FashionMNISTDataModule, CIFAR10DataModule])
def test_without_a_network_it_is_said_what_to_do(make: type[ImageDataModule]) -> None:
    with pytest.raises(FLDDError, match=r"from the hub.*--data\.path.*HF_HUB_OFFLINE=1"):
        _ = make().splits
