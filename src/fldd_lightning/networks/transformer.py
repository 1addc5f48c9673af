"""A transformer for sequences."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import FLDDError
from ..problem import Problem
from ..states import State
from .base import Backbone, StateEmbedding, StepEmbedding, zero_last_layer
from .block import AdaLNBlock, AdaLNOutput, RotaryPositions

__all__ = ["Transformer"]


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
        problem: K, T and a shape of ``(length,)``.
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

    takes_sparse = True

    def __init__(
        self,
        problem: Problem,
        num_inputs: int,
        num_outputs: int,
        width: int = 256,
        depth: int = 6,
        heads: int = 4,
        dropout: float = 0.0,
        time_width: int = 128,
        tied: bool = False,
    ) -> None:
        super().__init__()
        if len(problem.shape) != 1:
            raise FLDDError(f"Transformer needs sequences, shape (length,), not {problem.shape}. Use DiT for images.")
        if min(width, depth, heads, time_width) < 1 or width % heads or (width // heads) % 2:
            raise FLDDError(f"heads={heads} must divide the width {width} into parts of an even number of features.")
        if tied and num_outputs < num_inputs:
            raise FLDDError(
                f"tied embeddings need at least as many outputs as inputs, but there are {num_outputs} and "
                f"{num_inputs} (a LearnedMaskProcess has T - 1 outputs). Set tied to false for this network."
            )
        self.embed = StateEmbedding(problem, num_inputs, width, std=0.02 if tied else 1.0)
        self.time = StepEmbedding(problem, time_width)
        self.rotary = RotaryPositions(problem.shape[0], width // heads)
        self.blocks = nn.ModuleList(AdaLNBlock(width, heads, dropout, time_width) for _ in range(depth))
        self.norm = AdaLNOutput(width, time_width)
        self.last = nn.Linear(width, width if tied else num_outputs)
        zero_last_layer(self.last)
        self.tied = tied
        self.further = nn.Parameter(0.02 * torch.randn(num_outputs - num_inputs, width)) if tied else None

    def forward(self, state: State, t: Tensor, condition: Tensor | None = None) -> Tensor:
        time = F.silu(self.time(t, condition))
        hidden = self.embed(state, condition)  # (B, L, width)
        for block in self.blocks:
            hidden = block(hidden, time, self.rotary)
        out: Tensor = self.last(self.norm(hidden, time))
        if self.further is not None:
            out = F.linear(out, torch.cat([self.embed.weight.T, self.further]))  # (B, L, outputs)
        return out
