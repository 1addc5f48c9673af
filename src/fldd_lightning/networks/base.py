"""The one call signature of all backbones: weights over states and a step in, logits out."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from ..errors import FLDDError
from ..problem import Problem

__all__ = ["Backbone", "check_backbone", "zero_last_layer"]


class Backbone(nn.Module, ABC):
    """Base class of networks for both the forward process and the denoiser.

    A subclass takes ``(problem, num_inputs, num_outputs)`` first, then its own options, and
    should start its last layer at zero (see :func:`zero_last_layer`).
    """

    def __call__(self, state: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """Typed view of ``nn.Module.__call__``."""
        logits: Tensor = super().__call__(state, t, condition)
        return logits

    @abstractmethod
    def forward(self, state: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """Map states to logits.

        Args:
            state: Weights over input states ``(B, *shape, num_inputs)``, one-hot or relaxed.
            t: Steps ``(B,)``, integers in 0..T.
            condition: Labels ``(B,)`` in 0..num_labels-1, or None.

        Returns:
            Logits ``(B, *shape, num_outputs)``.
        """


def check_backbone(network: nn.Module) -> Backbone:
    """Return ``network`` if it is a :class:`Backbone`; raise a readable error otherwise."""
    if not isinstance(network, Backbone):
        raise FLDDError(
            f"{type(network).__name__} is not a Backbone. Subclass fldd_lightning.networks.Backbone and take "
            "(problem, num_inputs, num_outputs) as its first arguments."
        )
    return network


def zero_last_layer(layer: nn.Linear | nn.Conv2d) -> None:
    """Set a layer's weight and bias to zero, so that the network's output starts at zero."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def check_labels(problem: Problem, condition: Tensor | None) -> None:
    """Raise if labels are missing from a conditional model or given to an unconditional one."""
    if (condition is None) == (problem.num_labels > 0):
        raise FLDDError(
            f"the network was built for {problem.num_labels} labels, but it was given "
            f"{'no labels' if condition is None else 'labels'}. Set num_labels to match the data."
        )
