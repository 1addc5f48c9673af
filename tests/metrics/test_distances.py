from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torchmetrics.image.fid import NoTrainInceptionV3

from fldd_lightning import FLDDError
from fldd_lightning.metrics import ClassifierFeatures, Coverage, FrechetDistance, InceptionFeatures, PixelFeatures


def distance(real: torch.Tensor, fake: torch.Tensor) -> float:
    metric = FrechetDistance(real.shape[1])
    metric.update(real, real=True)
    metric.update(fake, real=False)
    return float(metric.compute())


def test_frechet_of_known_gaussians() -> None:
    x = torch.randn(4000, 5, dtype=torch.float64)
    shift = torch.tensor([1.0, 0.0, 2.0, 0.0, 0.5])
    # the same draws, moved: covariances are equal and the distance is exactly |shift|^2
    assert distance(x, x + shift) == pytest.approx(5.25, rel=1e-4)
    assert distance(x, x) == pytest.approx(0.0, abs=1e-5)
    # scaled by 2 with mean zero: trace of (S + 4 S - 2 * 2 S) = trace of S
    centred = x - x.mean(0)
    assert distance(centred, 2 * centred) == pytest.approx(float(x.var(0).sum()), rel=1e-3)
    # real against real: two halves of one set are close, with a bias that falls with their size
    assert distance(x[:2000], x[2000:]) < 0.05


def test_frechet_keeps_real_statistics(tmp_path: Path) -> None:
    x, y = torch.randn(50, 3), torch.randn(60, 3) + 1
    expected = distance(x, y)
    first = FrechetDistance(3)
    first.update(x, real=True)
    kept = first.real_statistics()
    second = FrechetDistance(3)
    second.load_real_statistics(kept)
    for _ in range(2):
        second.update(y, real=False)
        assert float(second.compute()) == pytest.approx(expected, rel=1e-6)
        second.reset()


def test_coverage_of_known_sets() -> None:
    metric = Coverage(neighbours=1)
    real = torch.tensor([[0.0], [1.0], [10.0], [11.0]])  # every ball has radius 1
    metric.update(real, real=True)
    metric.update(torch.tensor([[0.5], [0.6], [30.0]]), real=False)
    values = {key: float(value) for key, value in metric.compute().items()}
    # 0.5 and 0.6 lie in two balls each, 30 in none; their own balls (radius 0.1, 0.1, 29.4) reach 1, 10 and 11
    assert values == pytest.approx({"precision": 2 / 3, "recall": 0.75, "density": 4 / 3, "coverage": 0.5})
    metric.reset()
    metric.update(real, real=False)
    assert float(metric.compute()["coverage"]) == 1.0
    metric.reset()
    assert metric.compute() == {}


def test_coverage_of_equal_distributions() -> None:
    metric = Coverage(neighbours=5)
    metric.update(torch.randn(1000, 4), real=True)
    metric.update(torch.randn(1000, 4), real=False)
    values = metric.compute()
    assert float(values["density"]) == pytest.approx(1.0, abs=0.1)
    assert float(values["coverage"]) == pytest.approx(1 - 2**-5, abs=0.03)
    metric.reset()
    metric.update(0.1 * torch.randn(1000, 4), real=False)  # a few modes only
    narrow = metric.compute()
    assert float(narrow["coverage"]) < 0.5
    assert float(narrow["precision"]) > 0.99


def test_inception_takes_local_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FLDDError, match="no network"):
        InceptionFeatures()
    with pytest.raises(FLDDError, match="no Inception weights at"):
        InceptionFeatures(str(tmp_path / "none.pth"))
    (tmp_path / "bad.pth").write_bytes(b"junk")
    with pytest.raises(FLDDError, match="cannot load the Inception weights"):
        InceptionFeatures(str(tmp_path / "bad.pth"))
    # the real weights cannot be had here: random ones, written to a file, take the same path
    with monkeypatch.context() as patch:
        patch.setattr(NoTrainInceptionV3, "load_state_dict", lambda *args, **kwargs: None)
        patch.setattr(torch, "load", lambda *args, **kwargs: {})
        network = NoTrainInceptionV3("inception-v3-compat", ["2048"], str(tmp_path / "bad.pth"))
    path = tmp_path / "weights.pth"
    torch.save(network.state_dict(), path)
    extractor = InceptionFeatures(str(path)).eval()
    with pytest.raises(FLDDError, match="not 4 channels"):
        extractor(torch.rand(2, 4, 8, 8))
    grey = torch.rand(2, 1, 8, 8)
    features = extractor(grey)
    assert features.shape == (2, 2048)
    assert torch.equal(features, extractor(grey.repeat(1, 3, 1, 1)))
    assert torch.allclose(features, network.eval()((255 * grey).round().byte().repeat(1, 3, 1, 1)))
    assert extractor.metric_name == "fid"


def test_pixels_and_fingerprints(tmp_path: Path) -> None:
    pictures = torch.rand(4, 1, 3, 3)
    assert torch.equal(PixelFeatures()(pictures), pictures.flatten(1))
    assert PixelFeatures().fingerprint() == PixelFeatures().fingerprint()


def test_classifier_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FLDDError, match="Train one with"):
        ClassifierFeatures(str(tmp_path / "none.pt"))
    torch.save({"a": 1}, tmp_path / "other.pt")
    with pytest.raises(FLDDError, match="was not written by"):
        ClassifierFeatures(str(tmp_path / "other.pt"))
