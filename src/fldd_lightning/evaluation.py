"""What the evaluation of a stage collects: the bound, its terms, and the metrics that a modality adds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torchmetrics import MeanMetric, Metric

from .bound import Bound
from .latents.base import Latent
from .metrics import NELBOMetric
from .spec import Spec

__all__ = ["Evaluation"]


class Evaluation:
    """The metrics of one stage. No ``nn.Module``: they are no part of the model, its average or its checkpoints.

    Args:
        spec: T and D.
        latents: All of the model's.
        metrics: The metrics that a modality adds, by name.

    Attributes:
        bound: The metric of the bound and its terms.
        metrics: All others by name, ``nll_latent`` among them where a latent says something of the values.
    """

    def __init__(self, spec: Spec, latents: Sequence[Latent], metrics: Mapping[str, Metric]) -> None:
        names = tuple(f"kl_{each.name}" for each in latents)
        self.bound = NELBOMetric(spec.num_steps, spec.num_dims, names)
        self.metrics = dict(metrics)
        if any(each.says_values for each in latents):
            self.metrics["nll_latent"] = MeanMetric()

    def reset(self, device: torch.device) -> None:
        """Start anew on a device; an evaluation before may have been broken off."""
        for metric in (self.bound, *self.metrics.values()):
            metric.to(device).reset()

    def update(self, terms: Bound) -> None:
        """Add the bound of a batch."""
        self.bound.update(terms.kl, terms.further)
        if terms.nll_latent is not None:
            self.metrics["nll_latent"].update(terms.nll_latent)

    def compute(self) -> dict[str, Tensor]:
        """Values of all metrics by name, over all processes; resets them."""
        values = {name: value.float() for name, value in self.bound.compute().items()}
        for name, metric in self.metrics.items():
            value = metric.compute()
            values.update(value if isinstance(value, dict) else {name: value})
        for metric in (self.bound, *self.metrics.values()):
            metric.reset()
        return values
