"""Latents of the parts of a sequence, a hidden Markov model, trained with the rest by gradients on the bound."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..ranges import COUNT, check_numbers
from ..spec import Seen, Spec
from .base import weighed
from .hidden_markov import Chain, ChainPosterior, parts_of
from .tables import marginals_of
from .tabular import started_from
from .trained import TrainedTables

__all__ = ["TrainedChainLatent"]


class TrainedChainLatent(TrainedTables):
    """One number c_j of every part of a sequence, p(c_1) prod_j p(c_{j+1}|c_j), with tables that training moves.

    It is :class:`~fldd_lightning.latents.ChainLatent` without a fit, as
    :class:`~fldd_lightning.latents.TrainedMixtureLatent` is ``MixtureLatent`` without one: q(c|x) is the exact
    posterior of the tables (Baum et al., 1970), its KL is exact, and the KL of a step weighs the score of the draw. At
    first the tables learn by the bound of the latent alone, as there.

    All parts share their tables, which suits series and texts that are cut anywhere. Each value starts as a blend of a
    part of one training example and the marginals. A step of training takes some m C^2 operations an example more.

    Args:
        spec: K and a shape of ``(length,)``.
        part: Coordinates of a part, at most.
        size: C, the values that each c_j may take.

    Attributes:
        first: Logits of p(c_1), divided by 30, ``(C,)``.
        following: Logits of p(c_{j+1}|c_j), divided by 30, ``(C, C)``.
        table: Logits of p(x_i|c_j) by the place of i in its part, divided by 30, ``(part, values, C)``; PAD has none.

    Raises:
        FLDDError: If the shape is not that of a sequence, ``part`` is not positive, the size is below 2, or the table
            would be larger than 256 MiB.
    """

    name = "chain"
    scale = 30.0
    part_of: Tensor
    place: Tensor

    def __init__(self, spec: Spec, part: int = 2, size: int = 128) -> None:
        check_numbers(locals(), part=COUNT)
        super().__init__(spec, size)
        self._lengths = parts_of(spec, part)
        num_parts, longest = len(self._lengths), max(self._lengths)
        self.seen, self.num_uniforms = Seen(self.name, num_values=size, num_parts=num_parts), num_parts
        self.first = nn.Parameter(torch.zeros(size))
        self.following = nn.Parameter(torch.zeros(min(1, num_parts - 1), size, size))  # none if there is one part
        self.table = self.random_table(longest)
        self.register_buffer("part_of", torch.tensor(spec.part_of(num_parts)), persistent=False)  # (D,)
        self.register_buffer("place", torch.cat([torch.arange(n) for n in self._lengths]), persistent=False)  # (D,)

    def chain(self) -> Chain:
        """The tables as log-probabilities; 0 at PAD."""
        following = (self.scale * self.following).log_softmax(-1).expand(len(self._lengths) - 1, -1, -1)
        return Chain((self.scale * self.first).log_softmax(0), following, self.log_values(self._logits(), -2))

    def posterior(self, x: Tensor, batch: Any = None) -> ChainPosterior:
        return ChainPosterior(x, self.chain(), self._lengths)

    def posterior_given(self, x: Tensor, is_given: Tensor) -> ChainPosterior:
        return ChainPosterior(x, self.chain(), self._lengths, is_given)

    def log_conditional_of(self, c: Tensor) -> Tensor:
        table = self._logits().transpose(1, 2)  # (D, C, values)
        logits = table[torch.arange(len(table), device=c.device), c[:, self.part_of]]  # (B, D, values)
        return self.log_values(weighed(logits, self.weight))

    @torch.no_grad()
    def sample(self, num_samples: int, generator: torch.Generator) -> Tensor:
        return self.chain().sample(num_samples, generator)

    @torch.no_grad()
    def fit(self, x: Tensor, seed: int = 0) -> dict[str, float]:
        """Start each value from a part of an example; returns nothing to log."""
        generator = torch.Generator().manual_seed(seed)
        longest = max(self._lengths)
        starts = (self.place == 0).nonzero().flatten()[torch.tensor(self._lengths, device=x.device) == longest]
        chosen = torch.randint(len(x), (self.size,), generator=generator).to(x.device)
        start = starts[torch.randint(len(starts), (self.size,), generator=generator).to(x.device)]
        parts = x[chosen[:, None], start[:, None] + torch.arange(longest, device=x.device)]  # (C, part)
        marginals = marginals_of(x, self.spec)  # (D, K, 1)
        common = torch.stack([marginals[self.place == i].mean(0) for i in range(longest)])
        self.start(started_from(parts, common, self.spec), generator)
        return {}

    def summary(self) -> str:
        return f"a chain of {len(self._lengths)} numbers with {self.size} values each"

    def configuration(self) -> str:
        return f"{type(self).__name__}(size={self.size}, parts={len(self._lengths)})"

    def _logits(self) -> Tensor:
        """Of p(x_i|c), ``(D, values, C)``."""
        return (self.scale * self.table)[self.place]
