"""States of which only a few can occur at each coordinate, so that no number per state is stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

__all__ = ["SparseStates", "State"]


@dataclass(frozen=True)
class SparseStates:
    """Weights over all S states that are zero but for m named ones.

    With large vocabularies a one-hot tensor is as large as the logits; this one is not.

    Attributes:
        index: The named states, integers ``(B, *shape, m)``.
        weight: Their weights ``(B, *shape, m)``, summing to 1.
        num_states: S.
    """

    index: Tensor
    weight: Tensor
    num_states: int

    @classmethod
    def hard(cls, states: Tensor, num_states: int) -> SparseStates:
        """Integer states ``(B, *shape)``; m is 1."""
        index = states.long().unsqueeze(-1)
        return cls(index, torch.ones(index.shape, device=index.device), num_states)

    def dense(self) -> Tensor:
        """The weights of all states, ``(B, *shape, S)``."""
        zeros = self.weight.new_zeros(*self.weight.shape[:-1], self.num_states)
        return zeros.scatter_add(-1, self.index, self.weight)


# What networks take: weights over all states (B, *shape, S), or SparseStates.
State: TypeAlias = "Tensor | SparseStates"
