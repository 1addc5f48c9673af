"""A diffusion transformer for discrete images."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import FLDDError
from ..ranges import BELOW_ONE, COUNT, check_numbers
from ..spec import Spec
from .base import Backbone, StepEmbedding, as_weights, image_channels, zero_last_layer
from .transformer import AdaLNBlock, AdaLNOutput

__all__ = ["DiT"]


class DiT(Backbone):
    """Transformer on patches with adaLN-zero conditioning on the step (Peebles and Xie, 2023).

    Parameters and cost of a pass, in multiplications and additions, for S = 3 states and the default options:
    28x28 (49 patches) 2.8 M and 0.18 GFLOP an image; 3x32x32 with S = 33 (64 patches) 3.4 M and 0.31 GFLOP.

    Args:
        spec: K, T and a shape of ``(height, width)`` or ``(channels, height, width)``.
        num_inputs: States per pixel and channel at the input.
        num_outputs: Logits per pixel and channel at the output; zero at initialisation.
        patch: Height and width of a patch; must divide both sides.
        width: Features per patch.
        depth: Transformer blocks.
        heads: Attention heads; must divide ``width``.
        dropout: Dropout probability after attention and in the feed-forward layers.

    Raises:
        FLDDError: If the shape is not that of an image, or ``patch`` or ``heads`` does not fit.
    """

    def __init__(
        self,
        spec: Spec,
        num_inputs: int,
        num_outputs: int,
        patch: int = 4,
        width: int = 192,
        depth: int = 4,
        heads: int = 6,
        dropout: float = 0.0,
    ) -> None:
        check_numbers(locals(), patch=COUNT, width=COUNT, depth=COUNT, heads=COUNT, dropout=BELOW_ONE)
        super().__init__()
        self.channels, self.num_inputs = image_channels(spec, "DiT"), num_inputs
        height, columns = spec.shape[-2:]
        if height % patch or columns % patch or width % heads:
            raise FLDDError(
                f"patch={patch} must divide the image's {height}x{columns} and heads={heads} the width {width}."
            )
        self.patch = patch
        area = self.channels * patch**2
        num_patches = (height // patch) * (columns // patch)
        self.embed = nn.Linear(area * num_inputs, width)
        self.position = nn.Parameter(0.02 * torch.randn(1, num_patches, width))
        self.time = StepEmbedding(spec, width)
        self.blocks = nn.ModuleList(AdaLNBlock(width, heads, dropout, width) for _ in range(depth))
        self.norm = AdaLNOutput(width, width)
        self.last = nn.Linear(width, area * num_outputs)
        zero_last_layer(self.last)
        # a path from each pixel's own state to its own logits, as images have detail below a patch
        self.skip = nn.Parameter(torch.zeros(spec.num_steps + 1, num_inputs, num_outputs))

    def forward(self, state: Tensor, t: Tensor, condition: tuple[Tensor, ...] = ()) -> Tensor:
        time = F.silu(self.time(t, condition))  # (B, width)
        weights = as_weights(state, self.num_inputs, self.embed.weight.dtype)  # (B, *shape, S)
        images = weights if weights.dim() == 5 else weights.unsqueeze(1)  # (B, C, H, W, S)
        p, rows = self.patch, images.shape[2] // self.patch
        patches = rearrange(images, "b c (h p) (w q) s -> b (h w) (c p q s)", p=p, q=p)
        hidden = self.embed(patches) + self.position  # (B, patches, width)
        for block in self.blocks:
            hidden = block(hidden, time)
        mixed = self.last(self.norm(hidden, time))
        logits: Tensor = rearrange(
            mixed, "b (h w) (c p q o) -> b c (h p) (w q) o", h=rows, c=self.channels, p=p, q=p
        )  # (B, C, H, W, outputs)
        own = torch.einsum("bchws,bso->bchwo", images, self.skip[t].to(images.dtype))
        logits = logits + own
        return logits if weights.dim() == 5 else logits.squeeze(1)
