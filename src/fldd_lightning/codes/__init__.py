"""Codes of an example, drawn before the first step: one number, real numbers, or a chain of codes of its parts."""

from .autoencoder import AutoencoderCode
from .base import Code, CodePosterior
from .chain import ChainCode
from .mixture import MixtureCode
from .tabular import TableCode

__all__ = ["AutoencoderCode", "ChainCode", "Code", "CodePosterior", "MixtureCode", "TableCode"]
