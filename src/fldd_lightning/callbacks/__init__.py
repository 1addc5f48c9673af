"""Callbacks: pictures of samples and of the learned process, per-example bounds, collapse monitor."""

from .collapse import CollapseMonitor
from .pictures import Pictures
from .predictions import NELBOWriter

__all__ = ["CollapseMonitor", "NELBOWriter", "Pictures"]
