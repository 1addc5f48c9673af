"""Forward (noising) processes q(z_t|x): the base class, the fixed ones and the learned ones."""

from .base import ForwardProcess, Posterior, Transition
from .fixed import AbsorbingProcess, D3PMProcess, UniformProcess
from .masking import LearnedMaskProcess
from .residual import ResidualAbsorbingProcess, ResidualProcess, ResidualUniformProcess

__all__ = [
    "AbsorbingProcess",
    "D3PMProcess",
    "ForwardProcess",
    "LearnedMaskProcess",
    "Posterior",
    "ResidualAbsorbingProcess",
    "ResidualProcess",
    "ResidualUniformProcess",
    "Transition",
    "UniformProcess",
]
