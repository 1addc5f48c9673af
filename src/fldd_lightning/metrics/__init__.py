"""Metrics: the bound over a data set, features of pictures, distances between sets of them, text."""

from .bound import NELBOMetric
from .coverage import Coverage
from .features import FeatureExtractor, InceptionFeatures, PixelFeatures
from .frechet import FrechetDistance
from .judges import CausalLMJudge, Judge, Judgement, NGramJudge
from .quality import SampleQuality
from .text import GeneratedText, TokenBound

__all__ = [
    "CausalLMJudge",
    "Coverage",
    "FeatureExtractor",
    "FrechetDistance",
    "GeneratedText",
    "InceptionFeatures",
    "Judge",
    "Judgement",
    "NELBOMetric",
    "NGramJudge",
    "PixelFeatures",
    "SampleQuality",
    "TokenBound",
]
