"""Callbacks: pictures, sample quality, per-example bounds, the collapse monitor, the gap to a known optimum."""

from .collapse import CollapseMonitor
from .fid import FIDCallback
from .optimum import KnownOptimum
from .pictures import Pictures
from .predictions import NELBOWriter

__all__ = ["CollapseMonitor", "FIDCallback", "KnownOptimum", "NELBOWriter", "Pictures"]
