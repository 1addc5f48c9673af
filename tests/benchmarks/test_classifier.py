"""The classifier in whose features the benchmarks compare samples."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from classifier import ClassifierFeatures, main, train_classifier
from PIL import Image

from fldd_lightning import FLDDError
from fldd_lightning.data import ArrayDataModule, DigitsDataModule, ImageDataModule

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.slow
def test_it_is_trained_on_the_data_of_a_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "classifier.pt"
    main(["--config", str(CONFIGS / "digits.yaml"), "--output", str(path), "--epochs", "40"])
    assert "% of the test images right" in capsys.readouterr().out
    features = ClassifierFeatures(str(path))
    assert features.accuracy > 0.8
    assert "classifier.pt" in features.describe()
    assert features.metric_name == "frechet_classifier"
    x = DigitsDataModule().splits["test"].x[:5].float().unsqueeze(1)
    assert features(x).shape == (5, 64)
    with pytest.raises(FLDDError, match="was trained on pictures"):
        features(torch.zeros(2, 1, 4, 4))


def test_its_data_are_chosen_on_the_command_line(tmp_path: Path) -> None:
    main(["--data=DigitsDataModule", "--data.binary=false", f"--output={tmp_path / 'c.pt'}", "--epochs=1"])
    assert ClassifierFeatures(str(tmp_path / "c.pt")).picture_shape == (1, 8, 8)


def test_it_sees_what_the_split_draws(tmp_path: Path) -> None:
    """A stochastic split holds brightness, and its examples are binary."""
    for i in range(40):
        path = tmp_path / "images" / "train" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), (60, 195)[i % 2]).save(path)
    data = ImageDataModule(str(tmp_path / "images"), levels=2, stochastic=True, num_val=10)
    assert train_classifier(data, str(tmp_path / "c.pt"), epochs=30) > 0.9


def test_other_data_and_files_are_refused(tmp_path: Path) -> None:
    torch.save(torch.arange(40).view(10, 4) % 2, tmp_path / "x.pt")
    with pytest.raises(FLDDError, match="no labels"):
        train_classifier(ArrayDataModule(str(tmp_path / "x.pt")), str(tmp_path / "c.pt"))
    with pytest.raises(FLDDError, match="Train one with"):
        ClassifierFeatures(str(tmp_path / "none.pt"))
    torch.save({"a": 1}, tmp_path / "other.pt")
    with pytest.raises(FLDDError, match="was not written by"):
        ClassifierFeatures(str(tmp_path / "other.pt"))
