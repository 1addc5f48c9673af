"""Gradient estimators for the learned forward process."""

from .base import GradientEstimator, StepLoss
from .concrete import Concrete, WarmUp
from .score import RLOO, Reinforce

__all__ = ["RLOO", "Concrete", "GradientEstimator", "Reinforce", "StepLoss", "WarmUp"]
