"""What both networks see beside the state: labels that come with the data, or codes that are fitted to it."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import Timer, WeightAveraging
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from .categorical import check_states
from .codes import Code, CodePosterior
from .hooks import ModalityHooks
from .loaders import apart_from_training

__all__ = ["CodedModule"]


class CodedModule(ModalityHooks, LightningModule):
    """The part of :class:`~fldd_lightning.FLDD` that fits a code and draws it.

    Attributes:
        code: What the forward process leaves of an example at T, or None.
    """

    code: Code | None

    def on_train_start(self) -> None:
        """Fit the code to training examples before the clock of ``max_time`` starts. A resumed run keeps its code."""
        if self.code is None:
            return
        callbacks: list[Any] = self.trainer.callbacks  # type: ignore[attr-defined]
        averages = [each._average_model for each in callbacks if isinstance(each, WeightAveraging)]
        codes: list[Any] = [self.code, *(average.module.code for average in averages if average is not None)]
        if bool(self.trainer.strategy.broadcast(bool(self.code.is_fitted))):
            rank_zero_info(f"Keeping the code as it is: {self.code.summary()}.")
        else:
            self._fit(self.code)
            for code in codes[1:]:  # averages were made before
                code.load_state_dict(self.code.state_dict())
            for timer in callbacks:
                if isinstance(timer, Timer):
                    timer.on_train_start(self.trainer, self)
        for code in codes:
            on_cpu = {name: value.cpu() for name, value in code.state_dict().items()}
            code.load_state_dict(self.trainer.strategy.broadcast(on_cpu))  # the first process's

    def _fit(self, code: Code) -> None:
        examples = self._training_examples(code)
        rank_zero_info(f"Fitting a code to {len(examples)} training examples ...")
        fit = code.fit(examples, seed=torch.initial_seed() % 2**31)
        if code.says_nothing:
            rank_zero_info(
                "The code says nothing: nothing was found that helps held-out examples. There may be nothing, or too "
                "few training examples; or, of an AutoencoderCode, fit_steps may be too small or kl_weight too large."
            )
        else:
            rank_zero_info(
                f"{code.summary()}. On held-out training examples: {fit['nll']:.2f} "
                f"nats by the code alone, {fit['nll_marginals']:.2f} by a product of marginals."
            )
        for logger in self.loggers:
            logger.log_metrics({f"code/{name}": value for name, value in fit.items()}, step=self.global_step)

    def code_posterior(self, x: Tensor) -> CodePosterior | None:
        """q(c|x) for integers ``(B, *shape)``, or None where there is no code."""
        return None if self.code is None else self.code.posterior(x)

    def likely_condition(self, batch: Any) -> Tensor | None:
        """The most likely codes ``(B, m)``, for pictures and monitors; labels ``(B,)`` or None without a code."""
        return self.condition(batch) if self.code is None else self.code.posterior(self._checked(batch)).likely()

    def prior_condition(self, num_samples: int, generator: torch.Generator) -> Tensor | None:
        """Labels ``(N,)`` or codes ``(N, m)`` for samples; None where there is neither."""
        if self.code is None:
            return self.sample_condition(num_samples, generator)
        return self.code.sample(num_samples, generator).to(self.device)

    def further_terms(self, batch: Any, posterior: CodePosterior | None, code: Tensor | None) -> dict[str, Tensor]:
        """Terms of the bound beside the steps'.

        Args:
            batch: What the data loader gives.
            posterior: Its :meth:`code_posterior`.
            code: A draw from it, ``(B, m)``.

        Returns:
            Nats per example, ``(B,)`` each, by name: the modality's, and ``kl_code`` where there is a code.
        """
        terms = self.extra_terms(batch)
        return terms if posterior is None or code is None else {**terms, "kl_code": posterior.kl(code)}

    def further_term_names(self) -> tuple[str, ...]:
        """The names of :meth:`further_terms`."""
        return self.extra_term_names() + (() if self.code is None else ("kl_code",))

    def _checked(self, batch: Any) -> Tensor:
        """The integers of a batch, ``(B, *shape)``."""
        x = self.data(batch)
        check_states(x, self.problem.num_classes, self.problem.shape)
        return x.long()

    def _training_examples(self, code: Code) -> Tensor:
        """As many as the code wants, ``(N, *shape)``."""
        parts: list[Tensor] = []
        for batch in apart_from_training(self.trainer.train_dataloader):
            parts.append(self._checked(batch).to(self.device))
            if sum(map(len, parts)) >= code.num_examples:
                break
        return torch.cat(parts)[: code.num_examples]
