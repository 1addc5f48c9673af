"""A transformer for sequences, and the blocks that all transformers here share: attention under adaLN-zero."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ..categorical import float32_or_better
from ..errors import FLDDError
from ..ranges import BELOW_ONE, COUNT, check_numbers
from ..spec import Spec
from .base import Backbone, StateEmbedding, StepEmbedding, zero_last_layer

__all__ = ["AdaLNBlock", "AdaLNOutput", "RotaryPositions", "Transformer"]


class Transformer(Backbone):
    """Bidirectional transformer with rotary positions and adaLN-zero conditioning on the step.

    The layout of masked diffusion's denoisers (Lou et al., 2024; Sahoo et al., 2024): a small embedding
    of the step modulates every block. States enter as weights times the embedding matrix, or as a
    weighted look-up of a few of its rows. Attention is PyTorch's own.

    | parameters | width | depth | heads | num_inputs = num_outputs |
    | --- | --- | --- | --- | --- |
    | 1.2 M | 128 | 4 | 4 | 28 |
    | 6.0 M | 256 | 6 | 4 | 28 |
    | 30.6 M | 512 | 8 | 8 | 2,049 |
    | 170 M, or 132 M tied | 768 | 12 | 12 | 50,258 (GPT-2 small's width and depth) |

    Args:
        spec: K, T and a shape of ``(length,)``.
        num_inputs: States per position at the input.
        num_outputs: Logits per position at the output; zero at initialisation.
        width: Features per position.
        depth: Blocks.
        heads: Attention heads; ``width / heads`` must be whole and even.
        dropout: Dropout probability after attention and in the feed-forward layers.
        time_width: Features of the step's embedding.
        tied: Use the embedding matrix for the logits as well. Outputs beyond the inputs, such as the
            mask of a forward process, get rows of their own.

    Raises:
        FLDDError: If the shape is not that of a sequence, ``heads`` does not fit, or there are too few
            outputs to tie them to the inputs.
    """

    def __init__(
        self,
        spec: Spec,
        num_inputs: int,
        num_outputs: int,
        width: int = 256,
        depth: int = 6,
        heads: int = 4,
        dropout: float = 0.0,
        time_width: int = 128,
        tied: bool = False,
    ) -> None:
        check_numbers(locals(), width=COUNT, depth=COUNT, heads=COUNT, dropout=BELOW_ONE, time_width=COUNT)
        super().__init__()
        if len(spec.shape) != 1:
            raise FLDDError(f"Transformer needs sequences, shape (length,), not {spec.shape}. Use DiT for images.")
        if width % heads or (width // heads) % 2:
            raise FLDDError(f"heads={heads} must divide the width {width} into parts of an even number of features.")
        if tied and num_outputs < num_inputs:
            raise FLDDError(
                f"tied embeddings need at least as many outputs as inputs, but there are {num_outputs} and "
                f"{num_inputs} (a LearnedMaskProcess has T - 1 outputs). Set tied to false for this network."
            )
        self.embed = StateEmbedding(spec, num_inputs, width, std=0.02 if tied else 1.0)
        self.time = StepEmbedding(spec, time_width)
        self.rotary = RotaryPositions(spec.shape[0], width // heads)
        self.blocks = nn.ModuleList(AdaLNBlock(width, heads, dropout, time_width) for _ in range(depth))
        self.norm = AdaLNOutput(width, time_width)
        self.last = nn.Linear(width, width if tied else num_outputs)
        zero_last_layer(self.last)
        self.tied = tied
        self.further = nn.Parameter(0.02 * torch.randn(num_outputs - num_inputs, width)) if tied else None

    def forward(self, state: Tensor, t: Tensor, condition: tuple[Tensor, ...] = ()) -> Tensor:
        time = F.silu(self.time(t, condition))
        hidden = self.embed(state, condition)  # (B, L, width)
        for block in self.blocks:
            hidden = block(hidden, time, self.rotary)
        out: Tensor = self.last(self.norm(hidden, time))
        if self.further is not None:
            out = F.linear(out, torch.cat([self.embed.weight, self.further]))  # (B, L, outputs)
        return out


class AdaLNBlock(nn.Module):
    """Attention and feed-forward, each scaled, shifted and gated by the step; gates start at zero.

    adaLN-zero of Peebles and Xie (2023), arXiv 2212.09748.

    Args:
        width: Features per position.
        heads: Attention heads; must divide ``width``.
        dropout: Dropout probability after attention and in the feed-forward layers.
        time_width: Features of the step's embedding.
    """

    def __init__(self, width: int, heads: int, dropout: float, time_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.dropout = nn.Dropout(dropout)
        self.modulate = nn.Linear(time_width, 6 * width)
        zero_last_layer(self.modulate)

    def forward(self, hidden: Tensor, time: Tensor, rotary: RotaryPositions | None = None) -> Tensor:
        """Mix positions.

        Args:
            hidden: ``(B, L, width)``.
            time: ``(B, time_width)``.
            rotary: Turns queries and keys by their positions, or None.

        Returns:
            ``(B, L, width)``.
        """
        scale1, shift1, gate1, scale2, shift2, gate2 = self.modulate(time).unsqueeze(1).chunk(6, -1)  # (B, 1, width)
        normed = self.norm1(hidden) * (1 + scale1) + shift1
        qkv = rearrange(self.qkv(normed), "b l (n m d) -> n b m l d", n=3, m=self.heads)
        query, key, value = qkv.unbind(0)  # (B, heads, L, width / heads)
        if rotary is not None:
            query, key = rotary(query), rotary(key)
        mixed = F.scaled_dot_product_attention(query, key, value)
        hidden = hidden + gate1 * self.dropout(self.out(rearrange(mixed, "b m l d -> b l (m d)")))
        normed = self.norm2(hidden) * (1 + scale2) + shift2
        out: Tensor = hidden + gate2 * self.dropout(self.feed(normed))
        return out


class AdaLNOutput(nn.Module):
    """The last normalisation, scaled and shifted by the step.

    Args:
        width: Features per position.
        time_width: Features of the step's embedding.
    """

    def __init__(self, width: int, time_width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulate = nn.Linear(time_width, 2 * width)

    def forward(self, hidden: Tensor, time: Tensor) -> Tensor:
        """``(B, L, width)`` and ``(B, time_width)`` to ``(B, L, width)``."""
        scale, shift = self.modulate(time).unsqueeze(1).chunk(2, -1)
        out: Tensor = self.norm(hidden) * (1 + scale) + shift
        return out


class RotaryPositions(nn.Module):
    """Rotary position embedding (Su et al., 2021, arXiv 2104.09864), in halves as GPT-NeoX lays them out.

    Feature i and i + d/2 of position l are turned by the angle l / base^(2i/d). So the product of a
    query and a key depends on the distance of their positions.

    Args:
        length: L, the number of positions.
        features: d, features of a head; even.
        base: Of the wavelengths.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, length: int, features: int, base: float = 10_000.0) -> None:
        super().__init__()
        frequency = base ** (-torch.arange(0, features, 2) / features)  # (d / 2,)
        angle = torch.outer(torch.arange(length).float(), frequency)  # (L, d / 2)
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)

    def forward(self, heads: Tensor) -> Tensor:
        """Turn queries or keys ``(B, heads, L, d)``; computed in float32 or better."""
        first, second = float32_or_better(heads).chunk(2, -1)
        turned = torch.cat([first * self.cos - second * self.sin, second * self.cos + first * self.sin], -1)
        return turned.to(heads.dtype)
