"""Codes with tables of any old numbers, and what they stand for written out."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from conftest import all_states
from fldd_lightning.codes import ChainCode, Code, MixtureCode
from fldd_lightning.problem import Problem

SIZES = {"mixture": 4, "chain": 3}
KINDS: dict[str, Any] = {"mixture": MixtureCode, "chain": partial(ChainCode, part=1)}


def fill(code: Code) -> None:
    """Random tables; the last value of the code is out of use."""
    used = code.size - 1
    classes = code.problem.num_classes - int(code.problem.padded)
    code.log_conditional.zero_()[..., :classes, :].copy_(
        (2 * torch.randn(*code.problem.shape, classes, code.size)).log_softmax(-2)
    )
    if isinstance(code, MixtureCode):
        code.log_prior[:used] = torch.randn(used).log_softmax(0)
    if isinstance(code, ChainCode):
        code.log_first[:used] = torch.randn(used).log_softmax(0)
        code.log_following[..., :used] = (2 * torch.randn(code.num_parts - 1, code.size, used)).log_softmax(-1)


def some_code(kind: str, problem: Problem) -> Code:
    code: Code = KINDS[kind](problem, size=SIZES[kind])
    fill(code)
    return code


def prior(code: Code) -> tuple[torch.Tensor, torch.Tensor]:
    """All codes in use, ``(n, m)``, and the probability of each, ``(n,)``."""
    codes = all_states(code.size - 1, code.num_parts)
    if isinstance(code, MixtureCode):
        return codes, code.log_prior.exp().double()[codes[:, 0]]
    assert isinstance(code, ChainCode)
    p = code.log_first.exp().double()[codes[:, 0]]
    for j in range(code.num_parts - 1):
        p = p * code.log_following[j].exp().double()[codes[:, j], codes[:, j + 1]]
    return codes, p


def joint(code: Code, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """All codes in use, ``(n, m)``, and p(c) prod_i p(x_i|c), ``(B, n)``."""
    codes, p = prior(code)
    num_dims = x.shape[1]
    columns = []
    for c, p_c in zip(codes, p, strict=True):
        factors = [
            code.log_conditional[i, :, c[i * code.num_parts // num_dims]].double().exp()[x[:, i]]
            for i in range(num_dims)
        ]
        columns.append(p_c * torch.stack(factors).prod(0))
    return codes, torch.stack(columns, 1)


def clustered(n: int, dims: int = 12, num_classes: int = 4, clusters: int = 4) -> torch.Tensor:
    """Examples of some clusters, coordinates independent within; one that has a typical value a coordinate."""
    generator = torch.Generator().manual_seed(0)
    typical = torch.randint(num_classes, (clusters, dims), generator=generator)
    x = typical[torch.randint(clusters, (n,), generator=generator)]
    noise = torch.randint(num_classes, x.shape, generator=generator)
    return torch.where(torch.rand(x.shape, generator=generator) < 0.2, noise, x)
