"""Gradient estimators for the learned forward process."""

from .base import GradientEstimator, StepLoss
from .concrete import Concrete, WarmUp
from .exact import ExactMasks
from .score import RLOO, Reinforce

__all__ = ["RLOO", "Concrete", "ExactMasks", "GradientEstimator", "Reinforce", "StepLoss", "WarmUp"]
