"""Latents with tables of any old numbers, and what they stand for written out."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from conftest import all_states
from fldd_lightning.latents import ChainLatent, MixtureLatent, TableLatent
from fldd_lightning.spec import Spec

SIZES = {"mixture": 4, "chain": 3}
KINDS: dict[str, Any] = {"mixture": MixtureLatent, "chain": partial(ChainLatent, part=1)}


def fill(latent: TableLatent) -> None:
    """Random tables; the last value of the latent is out of use."""
    used = latent.size - 1
    classes = latent.spec.num_classes - int(latent.spec.padded)
    latent.log_conditional.zero_()[..., :classes, :].copy_(
        (2 * torch.randn(*latent.spec.shape, classes, latent.size)).log_softmax(-2)
    )
    if isinstance(latent, MixtureLatent):
        latent.log_prior[:used] = torch.randn(used).log_softmax(0)
    if isinstance(latent, ChainLatent):
        latent.log_first[:used] = torch.randn(used).log_softmax(0)
        latent.log_following[..., :used] = (2 * torch.randn(latent.num_parts - 1, latent.size, used)).log_softmax(-1)


def some_latent(kind: str, spec: Spec) -> TableLatent:
    latent: TableLatent = KINDS[kind](spec, size=SIZES[kind])
    fill(latent)
    return latent


def prior(latent: TableLatent) -> tuple[torch.Tensor, torch.Tensor]:
    """All values in use, ``(n, m)``, and the probability of each, ``(n,)``."""
    values = all_states(latent.size - 1, latent.num_parts)
    if isinstance(latent, MixtureLatent):
        return values, latent.log_prior.exp().double()[values[:, 0]]
    assert isinstance(latent, ChainLatent)
    p = latent.log_first.exp().double()[values[:, 0]]
    for j in range(latent.num_parts - 1):
        p = p * latent.log_following[j].exp().double()[values[:, j], values[:, j + 1]]
    return values, p


def joint(latent: TableLatent, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """All values in use, ``(n, m)``, and p(c) prod_i p(x_i|c), ``(B, n)``."""
    values, p = prior(latent)
    num_dims = x.shape[1]
    columns = []
    for c, p_c in zip(values, p, strict=True):
        factors = [
            latent.log_conditional[i, :, c[i * latent.num_parts // num_dims]].double().exp()[x[:, i]]
            for i in range(num_dims)
        ]
        columns.append(p_c * torch.stack(factors).prod(0))
    return values, torch.stack(columns, 1)


def clustered(n: int, dims: int = 12, num_classes: int = 4, clusters: int = 4) -> torch.Tensor:
    """Examples of some clusters, coordinates independent within; one that has a typical value a coordinate."""
    generator = torch.Generator().manual_seed(0)
    typical = torch.randint(num_classes, (clusters, dims), generator=generator)
    x = typical[torch.randint(clusters, (n,), generator=generator)]
    noise = torch.randint(num_classes, x.shape, generator=generator)
    return torch.where(torch.rand(x.shape, generator=generator) < 0.2, noise, x)
