"""Forward (noising) processes q(z_t|x): the base class, those that only mask, and those that do more."""

from .base import ForwardProcess
from .general import D3PMProcess, ResidualAbsorbingProcess, ResidualProcess, ResidualUniformProcess, UniformProcess
from .masked import AbsorbingProcess, LearnedMaskProcess, MaskedStep, MaskProcess, StaggeredProcess
from .step import DenseStep, Posterior, Step

__all__ = [
    "AbsorbingProcess",
    "D3PMProcess",
    "DenseStep",
    "ForwardProcess",
    "LearnedMaskProcess",
    "MaskProcess",
    "MaskedStep",
    "Posterior",
    "ResidualAbsorbingProcess",
    "ResidualProcess",
    "ResidualUniformProcess",
    "StaggeredProcess",
    "Step",
    "UniformProcess",
]
