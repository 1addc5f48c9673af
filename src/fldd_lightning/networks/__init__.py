"""Backbones, all with one call signature: ``(state, t, condition) -> logits``; and autoencoders."""

from .autoencoder import Autoencoder, ConvAutoencoder, MLPAutoencoder
from .base import Backbone, StateEmbedding, StepEmbedding
from .dit import DiT
from .mlp import MLP
from .transformer import Transformer
from .unet import UNet

__all__ = [
    "MLP",
    "Autoencoder",
    "Backbone",
    "ConvAutoencoder",
    "DiT",
    "MLPAutoencoder",
    "StateEmbedding",
    "StepEmbedding",
    "Transformer",
    "UNet",
]
