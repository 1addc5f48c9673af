"""Latents of an example, drawn before the first step: observed, one number, real numbers, or a chain of numbers."""

from .autoencoder import AutoencoderLatent
from .base import Latent, LatentPosterior, PointPosterior
from .chain import ChainLatent
from .condition import ConditionLatent, LabelLatent, VectorLatent
from .either import EitherLatent
from .given import GivenLatent
from .length import LengthLatent
from .mixture import MixtureLatent
from .tabular import TableLatent
from .trained_chain import TrainedChainLatent
from .trained_mixture import TrainedMixtureLatent

__all__ = [
    "AutoencoderLatent",
    "ChainLatent",
    "ConditionLatent",
    "EitherLatent",
    "GivenLatent",
    "LabelLatent",
    "Latent",
    "LatentPosterior",
    "LengthLatent",
    "MixtureLatent",
    "PointPosterior",
    "TableLatent",
    "TrainedChainLatent",
    "TrainedMixtureLatent",
    "VectorLatent",
]
