"""A small residual convolutional network for images."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ..problem import Problem
from .base import Backbone, StepEmbedding, image_channels, zero_last_layer

__all__ = ["ConvNet"]


class ConvNet(Backbone):
    """Residual 3x3 convolutions with growing dilation, plus a global path, at full resolution.

    Args:
        problem: K, T and a shape of ``(height, width)`` or ``(channels, height, width)``.
        num_inputs: States per pixel and channel at the input.
        num_outputs: Logits per pixel and channel at the output; zero at initialisation.
        width: Feature channels.
        depth: Residual blocks; block i has dilation 1, 2, 4, 1, 2, 4, ...

    Raises:
        FLDDError: If the shape is not that of an image.
    """

    def __init__(self, problem: Problem, num_inputs: int, num_outputs: int, width: int = 64, depth: int = 4) -> None:
        super().__init__()
        channels = self.channels = image_channels(problem, "ConvNet")
        self.first = nn.Conv2d(channels * num_inputs, width, 3, padding=1)
        self.position = nn.Parameter(torch.zeros(1, width, *problem.shape[-2:]))
        self.blocks = nn.ModuleList(_Block(problem, width, 2 ** (i % 3)) for i in range(depth))
        self.norm = nn.GroupNorm(1, width)
        self.last = nn.Conv2d(width, channels * num_outputs, 1)
        zero_last_layer(self.last)

    def forward(self, state: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        images = state if state.dim() == 5 else state.unsqueeze(1)  # (B, C, H, W, S)
        hidden = self.first(rearrange(images, "b c h w s -> b (c s) h w").contiguous()) + self.position
        for block in self.blocks:
            hidden = block(hidden, t, condition)
        mixed = self.last(F.gelu(self.norm(hidden)))  # (B, C * outputs, H, W)
        logits: Tensor = rearrange(mixed, "b (c o) h w -> b c h w o", c=self.channels)
        return logits if state.dim() == 5 else logits.squeeze(1)


class _Block(nn.Module):
    def __init__(self, problem: Problem, width: int, dilation: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, width)
        self.time = StepEmbedding(problem, width)
        self.near = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation)
        self.all = nn.Linear(width, width)  # the global path: what the whole image says
        self.out = nn.Conv2d(width, width, 1)

    def forward(self, hidden: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        normed = self.norm(hidden)
        context = self.all(normed.mean((2, 3))) + self.time(t, condition)  # (B, width)
        out: Tensor = hidden + self.out(F.gelu(self.near(normed) + context[:, :, None, None]))
        return out
