"""Callbacks: pictures and texts, sample quality, bounds per example, collapse monitor, gap to a known optimum."""

from .collapse import CollapseMonitor
from .fid import FIDCallback
from .optimum import KnownOptimum
from .perplexity import PerplexityCallback
from .pictures import Pictures
from .predictions import NELBOWriter
from .texts import Texts

__all__ = ["CollapseMonitor", "FIDCallback", "KnownOptimum", "NELBOWriter", "PerplexityCallback", "Pictures", "Texts"]
