"""Codes of an example, drawn before the first step: one of the whole, or a chain of codes of its parts."""

from .base import Code, CodePosterior
from .chain import ChainCode
from .mixture import MixtureCode

__all__ = ["ChainCode", "Code", "CodePosterior", "MixtureCode"]
