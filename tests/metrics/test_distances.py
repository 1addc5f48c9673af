from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torchmetrics.image.fid import NoTrainInceptionV3

from fldd_lightning import FLDDError
from fldd_lightning.metrics import Coverage, FrechetDistance, InceptionFeatures, PixelFeatures, SampleQuality


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


def test_a_root_that_is_not_found_is_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: torch.Tensor) -> torch.Tensor:
        raise torch.linalg.LinAlgError("the algorithm failed to converge")

    monkeypatch.setattr(torch.linalg, "eigvals", fails)
    with pytest.warns(UserWarning, match="recorded as NaN: give more pictures and samples"):
        assert torch.tensor(distance(torch.randn(8, 3), torch.randn(8, 3))).isnan()


def test_frechet_keeps_the_real_side() -> None:
    x, y = torch.randn(50, 3), torch.randn(60, 3) + 1
    metric = FrechetDistance(3)
    metric.update(x, real=True)
    for _ in range(2):
        metric.update(y, real=False)
        assert float(metric.compute()) == pytest.approx(distance(x, y), rel=1e-6)
        metric.reset()


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


@pytest.fixture(scope="module")
def network() -> NoTrainInceptionV3:
    """With random weights: the real ones cannot be had here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NoTrainInceptionV3, "load_state_dict", lambda *args, **kwargs: None)
        patch.setattr(torch, "load", lambda *args, **kwargs: {})
        return NoTrainInceptionV3("inception-v3-compat", ["2048"], "")


def test_inception_takes_local_weights(network: NoTrainInceptionV3, tmp_path: Path) -> None:
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


def test_inception_is_fetched_once_and_without_unpickling(
    network: NoTrainInceptionV3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(FLDDError, match="no network"):
        InceptionFeatures()
    cached = tmp_path / "checkpoints" / "weights-inception-2015-12-05-6726825d.pth"
    cached.parent.mkdir()
    torch.save(network.state_dict(), cached)
    assert InceptionFeatures().describe().endswith("downloaded weights")
    torch.save(Malicious(tmp_path / "ran"), cached)
    with pytest.raises(FLDDError, match="cannot load the Inception weights"):
        InceptionFeatures()
    assert not (tmp_path / "ran").exists()


class Malicious:
    """Pickled, it is a file that makes another one when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("within", [lambda bad, weights: bad, lambda bad, weights: {**weights, "fc.bias": bad}])
def test_weights_run_nothing(within: Any, network: NoTrainInceptionV3, tmp_path: Path) -> None:
    torch.save(within(Malicious(tmp_path / "ran"), network.state_dict()), tmp_path / "weights.pth")
    with pytest.raises(FLDDError, match="cannot load the Inception weights"):
        InceptionFeatures(str(tmp_path / "weights.pth"))
    assert not (tmp_path / "ran").exists()
    torch.load(tmp_path / "weights.pth", weights_only=False)  # it would have
    assert (tmp_path / "ran").exists()


def test_broken_weights_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(FLDDError, match="no Inception weights at"):
        InceptionFeatures(str(tmp_path / "none.pth"))
    (tmp_path / "bad.pth").write_bytes(b"junk")
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    for name in ("bad", "other", "list"):
        with pytest.raises(FLDDError, match="cannot load the Inception weights"):
            InceptionFeatures(str(tmp_path / f"{name}.pth"))


def test_pixels() -> None:
    pictures = torch.rand(4, 1, 3, 3)
    assert torch.equal(PixelFeatures()(pictures), pictures.flatten(1))


def test_quality_joins_both_sides() -> None:
    real, fake = torch.rand(40, 1, 2, 2), torch.rand(30, 1, 2, 2) / 2
    quality = SampleQuality(PixelFeatures(), real[0], neighbours=3)
    quality.update(real[:25], 0, real=True)
    quality.update(real[25:], 25, real=True)
    for _ in range(2):  # the real side stays
        quality.update(fake, 0, real=False)
        values = quality.compute()
        assert float(values["frechet_pixels"]) == pytest.approx(distance(real.flatten(1), fake.flatten(1)), rel=1e-5)
        assert set(values) == {
            "frechet_pixels",
            *(f"{n}_pixels" for n in ("precision", "recall", "density", "coverage")),
        }
        quality.reset()
