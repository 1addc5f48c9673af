"""The one call signature of all backbones: weights over states and a step in, logits out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import FLDDError
from ..problem import Problem
from ..states import SparseStates, State

__all__ = [
    "Backbone",
    "StateEmbedding",
    "StepEmbedding",
    "check_backbone",
    "check_labels",
    "embed_states",
    "image_channels",
    "zero_last_layer",
]


class Backbone(nn.Module, ABC):
    """Base class of networks for both the forward process and the denoiser.

    A subclass takes ``(problem, num_inputs, num_outputs)`` first, then its own options, and
    should start its last layer at zero (see :func:`zero_last_layer`).

    Attributes:
        takes_sparse: Whether :meth:`forward` takes :class:`~fldd_lightning.states.SparseStates`, as
            :func:`embed_states` does; to other networks they come as weights over all states.
    """

    takes_sparse: bool = False

    def __call__(self, state: State, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """``forward``, with states in the form the network takes."""
        if isinstance(state, SparseStates) and not self.takes_sparse:
            state = state.dense()
        logits: Tensor = super().__call__(state, t, condition)
        return logits

    @abstractmethod
    def forward(self, state: Any, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """Map states to logits.

        Args:
            state: Weights over input states ``(B, *shape, num_inputs)``, one-hot or relaxed; or
                SparseStates, where ``takes_sparse`` is set.
            t: Steps ``(B,)``, integers in 0..T.
            condition: Labels ``(B,)`` or codes ``(B, m)`` in 0..num_labels-1, real codes ``(B, m)``, or None.

        Returns:
            Logits ``(B, *shape, num_outputs)``.
        """


class StepEmbedding(nn.Module):
    """A vector for every step; in a conditional model another one for every label of the whole, added to it.

    Where the condition is real numbers, that one is a linear map of them.

    Args:
        problem: T and the number of labels or real numbers.
        width: Features.
        std: Standard deviation of both at the start.
    """

    def __init__(self, problem: Problem, width: int, std: float = 1.0) -> None:
        super().__init__()
        self.problem = problem
        self.step = nn.Embedding(problem.num_steps + 1, width)
        nn.init.normal_(self.step.weight, std=std)
        self.label: nn.Module | None = None
        if problem.num_latents > 0:
            self.label = nn.Linear(problem.num_latents, width, bias=False)
            nn.init.normal_(self.label.weight, std=std / sqrt(problem.num_latents))
        elif problem.num_labels > 0 and problem.num_parts == 1:
            self.label = nn.Embedding(problem.num_labels, width)
            nn.init.normal_(self.label.weight, std=std)

    def forward(self, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """``(B, width)`` for steps and labels ``(B,)`` or ``(B, m)``; raises where these are missing or not wanted."""
        check_labels(self.problem, condition)
        features: Tensor = self.step(t)
        if self.label is None or condition is None:
            return features
        labels: Tensor = self.label(condition if self.problem.num_latents > 0 else condition.flatten())
        return features + labels


class StateEmbedding(nn.Linear):
    """The mean embedding of the states of every coordinate, plus a vector for the code of the part it is in.

    A linear map of weights over states without bias, and of no more where a code is of the whole: that one comes
    with the step (:class:`StepEmbedding`).

    Args:
        problem: D, and the codes, if parts of an example have their own.
        num_inputs: States.
        features: Features of a coordinate.
        std: Standard deviation of the weights at the start.
    """

    part_of: Tensor

    def __init__(self, problem: Problem, num_inputs: int, features: int, std: float = 1.0) -> None:
        super().__init__(num_inputs, features, bias=False)
        nn.init.normal_(self.weight, std=std)
        self.code = nn.Embedding(problem.num_labels, features) if problem.num_parts > 1 else None
        if self.code is not None:
            nn.init.normal_(self.code.weight, std=std)
            self.register_buffer("part_of", torch.tensor(problem.part_of), persistent=False)  # (D,)

    def forward(self, state: State, condition: Tensor | None = None) -> Tensor:
        """``(B, *shape, features)`` for ``(B, *shape, num_inputs)`` or SparseStates, and codes ``(B, m)``."""
        embedded = embed_states(self.weight.T, state)
        if self.code is None or condition is None:
            return embedded
        codes: Tensor = self.code(condition)[:, self.part_of]  # (B, D, features)
        return embedded + codes.reshape(embedded.shape)


def check_backbone(network: nn.Module) -> Backbone:
    """Return ``network`` if it is a :class:`Backbone`; raise a readable error otherwise."""
    if not isinstance(network, Backbone):
        raise FLDDError(
            f"{type(network).__name__} is not a Backbone. Subclass fldd_lightning.networks.Backbone and take "
            "(problem, num_inputs, num_outputs) as its first arguments."
        )
    return network


def embed_states(table: Tensor, state: State) -> Tensor:
    """Mean embedding of states: a look-up of a few rows where they are sparse, a product where they are not.

    Args:
        table: One row a state, ``(num_inputs, features)``.
        state: ``(B, *shape, num_inputs)``, or SparseStates.

    Returns:
        ``(B, *shape, features)``.
    """
    if not isinstance(state, SparseStates):
        return state @ table
    rows = F.embedding(state.index, table)  # (B, *shape, m, features)
    return (rows * state.weight.unsqueeze(-1)).sum(-2)


def image_channels(problem: Problem, name: str) -> int:
    """Channels of an image of ``(height, width)`` or ``(channels, height, width)``; raises for other shapes.

    Args:
        problem: Its shape.
        name: The network that asks, for the message.
    """
    if len(problem.shape) not in (2, 3):
        raise FLDDError(
            f"{name} needs images, (height, width) or (channels, height, width), not {problem.shape}. "
            "For others there are MLP, Transformer and, for a code, MLPAutoencoder."
        )
    return problem.shape[0] if len(problem.shape) == 3 else 1


def zero_last_layer(layer: nn.Linear | nn.Conv2d) -> None:
    """Set a layer's weight and bias to zero, so that the network's output starts at zero."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def check_labels(problem: Problem, condition: Tensor | None) -> None:
    """Raise if labels are missing from a conditional model or given to an unconditional one."""
    if (condition is None) == (problem.num_labels > 0 or problem.num_latents > 0):
        kind = f"{problem.num_latents} real numbers" if problem.num_latents > 0 else f"{problem.num_labels} labels"
        raise FLDDError(
            f"the network was built for {kind}, but it was given "
            f"{'no labels' if condition is None else 'labels'}. Set num_labels to match the data; the values of "
            "a code are labels too."
        )
