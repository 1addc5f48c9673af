"""Callbacks: report of a run, progress bar, pictures, texts, sample quality, bounds per example, collapse monitor."""

from .any_order import AnyOrderBound
from .collapse import CollapseMonitor
from .fid import FIDCallback
from .perplexity import PerplexityCallback
from .pictures import Pictures
from .predictions import NELBOWriter
from .progress import RunProgressBar
from .report import Report
from .texts import Texts

__all__ = [
    "AnyOrderBound",
    "CollapseMonitor",
    "FIDCallback",
    "NELBOWriter",
    "PerplexityCallback",
    "Pictures",
    "Report",
    "RunProgressBar",
    "Texts",
]
