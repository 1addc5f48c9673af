"""A U-Net for discrete images."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import FLDDError
from ..ranges import BELOW_ONE, COUNT, check_numbers
from ..spec import Spec
from .base import Backbone, StepEmbedding, as_weights, image_channels, zero_last_layer

__all__ = ["UNet"]


class UNet(Backbone):
    """Residual blocks at several resolutions, joined by skips; attention at the coarsest.

    Follows the U-Net of denoising diffusion (Ho et al., 2020) with one block a level and side. Any height
    and width will do: levels halve them, rounding up. Parameters and cost of a pass, in
    multiplications and additions, for S = 3 states:

    - 28x28, widths 16, 32, 64: 0.41 M, 0.080 GFLOP an image (``benchmarks/mnist.py``);
    - 28x28, widths 32, 64, 128 (``configs/mnist28.yaml``): 1.6 M, 0.32 GFLOP;
    - 3x32x32, S = 33, widths 64, 128, 256 (``configs/cifar10.yaml``): 6.4 M, 1.8 GFLOP.

    Args:
        spec: K, T and a shape of ``(height, width)`` or ``(channels, height, width)``.
        num_inputs: States per pixel and channel at the input.
        num_outputs: Logits per pixel and channel at the output; zero at initialisation.
        widths: Feature channels of each level, from fine to coarse; multiples of 8.
        heads: Attention heads at the coarsest level.
        dropout: Dropout probability inside the blocks.

    Raises:
        FLDDError: If the shape is not that of an image or the widths do not fit.
    """

    def __init__(
        self,
        spec: Spec,
        num_inputs: int,
        num_outputs: int,
        widths: Sequence[int] = (32, 64, 128),
        heads: int = 4,
        dropout: float = 0.0,
    ) -> None:
        check_numbers(locals(), heads=COUNT, dropout=BELOW_ONE)
        super().__init__()
        if not widths or any(width not in COUNT or width % 8 for width in widths) or widths[-1] % heads:
            raise FLDDError(f"widths {list(widths)} must be multiples of 8, the last one of heads={heads}, too.")
        self.channels, self.num_inputs = image_channels(spec, "UNet"), num_inputs
        features = 4 * widths[0]
        self.time = StepEmbedding(spec, features)
        self.first = nn.Conv2d(self.channels * num_inputs, widths[0], 3, padding=1)
        self.position = nn.Parameter(torch.zeros(1, widths[0], *spec.shape[-2:]))
        before = [widths[0], *widths[:-1]]
        self.down = nn.ModuleList(_Block(a, b, features, dropout) for a, b in zip(before, widths))
        self.shrink = nn.ModuleList(nn.Conv2d(width, width, 3, 2, 1) for width in widths[:-1])
        self.middle = _Block(widths[-1], widths[-1], features, dropout)
        self.attention = _Attention(widths[-1], heads)
        self.grow = nn.ModuleList(nn.Conv2d(b, a, 3, padding=1) for a, b in pairwise(widths))
        self.up = nn.ModuleList(_Block(2 * width, width, features, dropout) for width in widths)
        self.norm = nn.GroupNorm(8, widths[0])
        self.last = nn.Conv2d(widths[0], self.channels * num_outputs, 1)
        zero_last_layer(self.last)

    def forward(self, state: Tensor, t: Tensor, condition: tuple[Tensor, ...] = ()) -> Tensor:
        time = self.time(t, condition)  # (B, features)
        weights = as_weights(state, self.num_inputs, self.first.weight.dtype)  # (B, *shape, S)
        images = weights if weights.dim() == 5 else weights.unsqueeze(1)  # (B, C, H, W, S)
        pixels = rearrange(images, "b c h w s -> b (c s) h w").contiguous()  # else torch.compile may fail
        hidden = self.first(pixels) + self.position
        skips = []
        for i, block in enumerate(self.down):
            hidden = block(hidden, time)
            skips.append(hidden)
            if i < len(self.shrink):
                hidden = self.shrink[i](hidden)  # (B, W_i, ceil(H / 2), ceil(W / 2))
        hidden = self.attention(self.middle(hidden, time))
        for i in reversed(range(len(self.up))):
            if i < len(self.grow):
                hidden = self.grow[i](F.interpolate(hidden, skips[i].shape[-2:], mode="nearest"))
            hidden = self.up[i](torch.cat([hidden, skips[i]], 1), time)
        mixed = self.last(F.silu(self.norm(hidden)))  # (B, C * outputs, H, W)
        logits: Tensor = rearrange(mixed, "b (c o) h w -> b c h w o", c=self.channels)
        return logits if weights.dim() == 5 else logits.squeeze(1)


class _Block(nn.Module):
    """Two convolutions with the time in between, beside a skip."""

    def __init__(self, inputs: int, width: int, features: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(8, inputs), nn.Conv2d(inputs, width, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(8, width), nn.Conv2d(width, width, 3, padding=1)
        self.time = nn.Linear(features, 2 * width)
        self.dropout = nn.Dropout(dropout)
        self.skip = nn.Conv2d(inputs, width, 1) if inputs != width else nn.Identity()

    def forward(self, hidden: Tensor, time: Tensor) -> Tensor:
        inner = self.conv1(F.silu(self.norm1(hidden)))
        scale, shift = self.time(F.silu(time))[:, :, None, None].chunk(2, 1)
        inner = self.norm2(inner) * (1 + scale) + shift
        out: Tensor = self.skip(hidden) + self.conv2(self.dropout(F.silu(inner)))
        return out


class _Attention(nn.Module):
    """Self-attention over all pixels of the coarsest level."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.qkv, self.out = (
            nn.GroupNorm(8, width),
            nn.Conv2d(width, 3 * width, 1),
            nn.Conv2d(width, width, 1),
        )

    def forward(self, hidden: Tensor) -> Tensor:
        height = hidden.shape[-2]
        qkv = rearrange(self.qkv(self.norm(hidden)), "b (n m d) h w -> n b m (h w) d", n=3, m=self.heads)
        mixed = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])  # (B, heads, H * W, width / heads)
        out: Tensor = hidden + self.out(rearrange(mixed, "b m (h w) d -> b (m d) h w", h=height))
        return out
