"""A latent of the whole example: a mixture of products, trained with the rest by gradients on the bound."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..spec import Seen, Spec
from .base import weighed
from .mixture import MixturePosterior
from .tables import marginals_of
from .tabular import started_from
from .trained import TrainedTables

__all__ = ["TrainedMixtureLatent"]


class TrainedMixtureLatent(TrainedTables):
    """One number c of the example, with tables p(c) and p(x_i|c) that training moves from the first step.

    q(c|x) is the posterior of the tables, so there is no encoder that could collapse. Three gradients move them. The
    KL of q(c|x) is exact. log p(x_i|c) reaches the denoiser's logits, under processes that only mask. The KL of a step
    weighs the score of the draw of c (Williams, 1992), less its running mean. Together they are the gradient of the
    bound. The auxiliary loss of :class:`~fldd_lightning.FLDD` moves the tables, too, until the end of the run.

    At first the tables learn by the bound of the latent alone, -log sum_c p(c) p(x|c); see :class:`TrainedTables`.

    Nothing is fitted. Each value starts as a blend of one training example and the marginals.

    Args:
        spec: K and shape.
        size: C, the values that c may take.

    Attributes:
        prior: Logits of p(c), divided by 10, ``(C,)``.
        table: Logits of p(x_i|c), divided by 10, ``(*shape, values, C)``; PAD has none.

    Raises:
        FLDDError: If the size is below 2, or the table would be larger than 256 MiB.
    """

    name = "mixture"
    num_uniforms = 1
    scale = 10.0

    def __init__(self, spec: Spec, size: int = 256) -> None:
        super().__init__(spec, size)
        self.seen = Seen(self.name, num_values=size)
        self.prior = nn.Parameter(torch.zeros(size))
        self.table = self.random_table(*spec.shape)

    def log_prior(self) -> Tensor:
        """Log p(c), ``(C,)``."""
        return (self.scale * self.prior).log_softmax(0)

    def log_conditional(self) -> Tensor:
        """Log p(x_i|c), ``(*shape, K, C)``; 0 at PAD, ``-inf`` at values that a coordinate does not have."""
        return self.log_values(self.scale * self.table, -2)

    def posterior(self, x: Tensor, batch: Any = None) -> MixturePosterior:
        return MixturePosterior(x, self.log_prior(), self.log_conditional())

    def posterior_given(self, x: Tensor, is_given: Tensor) -> MixturePosterior:
        return MixturePosterior(x, self.log_prior(), self.log_conditional(), is_given)

    def log_conditional_of(self, c: Tensor) -> Tensor:
        logits = self.scale * self.table.index_select(-1, c[:, 0]).movedim(-1, 0)  # of these values alone
        return self.log_values(weighed(logits, self.weight))

    def sample(self, num_samples: int, generator: torch.Generator) -> Tensor:
        p = self.log_prior().detach().exp().to(generator.device)
        return torch.multinomial(p, num_samples, True, generator=generator).unsqueeze(1)

    @torch.no_grad()
    def fit(self, x: Tensor, seed: int = 0) -> dict[str, float]:
        """Start each value from an example; returns nothing to log."""
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(len(x), generator=generator).repeat(-(-self.size // len(x)))[: self.size]
        self.start(started_from(x[chosen.to(x.device)], marginals_of(x, self.spec), self.spec), generator)
        return {}

    def summary(self) -> str:
        entropy = -(self.log_prior() * self.log_prior().exp()).sum()
        return f"c is as varied as {float(entropy.detach().exp()):.0f} equally likely values, of {self.size}"

    def configuration(self) -> str:
        return f"{type(self).__name__}(size={self.size})"
