"""Forward-Learned Discrete Diffusion as PyTorch Lightning modules.

Data flows one way: data -> forward process -> coupling -> (denoiser) -> objective -> module ->
trainer. Sampling uses the denoiser alone. Names are imported on first use, so that
``import fldd_lightning`` and the command line's help do not wait for torch.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .codes import AutoencoderCode, ChainCode, Code, MixtureCode
    from .errors import FLDDError
    from .image import ImageFLDD, LabelledImageFLDD
    from .module import FLDD
    from .problem import Problem
    from .text import TextFLDD

__all__ = [
    "FLDD",
    "AutoencoderCode",
    "ChainCode",
    "Code",
    "FLDDError",
    "ImageFLDD",
    "LabelledImageFLDD",
    "MixtureCode",
    "Problem",
    "TextFLDD",
    "__version__",
]

__version__ = version("fldd-lightning")

_HOMES = {
    "AutoencoderCode": "codes",
    "ChainCode": "codes",
    "Code": "codes",
    "FLDD": "module",
    "FLDDError": "errors",
    "ImageFLDD": "image",
    "LabelledImageFLDD": "image",
    "MixtureCode": "codes",
    "Problem": "problem",
    "TextFLDD": "text",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fldd_lightning' has no attribute '{name}'")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
