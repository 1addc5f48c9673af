"""Backbones, all with one call signature: ``(state weights, t, condition) -> logits``."""

from .base import Backbone, StateEmbedding, StepEmbedding
from .conv import ConvNet
from .dit import DiT
from .mlp import MLP
from .transformer import Transformer
from .unet import UNet

__all__ = ["MLP", "Backbone", "ConvNet", "DiT", "StateEmbedding", "StepEmbedding", "Transformer", "UNet"]
