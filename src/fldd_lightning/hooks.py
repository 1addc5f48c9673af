"""What a modality may change: the hooks of the module, each with a default."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from .categorical import grey_levels
from .problem import Problem

__all__ = ["ModalityHooks"]


class ModalityHooks:
    """Methods of :class:`~fldd_lightning.FLDD` that a subclass may override.

    Attributes:
        problem: K, shape and T.
    """

    problem: Problem

    def data(self, batch: Any) -> Tensor:
        """The integers ``(B, *shape)`` of a batch: the batch itself, its ``"x"``, or the first of several tensors."""
        x: Tensor = batch["x"] if isinstance(batch, dict) else batch[0] if isinstance(batch, (list, tuple)) else batch
        return x

    def condition(self, batch: Any) -> Tensor | None:
        """Labels ``(B,)`` that both networks see, or None; a model with labels has no code."""
        return None

    def sample_condition(self, num_samples: int, generator: torch.Generator) -> Tensor | None:
        """Labels ``(N,)`` for samples, or None."""
        return None

    def sample_padding(self, num_samples: int, generator: torch.Generator) -> Tensor | None:
        """Where samples are PAD, ``(N, *shape)`` of bool, or None in a problem without PAD."""
        return None

    def extra_terms(self, batch: Any) -> dict[str, Tensor]:
        """Further terms of the bound by name, ``(B,)`` each, in nats per example."""
        return {}

    def extra_term_names(self) -> tuple[str, ...]:
        """The names :meth:`extra_terms` returns."""
        return ()

    def make_metrics(self) -> dict[str, Metric]:
        """Further metrics by name; one set is made for each of ``val`` and ``test``."""
        return {}

    def update_metrics(self, metrics: dict[str, Metric], batch: Any, nelbo: Tensor) -> None:
        """Update the metrics of :meth:`make_metrics` with a batch and its NELBO ``(B,)`` in nats."""

    def render(self, x: Tensor) -> Tensor:
        """Show examples, or states on the way to them, as pictures.

        Args:
            x: Integers ``(N, *shape)``; K is MASK, where the process has one.

        Returns:
            Float pictures in [0, 1], ``(N, channels, height, width)``; one row per example here.
        """
        flat = x.flatten(2) if x.dim() > 2 else x.unsqueeze(1)
        return grey_levels(flat.unsqueeze(1), self.problem.num_classes)

    def to_text(self, x: Tensor) -> list[str] | None:
        """Write examples ``(N, *shape)``, or states with MASK as K, as one line each; None for no text."""
        return None
