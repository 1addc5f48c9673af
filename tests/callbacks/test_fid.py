from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer

from conftest import Stripes, image_model
from fldd_lightning import FLDDError, ImageFLDD, LabelLatent
from fldd_lightning.callbacks import FIDCallback
from fldd_lightning.categorical import grey_levels
from fldd_lightning.data import DigitsDataModule, Split
from fldd_lightning.metrics import FrechetDistance, PixelFeatures


class CountingPixels(PixelFeatures):
    """Counts the pictures it has seen."""

    seen = 0

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        self.seen += len(pictures)
        return super().forward(pictures)


def trainer(folder: Path, *callbacks: Any, **options: Any) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(accelerator="cpu", default_root_dir=str(folder), callbacks=list(callbacks), **quiet, **options)


def callback(**options: Any) -> FIDCallback:
    defaults: dict[str, Any] = {"extractor": PixelFeatures(), "num_samples": 60, "batch_size": 25}
    return FIDCallback(**{**defaults, **options})


def test_value_is_that_of_the_samples(tmp_path: Path) -> None:
    model, data = image_model(2), Stripes()
    fid = callback()
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
    fid = callback()
    trainer(tmp_path, fid).test(model, data, verbose=False)
    seen = torch.cat(fid._qualities["test"].coverage.real).sum(1)  # (20,)
    assert seen.max() > x.flatten(1).sum(1).median()


def test_one_image_is_too_few(tmp_path: Path) -> None:
    data = Stripes()
    data.splits["test"] = Split(data.splits["test"].x[:1])
    with pytest.raises(FLDDError, match="two real images or more"):
        trainer(tmp_path, callback()).test(image_model(2), data, verbose=False)


def test_bytes_of_256_levels_are_drawn_as_what_they_are() -> None:
    x = torch.tensor([0, 255], dtype=torch.uint8)
    assert grey_levels(x, 256).tolist() == grey_levels(x.long(), 256).tolist() == [0.0, 1.0]
    assert grey_levels(torch.tensor([0, 1, 2]), 2).tolist() == [0.0, 1.0, 0.5]


def test_intervals_and_real_images_are_read_once(tmp_path: Path) -> None:
    extractor = CountingPixels()
    fid = callback(extractor=extractor, every_n_validations=2)
    run = trainer(tmp_path, fid, max_epochs=4, enable_checkpointing=False)
    run.fit(image_model(2), Stripes())
    lines = [json.loads(line) for line in (tmp_path / "sample_quality.jsonl").read_text().splitlines()]
    assert [line["global_step"] for line in lines] == [8, 16]
    assert extractor.seen == 2 + 40 + 2 * 60  # one picture before training, one tells the number of features
    assert "val/frechet_pixels_T2" in run.callback_metrics


def test_statistics_are_of_what_is_drawn(tmp_path: Path) -> None:
    class Darker(ImageFLDD):
        def render(self, x: torch.Tensor) -> torch.Tensor:
            return super().render(x) / 2

    values = []
    for cls in (ImageFLDD, Darker):
        module = image_model(2)
        module.__class__ = cls
        values.append(trainer(tmp_path, callback()).test(module, Stripes(), verbose=False)[0])
    name = "test/frechet_pixels_T2"
    assert values[1][name] == pytest.approx(values[0][name] / 4, rel=1e-4)  # both sides are darker


def test_one_callback_with_other_data(tmp_path: Path) -> None:
    """The real images of one call are not those of the next."""
    fid = callback()
    model = image_model(2)
    trainer(tmp_path, fid).test(model, Stripes(), verbose=False)
    values = [trainer(tmp_path, each).test(model, Stripes(seed=5), verbose=False)[0] for each in (fid, callback())]
    assert values[0] == values[1]


def test_too_few_samples_and_wrong_modules(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="10 samples do not determine the covariance of 16 features"):
        trainer(tmp_path, callback(num_samples=10)).test(image_model(2), Stripes(), verbose=False)
    with pytest.raises(FLDDError, match="num_samples"):
        callback(num_samples=0)
    with pytest.raises(FLDDError, match="no network"):
        FIDCallback()


def test_labelled_models_are_sampled_with_their_labels(tmp_path: Path) -> None:
    model = image_model(2, size=8, cls=partial(ImageFLDD, latents=partial(LabelLatent, num_labels=10)))
    logged = trainer(tmp_path, callback()).test(model, DigitsDataModule(), verbose=False)[0]
    assert logged["test/frechet_pixels_T2"] > 0
