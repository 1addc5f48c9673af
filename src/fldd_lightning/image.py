"""Image modules: examples shown as pictures, and the bound by label."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torchmetrics import MeanMetric, Metric

from .categorical import grey_levels
from .errors import FLDDError
from .latents import LabelLatent
from .module import FLDD

__all__ = ["ImageFLDD"]


class ImageFLDD(FLDD):
    """Discrete images of shape ``(height, width)`` or ``(channels, height, width)``.

    With a :class:`LabelLatent`, ``{val,test}/nelbo_label{y}`` is the bound over the images of each label.
    """

    def setup(self, stage: str) -> None:
        self._check_shape()
        super().setup(stage)

    def render(self, x: Tensor) -> Tensor:
        self._check_shape()
        pictures = x.unsqueeze(1) if len(self.spec.shape) == 2 else x  # (N, C, H, W)
        return grey_levels(pictures, self.spec.num_classes)

    def _check_shape(self) -> None:
        if len(self.spec.shape) not in (2, 3):
            raise FLDDError(f"{type(self).__name__} needs image shapes, not {self.spec.shape}; use FLDD.")

    @property
    def _labels(self) -> LabelLatent | None:
        return next((each for each in self.latents if isinstance(each, LabelLatent)), None)

    def make_metrics(self) -> dict[str, Metric]:
        if self._labels is None:
            return {}
        return {f"nelbo_label{i}": MeanMetric(nan_strategy="ignore") for i in range(self._labels.num_labels)}

    def update_metrics(self, metrics: dict[str, Metric], batch: Any, nelbo: Tensor) -> None:
        if self._labels is None:
            return
        label = batch[self._labels.key]
        for i in range(self._labels.num_labels):
            if bool((label == i).any()):
                metrics[f"nelbo_label{i}"].update(nelbo[label == i])
