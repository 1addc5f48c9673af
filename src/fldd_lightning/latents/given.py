"""Coordinates of an example that are given to both processes, and how networks are told which they are."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..spec import Seen, Spec
from .base import Latent, PointPosterior

__all__ = ["GivenLatent", "random_subset"]


class GivenLatent(Latent):
    """Tells networks which coordinates are given, one bit for each; none is, unless training or the sampler says so.

    A model with ``observed`` gets it by itself where a process does more than mask: there a value that is given looks
    like noise. It costs nothing: ``kl_given`` is 0.

    Args:
        spec: K and shape.
    """

    name = "given"
    seen: Seen

    def __init__(self, spec: Spec) -> None:
        super().__init__(spec)
        self.seen = Seen(self.name, num_values=2, num_parts=spec.num_dims)

    def posterior(self, x: Tensor, batch: Any = None) -> PointPosterior:
        nothing = torch.zeros_like(x, dtype=torch.bool)
        return PointPosterior(self.said(nothing), torch.zeros(len(x), device=x.device))

    def said(self, is_given: Tensor) -> Tensor:
        """What networks see, ``(B, D)``, of coordinates that are given or not, ``(B, *shape)`` of bool."""
        return is_given.flatten(1).long()

    def sample(self, num_samples: int, generator: torch.Generator) -> Tensor:
        return torch.zeros(num_samples, self.spec.num_dims, dtype=torch.long, device=generator.device)

    def sample_given(self, x: Tensor, is_given: Tensor, generator: torch.Generator) -> Tensor:
        return self.said(is_given)


def random_subset(x: Tensor, share: float, pad: int | None, uniform: Tensor) -> Tensor:
    """Which coordinates of ``(B, *shape)`` to give in training, ``(B, *shape)`` of bool.

    With probability ``share`` an example has some: each coordinate with a probability of its own, which is uniform on
    [0, 1]. So all sizes of subsets are equally frequent, and all subsets of one size.

    Args:
        x: Data.
        share: Of the examples of which something is given, above 0.
        pad: The class PAD, which is given anyway, and is not said here; or None.
        uniform: Float64 numbers in [0, 1), ``(B, 1 + D)``: for how many are given, and which.
    """
    chosen, each = uniform[:, 0].view(-1, *[1] * (x.dim() - 1)), uniform[:, 1:].view(x.shape)
    given = (each < (share - chosen) / share).to(x.device)  # uniform on [0, 1] where chosen < share
    return given if pad is None else given & (x != pad)
