"""Encoder and decoder of an autoencoder's latent."""

from __future__ import annotations

from math import prod

import torch
from einops.layers.torch import Rearrange
from torch import nn

from ..errors import FLDDError
from ..ranges import COUNT, check_numbers
from ..spec import MOST_NUMBERS, Spec
from .base import image_channels, zero_last_layer

__all__ = ["Autoencoder", "ConvAutoencoder", "MLPAutoencoder"]


class Autoencoder(nn.Module):
    """Base class of the networks of an :class:`~fldd_lightning.AutoencoderLatent`.

    A subclass takes ``(spec, size, num_inputs, num_outputs)`` first, then its own options, and starts both last
    layers at zero (see :func:`~fldd_lightning.networks.base.zero_last_layer`), so that the latent says nothing.

    Attributes:
        encode: Means, then log variances, ``(B, 2 m)``, for one-hot states ``(B, *shape, num_inputs)``.
        decode: Logits ``(B, *shape, num_outputs)`` for latents ``(B, m)``.
        encoded: The encoder's last layer.
        decoded: The decoder's, without a bias: the latent has one for every logit.
    """

    encode: nn.Module
    decode: nn.Module
    encoded: nn.Linear
    decoded: nn.Linear | nn.Conv2d

    @property
    def says_nothing(self) -> bool:
        """Whether the decoder's logits are the same for every latent."""
        return not bool(self.decoded.weight.any())

    def configuration(self) -> str:
        """What a checkpoint has to agree on; a subclass adds its options."""
        return type(self).__name__

    def wake(self, generator: torch.Generator) -> None:
        """Draw the weights of the last layers: with both at zero neither would ever have reason to move."""
        for layer in (self.encoded, self.decoded):
            noise = torch.randn(layer.weight.shape, generator=generator, device=generator.device)
            layer.weight.data.copy_(layer.weight[0].numel() ** -0.5 * noise)


class MLPAutoencoder(Autoencoder):
    """Two hidden layers each way, for data of any shape.

    Args:
        spec: Its shape.
        size: m.
        num_inputs: Classes per coordinate at the input.
        num_outputs: Logits per coordinate.
        width: Hidden units of each layer.

    Raises:
        FLDDError: If the width is not positive, or the first layer would be larger than 256 MiB.
    """

    def __init__(self, spec: Spec, size: int, num_inputs: int, num_outputs: int, width: int = 512) -> None:
        check_numbers(locals(), size=COUNT, width=COUNT)
        super().__init__()
        if spec.num_dims * num_inputs * width > MOST_NUMBERS:
            raise FLDDError(
                f"an encoder of width {width} for {spec.num_dims} coordinates of {spec.num_classes} classes "
                "would need a layer of more than 256 MiB. Lower the autoencoder's width, or set model.latents to []."
            )
        self.width = width
        self.encoded = nn.Linear(width, 2 * size)
        self.decoded = nn.Linear(width, spec.num_dims * num_outputs, bias=False)
        inner, outer = _hidden(spec.num_dims * num_inputs, width), _hidden(size, width)
        self.encode = nn.Sequential(nn.Flatten(), *inner, *_hidden(width, width), self.encoded)
        self.decode = nn.Sequential(
            *outer, *_hidden(width, width), self.decoded, nn.Unflatten(1, (*spec.shape, num_outputs))
        )
        zero_last_layer(self.encoded)
        zero_last_layer(self.decoded)

    def configuration(self) -> str:
        return f"{super().configuration()}(width={self.width})"


class ConvAutoencoder(Autoencoder):
    """Three convolutions of stride 2 each way, for images of any height and width: levels halve them, rounding up.

    Args:
        spec: A shape of ``(height, width)`` or ``(channels, height, width)``.
        size: m.
        num_inputs: Classes per pixel and channel at the input.
        num_outputs: Logits per pixel and channel.
        features: Of the finest level; every further one has twice as many.
        width: Hidden units between the coarsest level and the latent.

    Raises:
        FLDDError: If the shape is not that of an image, an option is not positive, or the coarsest layer would be
            larger than 256 MiB.
    """

    def __init__(
        self, spec: Spec, size: int, num_inputs: int, num_outputs: int, features: int = 16, width: int = 512
    ) -> None:
        check_numbers(locals(), size=COUNT, features=COUNT, width=COUNT)
        super().__init__()
        channels = image_channels(spec, "ConvAutoencoder")
        self.features, self.width = features, width
        widths = [features, 2 * features, 4 * features]
        rows, columns = spec.shape[-2:]
        down: list[nn.Module] = []
        up: list[nn.Module] = []
        for before, after in zip([channels * num_inputs, *widths], widths):
            down += [nn.Conv2d(before, after, 3, 2, 1), nn.SiLU()]
            # back to an even size by a kernel of 4, to an odd one by 3
            kernel = (4 - rows % 2, 4 - columns % 2)
            up = [nn.ConvTranspose2d(after, max(features, after // 2), kernel, 2, 1), nn.SiLU(), *up]
            rows, columns = -(-rows // 2), -(-columns // 2)
        coarsest = (widths[-1], rows, columns)
        num_coarsest = prod(coarsest)
        if num_coarsest * width > MOST_NUMBERS:
            raise FLDDError(
                f"a ConvAutoencoder of features={features} and width={width} would need, at {rows}x{columns}"
                " pixels, a layer of more than 256 MiB. Lower features or width, or set model.latents to []."
            )
        encoder = [*down, nn.Flatten(), *_hidden(num_coarsest, width)]
        decoder = [*_hidden(size, width), *_hidden(width, num_coarsest), nn.Unflatten(1, coarsest), *up]
        for layer in (*encoder, *decoder):  # else a deep path starts as good as constant
            if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
                inputs = layer.weight[0].numel() if not isinstance(layer, nn.ConvTranspose2d) else 4 * layer.in_channels
                nn.init.normal_(layer.weight, std=(2 / inputs) ** 0.5)  # He et al. (2015), eq. 10
        self.encoded = nn.Linear(width, 2 * size)
        self.decoded = nn.Conv2d(features, channels * num_outputs, 3, padding=1, bias=False)
        # pixels (B, C S, H, W) of one-hot images (B, H, W, S) or (B, C, H, W, S), and logits back
        grey = len(spec.shape) == 2
        to_pixels = Rearrange("b h w s -> b s h w" if grey else "b c h w s -> b (c s) h w")
        to_logits = Rearrange("b o h w -> b h w o") if grey else Rearrange("b (c o) h w -> b c h w o", c=channels)
        self.encode = nn.Sequential(to_pixels, *encoder, self.encoded)
        self.decode = nn.Sequential(*decoder, self.decoded, to_logits)
        zero_last_layer(self.encoded)
        zero_last_layer(self.decoded)

    def configuration(self) -> str:
        return f"{super().configuration()}(features={self.features}, width={self.width})"


def _hidden(num_inputs: int, width: int) -> list[nn.Module]:
    return [nn.Linear(num_inputs, width), nn.SiLU()]
