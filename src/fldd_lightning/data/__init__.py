"""DataModules; every one states its number of classes and its shape."""

from .array import ArrayDataModule
from .base import DiscreteDataModule, Split, split_rows
from .digits import DigitsDataModule
from .image import ImageDataModule
from .mnist import CIFAR10DataModule, FashionMNISTDataModule, MNISTDataModule
from .table import TableDataModule
from .text import TextDataModule
from .tokenizer import CharacterTokenizer, HuggingFaceTokenizer, Tokenizer

__all__ = [
    "ArrayDataModule",
    "CIFAR10DataModule",
    "CharacterTokenizer",
    "DigitsDataModule",
    "DiscreteDataModule",
    "FashionMNISTDataModule",
    "HuggingFaceTokenizer",
    "ImageDataModule",
    "MNISTDataModule",
    "Split",
    "TableDataModule",
    "TextDataModule",
    "Tokenizer",
    "split_rows",
]
