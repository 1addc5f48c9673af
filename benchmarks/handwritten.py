"""Forward processes written by hand for sources whose best summary is known: what learning could reach.

Each holds one summary of x at all interior steps, or turns it into x a part at a time. They show whether the
denoiser of the benchmark can read it, and so what is lost in learning the forward process. The last is not a
process, but a latent of the parts of a sequence that leaves a process nothing to do.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from sources import HiddenClusters, MarkovChain
from torch import Tensor
from torch.nn import functional as F

from fldd_lightning import AbsorbingProcess, ChainLatent, ForwardProcess, Spec
from fldd_lightning.categorical import one_hot
from fldd_lightning.latents.base import hold_out


class SummaryProcess(ForwardProcess):
    """u_t = onehot(summary(x, t)) at 0 < t < T; all MASK at T.

    Args:
        spec: K, shape and T.
        seed: That of the source.
    """

    def __init__(self, spec: Spec, seed: int = 0) -> None:
        super().__init__(spec, spec.num_classes + 1)
        self.base = AbsorbingProcess(spec)  # what an untrained denoiser starts from

    @abstractmethod
    def summary(self, x: Tensor) -> Tensor:
        """States ``(B, D)`` for data ``(B, D)``."""

    def decoded(self, t: int) -> int:
        """How many coordinates, from the left, hold the data itself at step t."""
        return 0

    def log_prior(self) -> Tensor:
        return self.base.log_prior()

    def posterior_logits(self, state: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return self.base.posterior_logits(state, t, s)

    def interior_log_marginals(self, x: Tensor, t: Tensor, condition: tuple[Tensor, ...] = ()) -> Tensor:
        summary = self.summary(x)
        position = torch.arange(x.shape[1], device=x.device)
        limits = torch.tensor([self.decoded(i) for i in range(self.spec.num_steps + 1)], device=x.device)
        is_data = position < limits[t].unsqueeze(-1)  # (B, M, D)
        states = torch.where(is_data, x.unsqueeze(1), summary.unsqueeze(1))
        return one_hot(states, self.num_states).log()


class WalkSummary(SummaryProcess):
    """The first position and the noise of every step, which are independent of each other.

    A walk that stays at an edge does not tell whether the noise was 0 or pushed outwards: the summary
    is drawn between the two.
    """

    def summary(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, :1], x.diff(dim=1) % self.spec.num_classes], 1)

    def interior_log_marginals(self, x: Tensor, t: Tensor, condition: tuple[Tensor, ...] = ()) -> Tensor:
        top = self.spec.num_classes - 1
        stays = F.pad(x[:, 1:] == x[:, :-1], (1, 0))  # (B, D)
        outwards = torch.where(x == top, 1, top)  # +1, or -1 modulo K
        other = torch.where(stays & ((x == 0) | (x == top)), outwards, self.summary(x))
        u = 0.5 * (one_hot(self.summary(x), self.num_states) + one_hot(other, self.num_states))
        return u.log().unsqueeze(1).expand(-1, t.shape[1], -1, -1)


class ClusterSummary(SummaryProcess):
    """The most likely hidden cluster, as two digits in the first two coordinates; MASK elsewhere."""

    def __init__(self, spec: Spec, seed: int = 0) -> None:
        super().__init__(spec)
        log_p = HiddenClusters(seed=seed, num_train=1, num_held=1).log_p.float()
        self.register_buffer("log_p", log_p.flatten(1), persistent=False)

    def summary(self, x: Tensor) -> Tensor:
        cluster = (one_hot(x, self.spec.num_classes).flatten(1) @ self.log_p.T).argmax(-1)
        states = torch.full_like(x, self.num_states - 1)
        states[:, 0] = cluster // self.spec.num_classes
        states[:, 1] = cluster % self.spec.num_classes
        return states


class RankSummary(SummaryProcess):
    """Rank of x_i among p(·|x_{i-1}, x_{i-2}); the first two as they are. Decoded from the left, a part a step."""

    def __init__(self, spec: Spec, seed: int = 0) -> None:
        super().__init__(spec)
        log_p = MarkovChain(seed=seed, num_train=1, num_held=1).log_p
        self.register_buffer("ranks", log_p.argsort(-1, descending=True).argsort(-1), persistent=False)

    def summary(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, :2], self.ranks[x[:, :-2], x[:, 1:-1], x[:, 2:]]], 1)

    def decoded(self, t: int) -> int:
        num_steps = self.spec.num_steps
        return 2 + round((self.spec.num_dims - 2) * (num_steps - 1 - t) / (num_steps - 1))


class PairLatent(ChainLatent):
    """Every two neighbours as they are, c_j = (x_{2j-1}, x_{2j}), with transitions counted over the whole sequence.

    It is exact for chains of second order, and no more than that chain: given c nothing of x is left to draw.

    Args:
        spec: K and an even length; K^2 values are used.
    """

    num_examples = 10**6  # counting is cheap

    def __init__(self, spec: Spec) -> None:
        super().__init__(spec, part=2, size=spec.num_classes**2, smoothing=100.0)

    @torch.no_grad()
    def fit(self, x: Tensor, seed: int = 0) -> dict[str, float]:
        k = self.spec.num_classes
        held, kept = hold_out(x, seed)
        pairs = k * kept[:, ::2] + kept[:, 1::2]  # (N, m)
        first = pairs[:, 0].bincount(minlength=self.size) + 1.0
        steps = (self.size * pairs[:, :-1] + pairs[:, 1:]).flatten()
        following = steps.bincount(minlength=self.size**2).view(self.size, self.size)
        common = following.sum(0) + 1.0
        following = following + self.smoothing * common / common.sum()
        values = torch.arange(self.size, device=x.device)
        digits = torch.stack([values // k, values % k], 1)  # (C, 2)
        chain = self._normalised(
            first,
            following.expand(self.num_parts - 1, -1, -1),
            one_hot(digits, k).permute(1, 2, 0).repeat(self.num_parts, 1, 1),
        )
        self._keep(chain)
        marginals = self._maximise(kept, 1, False, seed)
        nll = {name: self._held_out_nll(held, each) for name, each in (("nll", chain), ("nll_marginals", marginals))}
        return {"values": self.size, **nll}
