"""What both networks see beside the state: labels that come with the data, or codes that are fitted to it."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from .code import MixtureCode
from .hooks import ModalityHooks
from .loaders import apart_from_training

__all__ = ["CodedModule"]

_EXAMPLES, _COORDINATES = 50_000, 2**25  # that a code is fitted to, at most


class CodedModule(ModalityHooks, LightningModule):
    """The part of :class:`~fldd_lightning.FLDD` that fits a code and draws it.

    Attributes:
        code: What the forward process leaves of an example at T, or None.
    """

    code: MixtureCode | None

    def on_train_start(self) -> None:
        """Fit the code to training examples, in one process for all of them. A run that is resumed keeps its code."""
        if self.code is None or bool(self.code.is_fitted):
            return
        if self.trainer.is_global_zero:
            fit = self.code.fit(self._training_examples(), seed=torch.initial_seed() % 2**31)
            rank_zero_info(
                f"{fit['codes']:.0f} codes of at most {self.code.size}: {fit['nll']:.2f} nats an example by the code "
                f"alone, {fit['nll_marginals']:.2f} by a product of marginals."
            )
        for buffer in self.code.buffers():
            buffer.copy_(self.trainer.strategy.broadcast(buffer))

    def drawn_condition(self, batch: Any, uniform: Tensor) -> Tensor | None:
        """Labels, or codes drawn from float64 numbers in [0, 1), ``(B,)``; None where there is neither."""
        return self.condition(batch) if self.code is None else self.code.draw(self.data(batch).long(), uniform)

    def likely_condition(self, batch: Any) -> Tensor | None:
        """The same with the most likely codes, for pictures and monitors."""
        return (
            self.condition(batch) if self.code is None else self.code.log_posterior(self.data(batch).long()).argmax(-1)
        )

    def prior_condition(self, num_samples: int, generator: torch.Generator) -> Tensor | None:
        """Labels or codes ``(N,)`` for samples; None where there is neither."""
        if self.code is None:
            return self.sample_condition(num_samples, generator)
        return self.code.sample(num_samples, generator).to(self.device)

    def further_terms(self, batch: Any) -> dict[str, Tensor]:
        """Terms of the bound beside the steps', ``(B,)`` each in nats: the modality's, and ``kl_code``."""
        terms = self.extra_terms(batch)
        return terms if self.code is None else {**terms, "kl_code": self.code.kl(self.data(batch).long())}

    def further_term_names(self) -> tuple[str, ...]:
        """The names of :meth:`further_terms`."""
        return self.extra_term_names() + (() if self.code is None else ("kl_code",))

    def _training_examples(self) -> Tensor:
        """Some of them, ``(N, *shape)``."""
        wanted = min(_EXAMPLES, _COORDINATES // self.problem.num_dims)
        parts: list[Tensor] = []
        for batch in apart_from_training(self.trainer.train_dataloader):
            parts.append(self.data(batch).long().to(self.device))
            if sum(map(len, parts)) >= wanted:
                break
        return torch.cat(parts)[:wanted]
