"""PAD: no coordinate ever becomes it, and none that is at it moves. Checked of processes and estimators once a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..categorical import one_hot
from ..errors import FLDDError

if TYPE_CHECKING:
    from .base import ForwardProcess
    from .step import DenseStep

__all__ = ["check_draws", "check_interior", "check_prior", "check_step"]

_ROUNDING = 1e-5


@torch.no_grad()
def check_prior(process: ForwardProcess) -> None:
    """Raise FLDDError if a process's prior may draw PAD."""
    pad = process.spec.pad
    if pad is not None and float(p := process.log_prior()[pad].exp()) > 0:
        raise FLDDError(
            f"{type(process).__name__}.log_prior gives PAD, class {pad}, a probability of {p:.2g}, and samples would "
            f"have PAD in their midst. {_give_none()}"
        )


@torch.no_grad()
def check_interior(process: ForwardProcess, log_u: Tensor, x: Tensor, pad: int) -> None:
    """Raise FLDDError if marginals ``(B, M, *shape, S)`` give PAD to coordinates of x ``(B, *shape)`` that are not."""
    p = log_u[..., pad].exp().masked_fill((x == pad).unsqueeze(1), 0.0)  # (B, M, *shape)
    if bool((p > 0).any()):
        raise FLDDError(
            f"{type(process).__name__}.interior_log_marginals gives PAD, class {pad}, a probability of up to "
            f"{float(p.max()):.2g} where x is not PAD. {_give_none()}"
        )


@torch.no_grad()
def check_step(process: ForwardProcess, step: DenseStep, pad: int) -> None:
    """Raise FLDDError if a process of one's own moves coordinates to PAD or away from it."""
    at_pad = (step.x == pad).to(step.log_u_t)  # (B, *shape), what the probability of PAD must be
    found = {
        "log_marginals": (step.log_u_s.exp(), step.log_u_t.exp()),
        "couple": (step.posterior.posterior(step.log_u_t.argmax(-1)),),
    }
    for method, several in found.items():
        for p in several:
            if bool(((p[..., pad] - at_pad).abs() > _ROUNDING).any()):
                raise FLDDError(
                    f"{type(process).__name__}.{method} moves coordinates to PAD, class {pad}, or away from it. "
                    "Where x is PAD it must have probability 1 at every step, and elsewhere 0."
                )


@torch.no_grad()
def check_draws(x: Tensor, z_t: Tensor, pad: int, num_states: int, names: str) -> None:
    """Raise FLDDError unless draws are at PAD where data are, and nowhere else.

    Args:
        x: Data ``(B, *shape)``.
        z_t: n draws, integers ``(n, B, *shape)`` or weights ``(n, B, *shape, S)``.
        pad: The class PAD.
        num_states: S.
        names: Of those who may have drawn them.
    """
    weights = z_t if z_t.is_floating_point() else one_hot(z_t, num_states)
    if bool(((weights[..., pad] - (x == pad).to(weights)).abs() > _ROUNDING).any()):
        raise FLDDError(
            f"{names} moved coordinates of z_t to PAD, class {pad}, or away from it. z_t must be PAD where x is, and "
            "nowhere else: draw it by bound.states_drawn or step.draw_relaxed, and leave PAD as it is."
        )


def _give_none() -> str:
    return "Give it none: fldd_lightning.categorical.without_state(log_p, spec.pad) takes it out."
