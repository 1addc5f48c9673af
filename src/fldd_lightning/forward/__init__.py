"""Forward (noising) processes q(z_t|x): the base class, the fixed ones and the learned ones."""

from ..transition import Posterior, SparseTransition, Transition
from .base import ForwardProcess
from .fixed import AbsorbingProcess, D3PMProcess, UniformProcess
from .mask import MaskProcess
from .masking import LearnedMaskProcess, StaggeredProcess
from .residual import ResidualAbsorbingProcess, ResidualProcess, ResidualUniformProcess

__all__ = [
    "AbsorbingProcess",
    "D3PMProcess",
    "ForwardProcess",
    "LearnedMaskProcess",
    "MaskProcess",
    "Posterior",
    "ResidualAbsorbingProcess",
    "ResidualProcess",
    "ResidualUniformProcess",
    "SparseTransition",
    "StaggeredProcess",
    "Transition",
    "UniformProcess",
]
