"""A prior of real numbers: a mixture of normal distributions, seen through a normalising flow."""

from __future__ import annotations

from math import log, pi

import torch
from torch import Tensor, nn

from ..networks.base import zero_last_layer

__all__ = ["LOG_VARIANCE", "FlowPrior", "log_normal"]

LOG_VARIANCE = (-8.0, 3.0)  # bounds, of posteriors too
_APART = 0.5  # standard deviation of the means at the start
_WIDTH = 128  # hidden units of the two layers of a coupling


class FlowPrior(nn.Module):
    """p(c) of numbers c = (c_1, ..., c_m): u = f(c) is a mixture's, p(c) = p(u) |du/dc|.

    f is a chain of affine couplings (Dinh et al., 2017, eq. 7 and 9): each scales and shifts some of the numbers by
    what the others are. Two of them, one the other way round, split the numbers by the lowest bit of their places, the
    next two by the next bit, and so on; after the highest it starts anew. At first f is the identity, and the mixture
    one normal distribution.

    Args:
        size: m.
        components: Of the mixture.
        couplings: How many; a single number has none.
    """

    def __init__(self, size: int, components: int, couplings: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(components))
        self.mean = nn.Parameter(torch.zeros(components, size))
        self.log_variance = nn.Parameter(torch.zeros(components, size))
        self.couplings = nn.ModuleList(_Coupling(size, place) for place in range(couplings if size > 1 else 0))

    @property
    def mixture(self) -> list[nn.Parameter]:
        """The mixture's parameters; the others are networks'."""
        return [self.logits, self.mean, self.log_variance]

    def spread(self, generator: torch.Generator) -> None:
        """Draw the means, so that components differ."""
        self.mean.data.copy_(_APART * torch.randn(self.mean.shape, generator=generator, device=generator.device))

    def log_prob(self, c: Tensor) -> Tensor:
        """Log p(c) in nats, ``(B,)``, for latents ``(B, m)``."""
        log_volume = c.new_zeros(len(c))
        for coupling in self.couplings:
            shift, log_scale = coupling(c)
            c = (c - shift) * (-log_scale).exp()
            log_volume = log_volume - log_scale.sum(-1)
        each = log_normal(c.unsqueeze(1), self.mean, self.log_variance.clamp(*LOG_VARIANCE))  # (B, components)
        return (each + self.logits.log_softmax(0)).logsumexp(1) + log_volume

    @torch.no_grad()
    def sample(self, num_samples: int, generator: torch.Generator) -> Tensor:
        """Latents ``(N, m)``, on the generator's device."""
        device = generator.device
        which = torch.multinomial(self.logits.softmax(0).to(device), num_samples, True, generator=generator)
        mean = self.mean.to(device)[which]  # (N, m)
        deviation = (self.log_variance.clamp(*LOG_VARIANCE) / 2).exp().to(device)[which]
        c = mean + deviation * torch.randn(mean.shape, device=device, generator=generator)
        c = c.to(self.mean.device)
        for coupling in reversed(self.couplings):
            shift, log_scale = coupling(c)
            c = c * log_scale.exp() + shift
        return c.to(device)


class _Coupling(nn.Module):
    """Shift and log scale of some numbers by the others; both 0 for those that stay."""

    moves: Tensor

    def __init__(self, size: int, place: int) -> None:
        super().__init__()
        bit = place // 2 % (size - 1).bit_length()
        moves = (torch.arange(size) >> bit) % 2 == place % 2
        self.register_buffer("moves", moves.float(), persistent=False)
        last = nn.Linear(_WIDTH, 2 * size)
        zero_last_layer(last)
        self.network = nn.Sequential(nn.Linear(size, _WIDTH), nn.SiLU(), nn.Linear(_WIDTH, _WIDTH), nn.SiLU(), last)

    def forward(self, c: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(c.device.type, enabled=False):  # the flow that is scored is the one that is drawn from
            seen = (c * (1 - self.moves)).to(self.moves.dtype)
            shift, log_scale = self.network(seen).to(c.dtype).chunk(2, -1)
        return shift * self.moves, 2 * (log_scale / 2).tanh() * self.moves


def log_normal(c: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Log N(c; mean, exp(log_variance)), summed over the last dimension."""
    terms: Tensor = (c - mean) ** 2 / log_variance.exp() + log_variance + log(2 * pi)
    return -0.5 * terms.sum(-1)
