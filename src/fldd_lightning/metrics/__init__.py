"""Metrics: the bound over a data set, features of pictures, distances between sets of them, text."""

from .bound import NELBOMetric
from .coverage import Coverage
from .features import ClassifierFeatures, FeatureExtractor, InceptionFeatures, PixelFeatures
from .frechet import FrechetDistance
from .text import TokenBound

__all__ = [
    "ClassifierFeatures",
    "Coverage",
    "FeatureExtractor",
    "FrechetDistance",
    "InceptionFeatures",
    "NELBOMetric",
    "PixelFeatures",
    "TokenBound",
]
