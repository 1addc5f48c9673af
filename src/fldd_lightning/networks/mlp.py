"""A residual multilayer perceptron for data of any shape."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ..ranges import BELOW_ONE, COUNT, NATURAL, check_numbers
from ..spec import Spec
from .base import Backbone, StateEmbedding, StepEmbedding, zero_last_layer

__all__ = ["MLP"]


class MLP(Backbone):
    """Embeds every coordinate, mixes all of them in residual layers, reads logits off again.

    A per-step linear path from a coordinate's own embedding to its own logits stands beside the
    mixing layers. The cost is about 2 D (E + S) width + 4 depth width^2 operations an example;
    for more than a few thousand coordinates take a convolutional network or a transformer.

    Args:
        spec: K, shape, T and what networks see.
        num_inputs: States per coordinate at the input.
        num_outputs: Logits per coordinate at the output; zero at initialisation.
        width: Width of the hidden layers.
        depth: Number of residual layers.
        embedding: Features per coordinate.
        dropout: Dropout probability inside the residual layers.
    """

    def __init__(
        self,
        spec: Spec,
        num_inputs: int,
        num_outputs: int,
        width: int = 256,
        depth: int = 2,
        embedding: int = 16,
        dropout: float = 0.0,
    ) -> None:
        check_numbers(locals(), width=COUNT, depth=NATURAL, embedding=COUNT, dropout=BELOW_ONE)
        super().__init__()
        num_dims = spec.num_dims
        self.embed = StateEmbedding(spec, num_inputs, embedding)
        self.mix_in = nn.Linear(num_dims * embedding, width)
        self.layers = nn.ModuleList(_ResidualLayer(spec, width, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.last_time = StepEmbedding(spec, width, std=0.3)
        self.mix_out = nn.Linear(width, num_dims * num_outputs)
        zero_last_layer(self.mix_out)
        self.skip = nn.Parameter(torch.zeros(spec.num_steps + 1, embedding, num_outputs))

    def forward(self, state: Tensor, t: Tensor, condition: tuple[Tensor, ...] = ()) -> Tensor:
        embedded = self.embed(state, condition)  # (B, *shape, E)
        tokens = embedded.flatten(1, -2)  # (B, D, E)
        hidden = self.mix_in(rearrange(tokens, "b d e -> b (d e)"))  # (B, width)
        for layer in self.layers:
            hidden = layer(hidden, t, condition)
        mixed = self.mix_out(F.gelu(self.norm(hidden) + self.last_time(t, condition)))  # (B, D * outputs)
        own = torch.bmm(tokens, self.skip[t].to(tokens.dtype))  # (B, D, outputs)
        logits: Tensor = rearrange(mixed, "b (d o) -> b d o", d=tokens.shape[1]) + own
        return logits.reshape(*embedded.shape[:-1], -1)


class _ResidualLayer(nn.Module):
    def __init__(self, spec: Spec, width: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.time = StepEmbedding(spec, width, std=0.3)
        self.inner = nn.Linear(width, width)
        self.outer = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: Tensor, t: Tensor, condition: tuple[Tensor, ...]) -> Tensor:
        inner = F.gelu(self.inner(self.norm(hidden)) + self.time(t, condition))
        out: Tensor = hidden + self.outer(self.dropout(inner))
        return out
