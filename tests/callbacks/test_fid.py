from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image

from conftest import Stripes, image_model
from fldd_lightning import FLDDError, ImageFLDD, LabelledImageFLDD
from fldd_lightning.callbacks import FIDCallback
from fldd_lightning.callbacks import statistics as statistics_module
from fldd_lightning.categorical import grey_levels
from fldd_lightning.cli.features import train_classifier
from fldd_lightning.cli.main import main
from fldd_lightning.data import DigitsDataModule, ImageDataModule, Split
from fldd_lightning.metrics import ClassifierFeatures, FrechetDistance, PixelFeatures

CONFIGS = Path(__file__).parents[2] / "configs"


class CountingPixels(PixelFeatures):
    """Counts the pictures it has seen."""

    seen = 0

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        self.seen += len(pictures)
        return super().forward(pictures)


def trainer(folder: Path, *callbacks: Any, **options: Any) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(accelerator="cpu", default_root_dir=str(folder), callbacks=list(callbacks), **quiet, **options)


def callback(folder: Path, **options: Any) -> FIDCallback:
    defaults: dict[str, Any] = {"extractor": PixelFeatures(), "num_samples": 60, "batch_size": 25}
    return FIDCallback(**{**defaults, "cache_dir": str(folder / "cache"), **options})


def test_value_is_that_of_the_samples(tmp_path: Path) -> None:
    model, data = image_model(2), Stripes()
    fid = callback(tmp_path)
    logged = trainer(tmp_path, fid).test(model, data, verbose=False)[0]
    real = model.render(data.splits["test"].x).flatten(1)
    samples = torch.cat([model.sample(n, 1_000_003 + i, batch_size=n) for i, n in enumerate((25, 25, 10))])
    metric = FrechetDistance(16)
    metric.update(real, real=True)
    metric.update(model.render(samples).flatten(1), real=False)
    assert logged["test/frechet_pixels_T2"] == pytest.approx(float(metric.compute()), rel=1e-5)
    assert 0 <= logged["test/coverage_pixels_T2"] <= 1
    line = json.loads((tmp_path / "sample_quality.jsonl").read_text())
    assert line["num_samples"] == 60
    assert (line["num_real"], line["num_steps"], line["dtype"]) == (40, 2, "float32")
    assert line["extractor"] == "pixels"


def test_a_split_that_is_sorted_is_compared_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Precision and its kin see the first pictures only, and folders are sorted by class."""
    monkeypatch.setattr("fldd_lightning.metrics.quality._MANIFOLD", 20)
    model, data = image_model(2), Stripes()
    x = data.splits["test"].x
    data.splits["test"] = Split(x[x.flatten(1).sum(1).argsort()])
    fid = callback(tmp_path)
    trainer(tmp_path, fid).test(model, data, verbose=False)
    seen = fid._qualities["test"].coverage.real_features().sum(1)  # (20,)
    assert seen.max() > x.flatten(1).sum(1).median()


def test_one_image_is_too_few(tmp_path: Path) -> None:
    data = Stripes()
    data.splits["test"] = Split(data.splits["test"].x[:1])
    with pytest.raises(FLDDError, match="two real images or more"):
        trainer(tmp_path, callback(tmp_path)).test(image_model(2), data, verbose=False)


def test_bytes_of_256_levels_are_drawn_as_what_they_are() -> None:
    x = torch.tensor([0, 255], dtype=torch.uint8)
    assert grey_levels(x, 256).tolist() == grey_levels(x.long(), 256).tolist() == [0.0, 1.0]
    assert grey_levels(torch.tensor([0, 1, 2]), 2).tolist() == [0.0, 1.0, 0.5]


def test_further_budgets_and_intervals(tmp_path: Path) -> None:
    other = image_model(3)
    saver = trainer(tmp_path, max_steps=1, limit_val_batches=0)
    saver.fit(other, Stripes())
    saver.save_checkpoint(tmp_path / "other.ckpt")
    fid = callback(tmp_path, models=[str(tmp_path / "other.ckpt")], every_n_validations=2)
    run = trainer(tmp_path, fid, max_epochs=4, enable_checkpointing=False)
    run.fit(image_model(2), Stripes())
    lines = [json.loads(line) for line in (tmp_path / "sample_quality.jsonl").read_text().splitlines()]
    assert [line["num_steps"] for line in lines] == [2, 3, 2, 3]
    assert {"val/frechet_pixels_T2", "val/frechet_pixels_T3"} <= set(run.callback_metrics)
    assert lines[1]["val/frechet_pixels_T3"] == pytest.approx(lines[3]["val/frechet_pixels_T3"])  # it does not train
    wrong = image_model(3, size=5)
    saver = trainer(tmp_path, max_steps=1, limit_val_batches=0)
    saver.fit(wrong, Stripes(size=5))
    saver.save_checkpoint(tmp_path / "wrong.ckpt")
    fid = callback(tmp_path, models=[str(tmp_path / "wrong.ckpt")])
    with pytest.raises(FLDDError, match="other examples"):
        trainer(tmp_path, fid).test(image_model(2), Stripes(), verbose=False)
    fid = callback(tmp_path, models=[str(tmp_path / "other.ckpt")])
    with pytest.raises(FLDDError, match=r"the models have \[3, 3\] steps"):
        trainer(tmp_path, fid).test(image_model(3), Stripes(), verbose=False)


def test_statistics_are_computed_once_and_found_by_content(tmp_path: Path) -> None:
    def seen(data: Stripes, **options: Any) -> tuple[int, float]:
        extractor = CountingPixels()
        fid = callback(tmp_path, extractor=extractor, **options)
        logged = trainer(tmp_path, fid).test(image_model(2), data, verbose=False)[0]
        return extractor.seen, logged["test/frechet_pixels_T2"]

    first, value = seen(Stripes())
    files = list((tmp_path / "cache").iterdir())
    assert len(files) == 1
    assert seen(Stripes()) == (first - 40, pytest.approx(value, rel=1e-6))  # no real image again
    assert list((tmp_path / "cache").iterdir()) == files
    assert seen(Stripes(seed=5))[0] == first
    assert len(list((tmp_path / "cache").iterdir())) == 2
    files[0].write_bytes(files[0].read_bytes()[:100])
    with pytest.warns(UserWarning, match="cannot be used"):
        assert seen(Stripes())[1] == pytest.approx(value, rel=1e-6)
    statistics = torch.load(files[0], weights_only=True)  # whole again
    torch.save({**statistics, "real_features_num_samples": torch.tensor(7)}, files[0])
    with pytest.warns(UserWarning, match="of other images"):
        seen(Stripes())
    torch.save({"anything": 1}, files[0])
    with pytest.warns(UserWarning, match="cannot be used"):
        assert seen(Stripes())[1] == pytest.approx(value, rel=1e-6)


def test_statistics_know_everything_the_features_depend_on(tmp_path: Path) -> None:
    x = torch.zeros(5, 1, 4, 4)
    x[0] = 1
    other = PixelFeatures()
    other.register_buffer("weights", torch.ones(1))
    paths = [
        statistics_module.statistics_path(tmp_path, [pictures], extractor)
        for pictures, extractor in (
            (x, PixelFeatures()),
            (x / 2, PixelFeatures()),  # the same integers, drawn in another way
            (x[:4], PixelFeatures()),
            (x.flip(0), PixelFeatures()),
            (x.view(5, 1, 2, 8), PixelFeatures()),
            (x, other),
        )
    ]
    assert len(set(paths)) == len(paths)
    assert paths[0] == statistics_module.statistics_path(tmp_path, [x.double()], PixelFeatures())


def test_statistics_are_of_what_is_drawn(tmp_path: Path) -> None:
    class Darker(ImageFLDD):
        def render(self, x: torch.Tensor) -> torch.Tensor:
            return super().render(x) / 2

    for cls in (ImageFLDD, Darker):
        module = image_model(2)
        module.__class__ = cls
        trainer(tmp_path, callback(tmp_path)).test(module, Stripes(), verbose=False)
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_one_callback_with_other_data(tmp_path: Path) -> None:
    """The real images of one call are not those of the next."""
    fid = callback(tmp_path, cache_dir=str(tmp_path / "a"))
    model = image_model(2)
    values = []
    for reused in (fid, callback(tmp_path, cache_dir=str(tmp_path / "b"))):
        if reused is fid:
            trainer(tmp_path, reused).test(model, Stripes(), verbose=False)
        values.append(trainer(tmp_path, reused).test(model, Stripes(seed=5), verbose=False)[0])
    assert values[0] == values[1]


def test_a_killed_run_leaves_no_broken_statistics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(value: Any, file: Any) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(statistics_module.torch, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            statistics_module.save_statistics(tmp_path / "cache" / "a.pt", {})
    assert list((tmp_path / "cache").iterdir()) == []

    class Killed(PixelFeatures):
        """Ends the program at the second batch of real images."""

        def forward(self, pictures: torch.Tensor) -> torch.Tensor:
            if len(pictures) == 15:
                raise KeyboardInterrupt
            return super().forward(pictures)

    run = trainer(tmp_path, callback(tmp_path, extractor=Killed()))
    with pytest.raises((KeyboardInterrupt, SystemExit)):  # Lightning turns the one into the other
        run.test(image_model(2), Stripes(), verbose=False)
    assert list((tmp_path / "cache").iterdir()) == []


def test_too_few_samples_and_wrong_modules(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="10 samples do not determine the covariance of 16 features"):
        trainer(tmp_path, callback(tmp_path, num_samples=10)).test(image_model(2), Stripes(), verbose=False)
    with pytest.raises(FLDDError, match="num_samples"):
        callback(tmp_path, num_samples=0)
    with pytest.raises(FLDDError, match="no network"):
        FIDCallback()


def test_classifier_features_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "classifier.pt"
    args = ["features", "--config", str(CONFIGS / "digits.yaml"), "--output", str(path), "--epochs", "40"]
    assert main(args) == 0
    assert "% of the test images right" in capsys.readouterr().out
    assert main(["features", "--config", str(tmp_path / "no.yaml"), "--output", str(path)]) == 1
    assert "no config with a data section" in capsys.readouterr().err
    features = ClassifierFeatures(str(path))
    assert features.accuracy > 0.8
    fid = callback(tmp_path, extractor=features, num_samples=100)
    model = image_model(2, size=8)
    data = DigitsDataModule()
    logged = trainer(tmp_path, fid).test(model, data, verbose=False)[0]
    assert logged["test/frechet_classifier_T2"] > 0
    with pytest.raises(FLDDError, match="was trained on pictures"):
        trainer(tmp_path, callback(tmp_path, extractor=features)).test(image_model(2), Stripes(), verbose=False)
    assert features.fingerprint() != PixelFeatures().fingerprint()


def test_the_classifier_sees_what_the_split_draws(tmp_path: Path) -> None:
    """A stochastic split holds brightness, and its examples are binary."""
    for i in range(40):
        path = tmp_path / "images" / "train" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), (60, 195)[i % 2]).save(path)
    data = ImageDataModule(str(tmp_path / "images"), levels=2, stochastic=True, num_val=10)
    assert train_classifier(data, str(tmp_path / "c.pt"), epochs=30) > 0.9


def test_labelled_models_are_sampled_with_their_labels(tmp_path: Path) -> None:
    model = image_model(2, size=8, cls=partial(LabelledImageFLDD, num_labels=10))
    logged = trainer(tmp_path, callback(tmp_path)).test(model, DigitsDataModule(), verbose=False)[0]
    assert logged["test/frechet_pixels_T2"] > 0
