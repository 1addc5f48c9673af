"""Metrics: the bound over a data set, features of pictures, distances between sets of them."""

from .bound import NELBOMetric
from .coverage import Coverage
from .features import ClassifierFeatures, FeatureExtractor, InceptionFeatures, PixelFeatures
from .frechet import FrechetDistance
from .quality import SampleQuality

__all__ = [
    "ClassifierFeatures",
    "Coverage",
    "FeatureExtractor",
    "FrechetDistance",
    "InceptionFeatures",
    "NELBOMetric",
    "PixelFeatures",
    "SampleQuality",
]
