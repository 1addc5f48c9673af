"""Backbones, all with one call signature: ``(state weights, t, condition) -> logits``."""

from .base import Backbone
from .conv import ConvNet
from .mlp import MLP

__all__ = ["MLP", "Backbone", "ConvNet"]
