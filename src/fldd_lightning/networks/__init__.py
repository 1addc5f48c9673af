"""Backbones, all with one call signature: ``(state weights, t, condition) -> logits``; and autoencoders."""

from .autoencoder import Autoencoder, ConvAutoencoder, MLPAutoencoder
from .base import Backbone, StateEmbedding, StepEmbedding
from .conv import ConvNet
from .dit import DiT
from .mlp import MLP
from .transformer import Transformer
from .unet import UNet

__all__ = [
    "MLP",
    "Autoencoder",
    "Backbone",
    "ConvAutoencoder",
    "ConvNet",
    "DiT",
    "MLPAutoencoder",
    "StateEmbedding",
    "StepEmbedding",
    "Transformer",
    "UNet",
]
