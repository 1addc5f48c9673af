"""What latents share whose tables are trained with the rest, by gradients on the bound."""

from __future__ import annotations

from math import inf

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ranges import AT_LEAST_TWO, check_numbers
from ..spec import Spec
from .base import Latent
from .tabular import check_table

__all__ = ["TrainedTables"]

_NOISE = 0.1  # standard deviation of log-probabilities at the start, so that no two values are the same
_EXAMPLES = 4_096  # that are looked at before training
_ALONE = (0.3, 0.6)  # shares of a run between which the bound takes over from that of the latent alone


class TrainedTables(Latent):
    """Base class: numbers with tables that training moves from the first step. A subclass makes the ``table``.

    At first the tables learn by the bound of the latent alone, with its exact gradient: the denoiser reads nothing yet,
    and the score is noisy. Between 30 and 60 % of the run the bound itself takes over. (A run without an end stays with
    the first.)

    Args:
        spec: K and shape.
        size: C, the values that each number may take.

    Attributes:
        scale: Of the tables, which Adam thereby moves so many times as fast as a weight.
        num_values: How many values a coordinate may have, PAD not counted.
        table: Logits of p(x_i|c), divided by ``scale``, ``(..., values, C)``; PAD has none.

    Raises:
        FLDDError: If the size is below 2, or the table would be larger than 256 MiB.
    """

    says_values = True
    has_score = True
    announcement = "Starting the {name} from"
    scale: float
    table: nn.Parameter

    def __init__(self, spec: Spec, size: int) -> None:
        check_numbers(locals(), size=AT_LEAST_TWO)
        super().__init__(spec)
        check_table(spec, size)
        self.size, self.num_values = size, spec.num_classes - int(spec.padded)

    @property
    def num_examples(self) -> int:
        return max(_EXAMPLES, self.size)

    def anneal(self, progress: float) -> None:
        first, last = _ALONE
        self.weight_alone = min(1.0, max(0.0, (last - progress) / (last - first)))
        self.weight = 1 - self.weight_alone

    def log_values(self, logits: Tensor, dim: int = -1) -> Tensor:
        """Log p(x_i|c) of logits: ``-inf`` at values that a coordinate does not have, 0 at PAD.

        Args:
            logits: Of all values but PAD, along ``dim``.
            dim: The last dimension, -1, or the one before, -2; ``*shape`` stands just before it.

        Returns:
            The same with K values along ``dim``.
        """
        if self.allowed is not None:
            allowed = self.allowed if dim == -1 else self.allowed.unsqueeze(-1)
            logits = logits.masked_fill(~allowed, -inf)
        log_p = logits.log_softmax(dim)
        return F.pad(log_p, (0, 1) if dim == -1 else (0, 0, 0, 1)) if self.spec.padded else log_p

    def random_table(self, *places: int) -> nn.Parameter:
        """A table ``(*places, values, C)`` before the start."""
        return nn.Parameter(_NOISE / self.scale * torch.randn(*places, self.num_values, self.size))

    def start(self, log_p: Tensor, generator: torch.Generator) -> None:
        """Give the table log-probabilities ``(..., K, C)``, with noise."""
        log_p = log_p[..., : self.num_values, :]
        noise = _NOISE * torch.randn(log_p.shape, generator=generator).to(log_p)
        self.table.data.copy_((log_p + noise) / self.scale)
        self.is_fitted.fill_(True)
