"""Latents of an example, drawn before the first step: observed, one number, real numbers, or a chain of numbers."""

from .autoencoder import AutoencoderLatent
from .base import Latent, LatentPosterior, PointPosterior
from .chain import ChainLatent
from .either import EitherLatent
from .given import GivenLatent
from .mixture import MixtureLatent
from .observed import LabelLatent, LengthLatent
from .tabular import TableLatent
from .trained_chain import TrainedChainLatent
from .trained_mixture import TrainedMixtureLatent

__all__ = [
    "AutoencoderLatent",
    "ChainLatent",
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
]
