"""What a code is: numbers of an example that are left in z_T, with a prior that is exact to draw from and to score.

The forward process leaves m numbers c = (c_1, ..., c_m) of an example in the state z_T, beside the noise, and the
reverse process draws them from a prior,

    -log p(x) <= KL(q(c|x) || p(c)) + E_q(c|x)[NELBO(x|c)],

the prior term of a hierarchical VAE (eq. 5 with u_T that depends on x). With T = 1 and a denoiser that knows c alone
the model is sum_c p(c) prod_i p(x_i|c): there a code is fitted before training starts, without the noise of a score
function.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from ..errors import FLDDError
from ..problem import Problem

__all__ = ["MOST_EXAMPLES", "Code", "CodePosterior"]

MOST_EXAMPLES = 50_000  # that a code is fitted to


class CodePosterior(ABC):
    """q(c|x) of B examples: what a step asks of it, for the price of one look-up."""

    @abstractmethod
    def draw(self, uniform: Tensor) -> Tensor:
        """Codes ``(B, m)`` from q(c|x), by float64 numbers in [0, 1), ``(B, m)``."""

    @abstractmethod
    def likely(self) -> Tensor:
        """The most likely value of every number, ``(B, m)``."""

    @abstractmethod
    def kl(self, code: Tensor) -> Tensor:
        """KL(q(c|x) || p(c)) in nats per example, ``(B,)``; where it is not exact, unbiased by a draw ``(B, m)``."""

    @abstractmethod
    def nll(self, code: Tensor) -> Tensor:
        """The bound of the code alone, T = 1, in nats per example, ``(B,)``; from a draw, as :meth:`kl`."""


class Code(nn.Module, ABC):
    """Base class of codes c ~ q(c|x) with a prior p(c).

    Args:
        problem: K and shape.

    Attributes:
        is_fitted: Whether :meth:`fit` has been called, ``()`` of bool.
    """

    is_fitted: Tensor

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.problem = problem
        self.register_buffer("is_fitted", torch.tensor(False))

    @property
    @abstractmethod
    def num_examples(self) -> int:
        """To how many examples it is to be fitted, at most."""

    @property
    @abstractmethod
    def says_nothing(self) -> bool:
        """Whether all examples have the same code."""

    @abstractmethod
    def seen_by_networks(self, problem: Problem) -> Problem:
        """The problem of networks that are given codes beside states."""

    @abstractmethod
    def posterior(self, x: Tensor) -> CodePosterior:
        """q(c|x) for data ``(B, *shape)``."""

    @abstractmethod
    def log_conditional_of(self, code: Tensor) -> Tensor:
        """Log p(x_i|c), ``(B, *shape, K)``, for codes ``(B, m)``; 0 at PAD."""

    @abstractmethod
    def sample(self, num_samples: int, generator: torch.Generator) -> Tensor:
        """Codes from the prior, ``(N, m)`` on the generator's device."""

    @abstractmethod
    def fit(self, x: Tensor, seed: int = 0) -> dict[str, float]:
        """Fit the code.

        Args:
            x: Examples ``(N, *shape)``; a tenth of them, 5,000 at most, are held out to choose among fits.
            seed: Of which these are, and of where the fits start.

        Returns:
            In nats per held-out example ``nll``, the bound of the code alone, and ``nll_marginals``, that of a product
            of marginals; and what else there is to log.

        Raises:
            FLDDError: If there are fewer than two examples.
        """

    @abstractmethod
    def summary(self) -> str:
        """How much of the code is in use, in words."""

    @abstractmethod
    def configuration(self) -> str:
        """What a checkpoint has to agree on."""


def hold_out(x: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Some examples of ``(N, *shape)`` to choose by and the others, in random order; raises if there are too few."""
    if len(x) < 2:
        raise FLDDError(
            f"{len(x)} training examples are too few to fit a code to. Give more, or set model.code to null."
        )
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed)).to(x.device)
    num_held = min(max(1, len(x) // 10), 5_000)
    return x[order[:num_held]], x[order[num_held:]]
