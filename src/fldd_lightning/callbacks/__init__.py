
from .collapse import CollapseMonitor
from .fid import FIDCallback
from .perplexity import PerplexityCallback
from .pictures import Pictures
from .predictions import NELBOWriter
from .progress import RunProgressBar
from .texts import Texts

__all__ = [
    "CollapseMonitor",
    "FIDCallback",
    "NELBOWriter",
    "PerplexityCallback",
    "Pictures",
    "RunProgressBar",
    "Texts",
]
