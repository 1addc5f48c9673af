"""How samples compare with real pictures in one kind of features."""

from __future__ import annotations

import torch
from torch import Tensor

from .coverage import Coverage
from .features import FeatureExtractor
from .frechet import FrechetDistance

__all__ = ["SampleQuality"]

_MANIFOLD = 2_000  # pictures a side for precision, recall, density and coverage


class SampleQuality:
    """Fréchet distance, precision, recall, density and coverage of samples against real pictures.

    The real side is added once and outlives :meth:`reset`. Processes may each add a share of either side;
    :meth:`compute` joins them. Precision, recall, density and coverage use the first 2,000 pictures of each
    side, so add them in random order.

    Args:
        extractor: Makes features of pictures; stays on its device.
        example: A picture ``(C, H, W)``, to learn how many features there are.
        neighbours: k of precision, recall, density and coverage.
        device: Where statistics are kept, in float64.
    """

    def __init__(
        self, extractor: FeatureExtractor, example: Tensor, neighbours: int = 5, device: torch.device | str = "cpu"
    ) -> None:
        self.extractor, self.device = extractor, torch.device(device)
        self.num_features = self._features(example.unsqueeze(0)).shape[1]
        self.frechet = FrechetDistance(self.num_features).to(self.device)
        self.coverage = Coverage(neighbours).to(self.device)
        self._start(real=True)
        self._start(real=False)

    def update(self, pictures: Tensor, first: int, real: bool) -> None:
        """Add pictures.

        Args:
            pictures: In [0, 1], ``(N, C, H, W)``.
            first: The number of the first of them on its side, over all processes.
            real: Which side.
        """
        features = self._features(pictures)  # (N, F)
        self.frechet.update(features, real=real)
        if first < _MANIFOLD:
            self.coverage.update(features[: _MANIFOLD - first], real=real)

    def compute(self) -> dict[str, Tensor]:
        """Values by name: ``fid`` or ``frechet_{features}``, and ``precision_{features}`` and so on.

        Precision and its kin are left out where a side has k pictures or fewer.
        """
        values = {f"{key}_{self.extractor.name}": value for key, value in self.coverage.compute().items()}
        return {self.extractor.metric_name: self.frechet.compute(), **values}

    def reset(self) -> None:
        """Forget the samples; the real side stays."""
        self.frechet.reset()
        self.coverage.reset()
        self._start(real=False)

    def _features(self, pictures: Tensor) -> Tensor:
        return self.extractor(pictures.to(self.device))  # type: ignore[no-any-return]

    def _start(self, real: bool) -> None:
        """No feature, so that a process without a batch still has a side to join with."""
        self.coverage.update(torch.zeros(0, self.num_features, device=self.device), real=real)
