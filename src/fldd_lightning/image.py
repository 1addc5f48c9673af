"""Image modules: pictures of samples, and class-conditional generation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric

from .categorical import check_states, grey_levels
from .errors import FLDDError
from .module import FLDD

__all__ = ["ImageFLDD", "LabelledImageFLDD"]


class ImageFLDD(FLDD):
    """Discrete images of shape ``(height, width)`` or ``(channels, height, width)``."""

    def render(self, x: Tensor) -> Tensor:
        if len(self.problem.shape) not in (2, 3):
            raise FLDDError(f"ImageFLDD needs image shapes, not {self.problem.shape}; use FLDD.")
        pictures = x.unsqueeze(1) if len(self.problem.shape) == 2 else x  # (N, C, H, W)
        return grey_levels(pictures, self.problem.num_classes)


class LabelledImageFLDD(ImageFLDD):
    """Models image and label together: -log p(x, y) <= NELBO(x|y) - log p(y).

    Both networks see the label; p(y) is learned beside them, and samples draw y from it. It
    uses every hook of :class:`FLDD`. Set ``num_labels`` to the number of labels of the data.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.problem.num_labels < 1:
            raise FLDDError("LabelledImageFLDD needs num_labels, the number of labels of the data.")
        self.label_logits = nn.Parameter(torch.zeros(self.problem.num_labels))

    def condition(self, batch: Any) -> Tensor:
        if not isinstance(batch, dict) or "label" not in batch:
            raise FLDDError("the data has no labels; use a data set with labels or an unconditional model.")
        label: Tensor = batch["label"].long()
        check_states(label[:, None], self.problem.num_labels, (1,), "label")
        return label

    def sample_condition(self, num_samples: int, generator: torch.Generator) -> Tensor:
        p = self.label_logits.detach().softmax(0).to(generator.device)
        return torch.multinomial(p, num_samples, True, generator=generator).to(self.device)

    def extra_term_names(self) -> tuple[str, ...]:
        return ("label_nll",)

    def extra_terms(self, batch: Any) -> dict[str, Tensor]:
        return {"label_nll": -self.label_logits.log_softmax(0)[self.condition(batch)]}

    def make_metrics(self) -> dict[str, Metric]:
        return {f"nelbo_label{i}": MeanMetric(nan_strategy="ignore") for i in range(self.problem.num_labels)}

    def update_metrics(self, metrics: dict[str, Metric], batch: Any, nelbo: Tensor) -> None:
        label = self.condition(batch)
        for i in range(self.problem.num_labels):
            if bool((label == i).any()):
                metrics[f"nelbo_label{i}"].update(nelbo[label == i])
