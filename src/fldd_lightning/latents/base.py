"""What a latent is: numbers c of an example with a posterior q(c|x) and a prior p(c), which both networks may see.

The forward process leaves c of an example in the state z_T, beside the noise. The reverse process draws it from the
prior:

    -log p(x) <= KL(q(c|x) || p(c)) + E_q(c|x)[NELBO(x|c)],

the prior term of a hierarchical VAE (eq. 5 with u_T that depends on x). A latent is *observed* where the data say it: a
label, a length. Its posterior is then a point, and its KL is -log p(c).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import FLDDError
from ..spec import Seen, Spec

__all__ = ["MOST_EXAMPLES", "Latent", "LatentPosterior", "PointPosterior"]

MOST_EXAMPLES = 50_000  # that a latent is fitted to


class LatentPosterior(ABC):
    """q(c|x) of B examples: what a step asks of it, for the price of one look-up."""

    @abstractmethod
    def draw(self, uniform: Tensor) -> Tensor:
        """Latents ``(B, m)`` from q(c|x), by float64 numbers in [0, 1), ``(B, num_uniforms)``."""

    @abstractmethod
    def likely(self) -> Tensor:
        """The most likely value of every number, ``(B, m)``."""

    @abstractmethod
    def kl(self, c: Tensor) -> Tensor:
        """KL(q(c|x) || p(c)) in nats per example, ``(B,)``; where it is not exact, unbiased by a draw ``(B, m)``."""

    def log_prob(self, c: Tensor) -> Tensor:
        """Log q(c|x), ``(B,)``, for latents ``(B, m)``, with a gradient to q."""
        raise NotImplementedError("this latent's draws have a gradient of their own, or none is needed")

    def nll(self, c: Tensor) -> Tensor:
        """The bound of the latent alone, T = 1, in nats per example, ``(B,)``; from a draw, as :meth:`kl`."""
        raise NotImplementedError("this latent says nothing of the values")

    def said(self, c: Tensor, weights: Tensor) -> tuple[Tensor, Tensor] | None:
        """What the latent says of the values: sum_i w_i log p(x_i|c), for weights w ``(B, *shape)``.

        Returns:
            At a draw ``(B, m)``, without a gradient; its mean over q(c|x), with a gradient to q alone. ``(B,)`` both.
            None where the mean has no closed form: then the score of draws is noisier.
        """
        return None

    def alone(self, c: Tensor) -> Tensor:
        """What ``weight_alone`` weighs in the loss of training, ``(B,)``; the bound of the latent alone."""
        return self.nll(c)


class PointPosterior(LatentPosterior):
    """q(c|x) of an observed latent, which is all at one value.

    Args:
        c: The value, ``(B, m)``.
        log_prior: log p(c), ``(B,)``.
    """

    def __init__(self, c: Tensor, log_prior: Tensor) -> None:
        self.c, self.log_prior = c, log_prior

    def draw(self, uniform: Tensor) -> Tensor:
        return self.c

    def likely(self) -> Tensor:
        return self.c

    def kl(self, c: Tensor) -> Tensor:
        return -self.log_prior


class Latent(nn.Module, ABC):
    """Base class of latents c ~ q(c|x) with a prior p(c).

    A subclass gives :meth:`posterior` and :meth:`sample`. It sets ``seen`` if networks see it. If it says something of
    the values of x, it sets ``says_values`` and gives :meth:`log_conditional_of`. If it is fitted before training, it
    gives :meth:`fit`.

    Args:
        spec: K and shape.

    Attributes:
        name: In logs, ``kl_{name}``; different for every latent of a model.
        seen: What networks see of it, or None for nothing.
        num_uniforms: Uniform numbers that a draw takes.
        says_values: Whether it gives log p(x_i|c), from which the logits of masked coordinates start.
        weight: Of the KL in the loss of training; where draws have a score, of all that the bound teaches the latent.
        weight_alone: Of the bound of the latent alone in the loss of training.
        has_score: Whether draws of c have no gradient, so that q(c|x) learns by its score.
        announcement: What is said before :meth:`fit`; the class stands for ``{name}``, and how many examples follows.
        num_examples: To how many training examples it is fitted, at most; 0 for no fit.
        is_fitted: Whether :meth:`fit` has been called, ``()`` of bool.
        allowed: Which values coordinates have, ``(*shape, K)`` of bool; None where all have K.
    """

    name: str = "latent"
    seen: Seen | None = None
    num_uniforms: int = 0
    says_values: bool = False
    weight: float = 1.0
    weight_alone: float = 0.0
    has_score: bool = False
    announcement: str = "Fitting the {name} to"
    is_fitted: Tensor
    allowed: Tensor | None

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.spec = spec
        self.register_buffer("is_fitted", torch.tensor(False))
        self.register_buffer("allowed", spec.allowed(spec.num_classes), persistent=False)

    @property
    def num_examples(self) -> int:
        return 0

    @property
    def says_nothing(self) -> bool:
        """Whether it is the same for all examples."""
        return False

    @abstractmethod
    def posterior(self, x: Tensor, batch: Any = None) -> LatentPosterior:
        """q(c|x) for data ``(B, *shape)``; observed latents may look at the batch that the loader gave."""

    @abstractmethod
    def sample(self, num_samples: int, generator: torch.Generator) -> Tensor:
        """Latents from the prior, ``(N, m)`` on the generator's device."""

    def posterior_given(self, x: Tensor, is_given: Tensor) -> LatentPosterior | None:
        """q(c|what is given) where the latent knows it; None where it does not.

        Args:
            x: Examples ``(B, *shape)``, any values where nothing is given.
            is_given: Which coordinates are, ``(B, *shape)`` of bool.
        """
        return None

    def sample_given(self, x: Tensor, is_given: Tensor, generator: torch.Generator) -> Tensor:
        """Latents of partial examples, ``(B, m)``: from :meth:`posterior_given`, or from the prior where it is None."""
        posterior = self.posterior_given(x, is_given)
        if posterior is None:
            return self.sample(len(x), generator)
        size = (len(x), self.num_uniforms)
        uniform = torch.rand(size, dtype=torch.float64, device=generator.device, generator=generator)
        return posterior.draw(uniform)

    def check(self, x: Tensor, batch: Any) -> None:
        """Raise FLDDError if a batch ``(B, *shape)`` cannot be right."""

    def log_conditional_of(self, c: Tensor) -> Tensor:
        """Log p(x_i|c), ``(B, *shape, K)``, for latents ``(B, m)``; 0 at PAD."""
        raise NotImplementedError(f"{type(self).__name__} says nothing of the values")

    def padding(self, c: Tensor) -> Tensor | None:
        """Where samples are PAD, ``(N, *shape)`` of bool, if the latent ``(N, m)`` says so; else None."""
        return None

    def fit(self, x: Tensor, seed: int = 0) -> dict[str, float]:
        """Fit the latent before training.

        Args:
            x: Examples ``(N, *shape)``; a tenth of them, 5,000 at most, are held out to choose among fits.
            seed: Of which these are, and of where the fits start.

        Returns:
            What there is to log. Of latents that say something of the values, in nats per held-out example: ``nll``,
            the bound of the latent alone, and ``nll_marginals``, that of a product of marginals.

        Raises:
            FLDDError: If there are fewer than two examples.
        """
        raise NotImplementedError(f"{type(self).__name__} is not fitted")

    def anneal(self, progress: float) -> None:
        """Set the weights, before each step of training. At the end they must be those of the bound, 1 and 0.

        Args:
            progress: Share of the run that is done, in [0, 1]; 0 for good where nobody knows how long it is.
        """

    def summary(self) -> str:
        """What was fitted, in words."""
        return self.configuration()

    def configuration(self) -> str:
        """What a checkpoint has to agree on."""
        return type(self).__name__


def weighed(values: Tensor, weight: float | Tensor) -> Tensor:
    """The same finite values, with their gradient times ``weight``."""
    if not isinstance(weight, Tensor) and weight == 1:
        return values
    return values.detach() + weight * (values - values.detach())


def hold_out(x: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Some examples of ``(N, *shape)`` to choose by and the others, in random order; raises if there are too few."""
    if len(x) < 2:
        raise FLDDError(
            f"{len(x)} training examples are too few to fit a latent to. Give more, or set model.latents to []."
        )
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed)).to(x.device)
    num_held = min(max(1, len(x) // 10), 5_000)
    return x[order[:num_held]], x[order[num_held:]]
