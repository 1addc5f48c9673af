"""The maximum coupling of two categorical marginals, in log space.

Given the forward marginals u_t = q(z_t|x) and u_s = q(z_s|x) of one coordinate, the maximum
coupling keeps z_s = z_t as often as the marginals allow (FLDD eq. 10, 11):

    stay_k = min(u_s^k, u_t^k) / u_t^k                 probability of z_s = k given z_t = k
    m^j    = max(0, u_s^j - u_t^j) / M                 where the rest goes
    M      = sum_j max(0, u_s^j - u_t^j)               total mass that moves
    q(z_s = j | z_t = k, x) = stay_k [j = k] + (1 - stay_k) m^j

It is consistent, ``sum_k u_t^k q(j|k) = u_s^j``, and costs O(S) per coordinate: no S x S matrix
is ever formed. Everything is computed from logarithms in float32 or better; u = 0 is ``-inf``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .categorical import float32_or_better, xlogy

__all__ = ["MaximumCoupling"]


@dataclass(frozen=True)
class MaximumCoupling:
    """The maximum coupling of u_s and u_t for a batch of coordinates.

    Build it with :meth:`of`. All tensors have shape ``(*batch, S)``.

    Attributes:
        log_stay: log stay_k, at most 0.
        move: m^j, a distribution over j; u_s itself where nothing moves but by rounding (u_s = u_t).
    """

    log_stay: Tensor
    move: Tensor

    @classmethod
    def of(cls, log_u_s: Tensor, log_u_t: Tensor) -> MaximumCoupling:
        """Couple two marginals.

        Args:
            log_u_s: log q(z_s|x), ``(*batch, S)``, normalised; ``-inf`` for zero.
            log_u_t: log q(z_t|x), the same shape.

        Returns:
            The coupling. Half-precision inputs are computed in float32.
        """
        log_u_s, log_u_t = float32_or_better(log_u_s), float32_or_better(log_u_t)
        shrinks = log_u_t > log_u_s  # states that lose mass from t to s; False where both are 0
        grows = log_u_s > log_u_t

        # stay = exp(-max(0, log u_t - log u_s)). Both branches see finite inputs only (double where).
        log_ratio = torch.where(shrinks, log_u_s, 0.0) - torch.where(shrinks, log_u_t, 0.0)
        log_stay = torch.where(shrinks, log_ratio, 0.0)

        # u_s - u_t = u_s (1 - exp(log u_t - log u_s)), accurate where the two are close.
        safe_s = torch.where(grows, log_u_s, 0.0)
        safe_t = torch.where(grows, log_u_t, -1.0)
        excess = torch.where(grows, -safe_s.exp() * torch.expm1(safe_t - safe_s), 0.0)

        mass = excess.sum(-1, keepdim=True)
        moves = mass > torch.finfo(mass.dtype).tiny
        # No state grows by more than rounding. Where u_s = u_t all states stay and move is of no account; but a
        # rare state may still lose all it has while the others seem to gain nothing, and must go to where z_s can be.
        return cls(log_stay, torch.where(moves, excess / torch.where(moves, mass, 1.0), log_u_s.exp()))

    def posterior(self, z_t: Tensor) -> Tensor:
        """q(z_s|z_t, x) for integer states (eq. 10).

        Args:
            z_t: Integer states ``(*batch)``.

        Returns:
            Probabilities ``(*batch, S)``, summing to 1.
        """
        index = z_t.long().unsqueeze(-1)  # (*batch, 1)
        log_stay = self.log_stay.gather(-1, index)
        rest = -torch.expm1(log_stay)  # (*batch, 1)
        return (rest * self.move).scatter_add(-1, index, log_stay.exp())

    def relaxed_posterior(self, w: Tensor) -> Tensor:
        """The posterior averaged over relaxed states; linear in ``w`` (eq. 14).

        q̄(j) = w_j stay_j + (sum_k w_k (1 - stay_k)) m^j. Equals :meth:`posterior` at one-hot ``w``.

        Args:
            w: Non-negative weights over states ``(*batch, S)``, summing to 1.

        Returns:
            Probabilities ``(*batch, S)``, summing to 1.
        """
        w = w.to(self.move.dtype)
        rest = (w * -torch.expm1(self.log_stay)).sum(-1, keepdim=True)  # (*batch, 1)
        return w * self.log_stay.exp() + rest * self.move

    def entropy(self) -> Tensor:
        """Entropy of q(z_s|z_t = k, x) for every state k, in closed form.

        A state k that does not keep all its mass receives none (m^k = 0). So the entropy given
        z_t = k is h(stay_k) + (1 - stay_k) H(m). Here h is the binary entropy.

        Returns:
            Nats, ``(*batch, S)``.
        """
        stay = self.log_stay.exp()
        leave = -torch.expm1(self.log_stay)
        binary = -xlogy(stay, self.log_stay) - xlogy(leave, _safe_log(leave))
        move_entropy = -xlogy(self.move, _safe_log(self.move)).sum(-1, keepdim=True)  # (*batch, 1)
        return binary + leave * move_entropy


def _safe_log(p: Tensor) -> Tensor:
    """Log p with 0 (and a zero gradient) where p = 0."""
    live = p > 0
    return torch.where(live, torch.where(live, p, 1.0).log(), 0.0)
