"""DataModules; every one states its number of classes and its shape."""

from .array import ArrayDataModule
from .base import DiscreteDataModule, Split
from .digits import DigitsDataModule
from .known import GaussianMixture, HiddenClusters, KnownSource, MarkovChain, RandomWalk, XORBlocks
from .mnist import MNISTDataModule

__all__ = [
    "ArrayDataModule",
    "DigitsDataModule",
    "DiscreteDataModule",
    "GaussianMixture",
    "HiddenClusters",
    "KnownSource",
    "MNISTDataModule",
    "MarkovChain",
    "RandomWalk",
    "Split",
    "XORBlocks",
]
