"""DataModules; every one states its number of classes and its shape."""

from .array import ArrayDataModule
from .base import DiscreteDataModule, Split
from .digits import DigitsDataModule

__all__ = ["ArrayDataModule", "DigitsDataModule", "DiscreteDataModule", "Split"]
