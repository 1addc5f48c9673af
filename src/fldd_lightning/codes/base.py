"""What a code is: numbers of an example that are left in z_T, with a prior that is exact to draw from and to score.

The forward process leaves m numbers c = (c_1, ..., c_m) of an example in the state z_T, beside the noise, and the
reverse process draws them from a prior,

    -log p(x) <= KL(q(c|x) || p(c)) + E_q(c|x)[NELBO(x|c)],

the prior term of a hierarchical VAE (eq. 5 with u_T that depends on x). With T = 1 and a denoiser that knows c alone
the model is sum_c p(c) prod_i p(x_i|c), the best q(c|x) is its posterior, and expectation maximisation is ascent on
the bound itself. A code is learned there, without the noise of a score function.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from ..errors import FLDDError
from ..problem import Problem
from .tables import MOST_NUMBERS, count, normalised

__all__ = ["Code", "CodePosterior"]

_BLEND = 0.3  # of an example in the value that starts from it; the rest are the marginals
_FEWEST_EXAMPLES = 20  # for more than one value
_MOST_EXAMPLES = 50_000  # that a code is fitted to


class CodePosterior(ABC):
    """q(c|x) of B examples: what a step asks of it, for the price of one look-up."""

    @abstractmethod
    def draw(self, uniform: Tensor) -> Tensor:
        """Codes ``(B, m)`` from q(c|x), by float64 numbers in [0, 1), ``(B, m)``."""

    @abstractmethod
    def likely(self) -> Tensor:
        """The most likely value of every part, ``(B, m)``."""

    @abstractmethod
    def kl(self) -> Tensor:
        """KL(q(c|x) || p(c)) in nats per example, ``(B,)``: E_q[log p(x|c)] - log p(x) of the code alone."""

    @abstractmethod
    def nll(self) -> Tensor:
        """Minus the log-likelihood of the code alone, the bound at T = 1, in nats per example, ``(B,)``."""


class Code(nn.Module, ABC):
    """Base class of codes c ~ q(c|x) with a prior p(c).

    Args:
        problem: K and shape.
        size: C, the most values c_j may take.
        num_parts: m, how many numbers there are of an example.
        smoothing: Examples' worth of what they have in common that the tables of every value are blended with.

    Attributes:
        log_conditional: log p(x_i|c_j), ``(*shape, K, C)``, for the part j that i belongs to; 0 at PAD.
        is_fitted: Whether :meth:`fit` has been called, ``()`` of bool.

    Raises:
        FLDDError: If the size is below 2, the smoothing is not positive, or the table would be larger than 256 MiB.
    """

    log_conditional: Tensor
    is_fitted: Tensor

    def __init__(self, problem: Problem, size: int, num_parts: int, smoothing: float) -> None:
        super().__init__()
        if size < 2 or smoothing <= 0:
            raise FLDDError(f"a code needs a size of at least 2 and positive smoothing, not {size} and {smoothing}.")
        if size * problem.num_dims * problem.num_classes > MOST_NUMBERS:
            raise FLDDError(
                f"a code of size {size} for {problem.num_dims} coordinates of {problem.num_classes} classes would need "
                "a table of more than 256 MiB. Lower model.code.size, or set model.code to null."
            )
        self.problem, self.size, self.num_parts, self.smoothing = problem, size, num_parts, smoothing
        self.register_buffer("log_conditional", torch.zeros(*problem.shape, problem.num_classes, size))
        self.register_buffer("is_fitted", torch.tensor(False))

    @property
    @abstractmethod
    def num_examples(self) -> int:
        """To how many examples it is to be fitted, at most."""

    @property
    @abstractmethod
    def num_used(self) -> int:
        """How many of the C values are in use; 1 for a code that says nothing."""

    @abstractmethod
    def posterior(self, x: Tensor) -> CodePosterior:
        """q(c|x) for data ``(B, *shape)``."""

    @abstractmethod
    def log_conditional_of(self, code: Tensor) -> Tensor:
        """Log p(x_i|c), ``(B, *shape, K)``, for codes ``(B, m)``."""

    @abstractmethod
    def sample(self, num_samples: int, generator: torch.Generator) -> Tensor:
        """Codes from the prior, integers ``(N, m)`` on the generator's device."""

    @abstractmethod
    def fit(self, x: Tensor, seed: int = 0) -> dict[str, float]:
        """Fit the code.

        Args:
            x: Examples ``(N, *shape)``; a tenth of them, 5,000 at most, are held out to choose among fits.
            seed: Of which these are, and of where the fits start.

        Returns:
            ``codes``, how many values are in use, and in nats per held-out example ``nll``, minus the log-likelihood
            of the code alone, and ``nll_marginals``, that of a product of marginals.

        Raises:
            FLDDError: If there are fewer than two examples.
        """

    def most_values(self, num_examples: int, num_kept: int) -> int:
        """How many values of c_j may be fitted to those kept of so many examples."""
        return min(self.size, num_kept) if num_examples >= _FEWEST_EXAMPLES else 1

    def configuration(self) -> str:
        """What a checkpoint has to agree on."""
        return f"{type(self).__name__}(size={self.size})"


def affordable(operations: int, budget: int) -> int:
    """To how many examples to fit, where a round of fitting costs so many operations an example."""
    return max(1_000, min(_MOST_EXAMPLES, budget // operations))


def sizes_to_try(most: int, first: int) -> list[int]:
    """4^first, 4^(first + 1), ... below ``most``, and ``most``."""
    return [*(4**k for k in range(first, most.bit_length()) if 4**k < most), most]


def started_from(examples: Tensor, marginals: Tensor, problem: Problem) -> Tensor:
    """Log p(x_i|c), ``(*shape, K, C)``, of values that start from one of ``(C, *shape)`` examples each."""
    starts = count(examples, torch.eye(len(examples), device=examples.device), problem.num_classes, problem.pad)
    return normalised(marginals + _BLEND * (starts - marginals), problem.pad)


def hold_out(x: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Some examples of ``(N, *shape)`` to choose by and the others, in random order; raises if there are too few."""
    if len(x) < 2:
        raise FLDDError(
            f"{len(x)} training examples are too few to fit a code to. Give more, or set model.code to null."
        )
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed)).to(x.device)
    num_held = min(max(1, len(x) // 10), 5_000)
    return x[order[:num_held]], x[order[num_held:]]


def count_all(x: Tensor, problem: Problem) -> Tensor:
    """How often every coordinate takes every value, plus 1 / K; ``(*shape, K, 1)``, 0 at PAD."""
    counts = (
        count(x, torch.ones(len(x), 1, device=x.device), problem.num_classes, problem.pad) + 1 / problem.num_classes
    )
    if problem.pad is not None:
        counts[..., problem.pad, :] = 0
    return counts
