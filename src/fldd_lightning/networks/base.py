"""The one call signature of all backbones: states, a step and what latents say in, logits out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from math import sqrt

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import FLDDError
from ..spec import Seen, Spec

__all__ = ["Backbone", "StateEmbedding", "StepEmbedding", "as_weights", "image_channels", "zero_last_layer"]


class Backbone(nn.Module, ABC):
    """Base class of networks for both the forward process and the denoiser.

    A subclass takes ``(spec, num_inputs, num_outputs)`` first, then its own options, and
    should start its last layer at zero (see :func:`zero_last_layer`).
    """

    @abstractmethod
    def forward(self, state: Tensor, t: Tensor, condition: tuple[Tensor, ...] = ()) -> Tensor:
        """Map states to logits.

        Args:
            state: Integer states ``(B, *shape)``, or weights over states ``(B, *shape, num_inputs)`` where they
                are relaxed. :class:`StateEmbedding` and :func:`as_weights` take both.
            t: Steps ``(B,)``, integers in 0..T.
            condition: What latents say: one tensor for every entry of ``spec.seen``, whole numbers ``(B, parts)`` or
                real ones ``(B, m)``.

        Returns:
            Logits ``(B, *shape, num_outputs)``.
        """


class StepEmbedding(nn.Module):
    """A vector for every step, plus one for each latent of the whole that networks see.

    That one is looked up for whole numbers, and is a linear map of real ones.

    Args:
        spec: T, and what networks see.
        width: Features.
        std: Standard deviation of each at the start.
    """

    def __init__(self, spec: Spec, width: int, std: float = 1.0) -> None:
        super().__init__()
        self.step = nn.Embedding(spec.num_steps + 1, width)
        nn.init.normal_(self.step.weight, std=std)
        self.num_seen = len(spec.seen)
        self.places = [i for i, each in enumerate(spec.seen) if each.num_parts == 1]
        self.latents = nn.ModuleList(_embedding(spec.seen[i], width, std) for i in self.places)

    def forward(self, t: Tensor, condition: tuple[Tensor, ...] = ()) -> Tensor:
        """``(B, width)`` for steps ``(B,)``; raises FLDDError where a latent is missing or not wanted."""
        _check_number(condition, self.num_seen)
        features: Tensor = self.step(t)
        for place, embed in zip(self.places, self.latents, strict=True):
            numbers = condition[place]
            features = features + embed(numbers if numbers.is_floating_point() else numbers[:, 0])
        return features


class StateEmbedding(nn.Module):
    """The mean embedding of every coordinate's states, plus a vector for each number of the part that it is in.

    Latents of the whole come with the step (:class:`StepEmbedding`).

    Args:
        spec: D, and what networks see.
        num_inputs: States.
        features: Features of a coordinate.
        std: Standard deviation of the weights at the start.

    Attributes:
        weight: One row a state, ``(num_inputs, features)``.
    """

    def __init__(self, spec: Spec, num_inputs: int, features: int, std: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(std * torch.randn(num_inputs, features))
        self.num_seen = len(spec.seen)
        self.places = [i for i, each in enumerate(spec.seen) if each.num_parts > 1]
        self.latents = nn.ModuleList(_embedding(spec.seen[i], features, std) for i in self.places)
        for i in self.places:
            part_of = torch.tensor(spec.part_of(spec.seen[i].num_parts))  # (D,)
            self.register_buffer(f"part_of_{i}", part_of, persistent=False)

    def forward(self, state: Tensor, condition: tuple[Tensor, ...] = ()) -> Tensor:
        """``(B, *shape, features)`` for states ``(B, *shape)`` or weights ``(B, *shape, num_inputs)``.

        Raises FLDDError where a latent is missing or not wanted.
        """
        _check_number(condition, self.num_seen)
        embedded = state @ self.weight if state.is_floating_point() else F.embedding(state, self.weight)
        for place, embed in zip(self.places, self.latents, strict=True):
            of_parts = embed(condition[place])  # (B, parts, features)
            embedded = embedded + of_parts[:, self.get_buffer(f"part_of_{place}")].reshape(embedded.shape)
        return embedded


def as_weights(state: Tensor, num_inputs: int, dtype: torch.dtype | None = None) -> Tensor:
    """Weights ``(B, *shape, num_inputs)`` of integer states ``(B, *shape)``; weights as they are.

    Give the dtype of the layer that they go into; it is torch's default if left out.
    """
    return state if state.is_floating_point() else F.one_hot(state, num_inputs).to(dtype or torch.get_default_dtype())


def image_channels(spec: Spec, name: str) -> int:
    """Channels of an image of ``(height, width)`` or ``(channels, height, width)``; raises for other shapes.

    Args:
        spec: Its shape.
        name: The network that asks, for the message.
    """
    if len(spec.shape) not in (2, 3):
        raise FLDDError(
            f"{name} needs images, (height, width) or (channels, height, width), not {spec.shape}. "
            "For others there are MLP, Transformer and, for a latent, MLPAutoencoder."
        )
    return spec.shape[0] if len(spec.shape) == 3 else 1


def zero_last_layer(layer: nn.Linear | nn.Conv2d) -> None:
    """Set a layer's weight and bias to zero, so that the network's output starts at zero."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def _check_number(condition: tuple[Tensor, ...], num_seen: int) -> None:
    if len(condition) != num_seen:
        raise FLDDError(
            f"the network was given {len(condition)} latents, but it sees {num_seen}. Networks must be made from the "
            "spec of their module, and called with its condition."
        )


def _embedding(seen: Seen, width: int, std: float) -> nn.Module:
    if seen.num_reals:
        linear = nn.Linear(seen.num_reals, width, bias=False)
        nn.init.normal_(linear.weight, std=std / sqrt(seen.num_reals))
        return linear
    table = nn.Embedding(seen.num_values, width)
    nn.init.normal_(table.weight, std=std)
    return table
