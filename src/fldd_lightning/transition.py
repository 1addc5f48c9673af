"""One step of the forward process for a batch, and what it adds to the bound."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from .categorical import gumbel_noise, one_hot, sample_categorical, sample_from_uniform, sum_dims, xlogy
from .states import SparseStates

if TYPE_CHECKING:
    from .reverse import ReverseProcess

__all__ = ["Posterior", "SparseTransition", "StepTerms", "Transition"]


class Posterior(Protocol):
    """q(z_s|z_t, x), factorised over coordinates: what the reverse process has to match."""

    def posterior(self, z_t: Tensor) -> Tensor:
        """Probabilities ``(B, *shape, S)`` of z_s for integer states ``(B, *shape)``."""

    def relaxed_posterior(self, w: Tensor) -> Tensor:
        """The same for weights over states ``(B, *shape, S)``; linear in ``w``."""

    def entropy(self) -> Tensor:
        """Its entropy per coordinate in nats for every state z_t could be in, ``(B, *shape, S)``."""


@dataclass(frozen=True)
class StepTerms:
    """What n draws of z_t give for a step.

    Attributes:
        kl: KL(q(z_s|z_t, x) || p(z_s|z_t)) in nats per example, ``(n, B)``.
        auxiliary: -log p(x^i|z_t, revealed) summed over masked coordinates, each times what its probability of being
            revealed now lacks of 1/t, masked diffusion's; nats per example, ``(n, B)``, with gradients to the
            denoiser alone. 0 for masked diffusion; None but for a :class:`SparseTransition`.
    """

    kl: Tensor
    auxiliary: Tensor | None = None


@dataclass(frozen=True)
class Transition:
    """One step s = t-1 of the forward process for a batch.

    Estimators see z_t as integers and as *weights*, ``(B, *shape, m)``: here over all states, m = S. The
    KL is linear in each coordinate's own weights but for the network's dependence on them.

    Attributes:
        x: Data ``(B, *shape)``.
        t: Step per example, ``(B,)``, in 1..T.
        log_u_s: log q(z_s|x), ``(B, *shape, m)``.
        log_u_t: log q(z_t|x), ``(B, *shape, m)``.
        posterior: q(z_s|z_t, x).
        condition: Labels ``(B,)``, codes ``(B, m)`` or None.
    """

    x: Tensor
    t: Tensor
    log_u_s: Tensor
    log_u_t: Tensor
    posterior: Posterior
    condition: Tensor | None = None

    @property
    def learns(self) -> bool:
        """Whether gradients to the forward process are wanted."""
        return self.log_u_t.requires_grad

    def draw(self, generator: torch.Generator) -> Tensor:
        """States z_t ~ q(z_t|x), integers ``(B, *shape)``."""
        return self._states(sample_categorical(self.log_u_t, generator))

    def draw_from_uniform(self, uniform: Tensor) -> Tensor:
        """The same from float64 numbers in [0, 1), ``(B, *shape)``; see :func:`sample_from_uniform`."""
        return self._states(sample_from_uniform(self.log_u_t, uniform))

    def draw_relaxed(self, generator: torch.Generator, temperature: float) -> Tensor:
        """Weights softmax((log u_t + Gumbel) / temperature), with gradients (eq. 14)."""
        gumbel = gumbel_noise(self.log_u_t.shape, generator).to(self.log_u_t)
        return ((self.log_u_t + gumbel) / temperature).softmax(-1)

    def weights(self, z_t: Tensor) -> Tensor:
        """The weights of drawn states."""
        return one_hot(self._places(z_t), self.log_u_t.shape[-1])

    def mean_weights(self) -> Tensor:
        """E_{z_t} of the weights, with gradients: u_t."""
        return self.log_u_t.exp()

    def log_prob(self, z_t: Tensor) -> Tensor:
        """Log q(z_t|x) of drawn states, ``(B,)`` (eq. 9)."""
        return sum_dims(self.log_u_t.gather(-1, self._places(z_t).unsqueeze(-1)).squeeze(-1))

    def kl(self, reverse: ReverseProcess, w: Tensor) -> Tensor:
        """KL(q(z_s|z_t, x) || p(z_s|z_t)) at draws of z_t; their mean is the step's term of the bound (eq. 5).

        Under a mask-only process only masked coordinates count: the others carry over at no cost. So
        does PAD. At relaxed weights it is the cross-entropy of the relaxed posterior minus the entropy
        in the mean over weights, which is no KL.

        Args:
            reverse: The reverse process; its network runs once, on all n B states.
            w: n draws of z_t as weights, ``(n, B, *shape, m)``.

        Returns:
            Nats per example, ``(n, B)``.
        """
        return self.terms(reverse, w).kl

    def terms(self, reverse: ReverseProcess, w: Tensor) -> StepTerms:
        """:meth:`kl`, and what else may be had of the same pass of the network.

        Args:
            reverse: The reverse process; its network runs once, on all n B states.
            w: n draws of z_t as weights, ``(n, B, *shape, m)``.
        """
        t, condition = self._repeated(len(w))
        log_v = reverse.network_log_prob(w.flatten(0, 1), t, condition).view(w.shape)
        return StepTerms(self._kl(reverse, w, self._without_pad(reverse, log_v)))

    def _kl(self, reverse: ReverseProcess, w: Tensor, log_v: Tensor) -> Tensor:
        """:meth:`kl` where the network's log v is known at every place, ``(n, B, *shape, m)``."""
        entropy = self.posterior.entropy()  # (B, *shape, m)
        if reverse.mask_only:
            mask = torch.full_like(self.x, w.shape[-1] - 1)  # the last place is MASK
            cross_entropy = -xlogy(self.posterior.posterior(mask), log_v).sum(-1)  # (n, B, *shape)
            value = w[..., -1] * (cross_entropy - entropy[..., -1])
        else:
            value = -xlogy(self.posterior.relaxed_posterior(w), log_v).sum(-1) - (w * entropy).sum(-1)
        return value.flatten(2).sum(2)

    def _without_pad(self, reverse: ReverseProcess, logs: Tensor) -> Tensor:
        """What the network says, ``(n, B, *shape, ...)``, with 0 at PAD: finite there, so that gradients are too."""
        return logs if reverse.pad is None else logs.masked_fill((self.x == reverse.pad).unsqueeze(-1), 0.0)

    def _repeated(self, n: int) -> tuple[Tensor, Tensor | None]:
        """Steps and labels of n B states."""
        labels = self.condition
        return self.t.repeat(n), None if labels is None else labels.repeat(n, *[1] * (labels.dim() - 1))

    def _states(self, places: Tensor) -> Tensor:
        """States at places 0..m-1."""
        return places

    def _places(self, states: Tensor) -> Tensor:
        """Places 0..m-1 of states."""
        return states


@dataclass(frozen=True)
class SparseTransition(Transition):
    """The same where q(z_t|x) and q(z_s|x) have only m of the S states, such as x and MASK.

    Marginals, coupling and weights are over these, so that no tensor with a number per state exists
    beside the denoiser's logits.

    Attributes:
        support: The m states, ``(B, *shape, m)``, different ones; x first, MASK last.
        num_states: S.
    """

    support: Tensor = field(kw_only=True)
    num_states: int = field(kw_only=True)

    def _states(self, places: Tensor) -> Tensor:
        return self.support.gather(-1, places.unsqueeze(-1)).squeeze(-1)

    def _places(self, states: Tensor) -> Tensor:
        return (self.support == states.unsqueeze(-1)).int().argmax(-1)

    def terms(self, reverse: ReverseProcess, w: Tensor) -> StepTerms:
        t, condition = self._repeated(len(w))
        support = self.support.expand(w.shape).flatten(0, 1)
        state = SparseStates(support, w.flatten(0, 1), self.num_states)
        log_data, log_odds = reverse.masked_log_prob_at(support[..., :-1], state, t, condition)
        log_data = self._without_pad(reverse, log_data.view(*w.shape[:-1], -1))  # (n, B, *shape, m - 1)
        log_odds = self._without_pad(reverse, log_odds.view(*w.shape[:-1], 1))
        log_v = torch.cat([log_data + logsigmoid(-log_odds), logsigmoid(log_odds)], -1)
        stay = self.posterior.posterior(torch.full_like(self.x, w.shape[-1] - 1))[..., -1].detach()  # (B, *shape)
        usual = (1 / self.t).reshape(-1, *[1] * (stay.dim() - 1))
        weight = w[..., -1].detach() * (usual - (1 - stay)).clamp_min(0)
        return StepTerms(self._kl(reverse, w, log_v), -(weight * log_data[..., 0]).flatten(2).sum(2))
