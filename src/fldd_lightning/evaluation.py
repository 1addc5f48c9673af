"""Validation, testing and prediction: all T terms of the bound, the same whatever batch an example stands in."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics import MeanMetric, Metric

from .categorical import float64_device
from .coded import CodedModule
from .forward import ForwardProcess
from .metrics import NELBOMetric
from .objective import step_kl
from .reverse import ReverseProcess

__all__ = ["Bound", "EvaluatedModule"]


class Bound(NamedTuple):
    """The terms of the bound of B examples, in nats per example.

    Attributes:
        kl: KL of every step, ``(B, T)``.
        further: The other terms by name, ``(B,)`` each.
        nll_code: The bound of the code alone, ``(B,)``; None without a code.
    """

    kl: Tensor
    further: dict[str, Tensor]
    nll_code: Tensor | None

    @property
    def nelbo(self) -> Tensor:
        """The bound, ``(B,)``."""
        return self.kl.sum(1) + sum(self.further.values(), torch.zeros_like(self.kl[:, 0]))


class EvaluatedModule(CodedModule):
    """The part of :class:`~fldd_lightning.FLDD` that evaluates.

    Attributes:
        forward_process: The learned or fixed noising process.
        reverse: The reverse process, around the denoiser.
        bounds: The bound's metric, by stage.
        extra_metrics: What :meth:`make_metrics` makes, by stage.
    """

    forward_process: ForwardProcess
    reverse: ReverseProcess

    def __init__(self) -> None:
        super().__init__()
        # plain dictionaries: a metric's networks are no part of the model, its average or its checkpoints
        self.bounds: dict[str, NELBOMetric] = {}
        self.extra_metrics: dict[str, dict[str, Metric]] = {}
        self._num_seen = 0

    @torch.no_grad()
    def nelbo_terms(self, batch: Any, noise: Tensor) -> Bound:
        """Unbiased terms of the bound, one draw of z_t a step (eq. 5).

        Args:
            batch: What the data loader gives.
            noise: Float64 numbers in [0, 1), ``(B, T, D + m)``: of every step, D for z_t, m for
                the code, or one where there is none.

        Returns:
            The terms, with shapes ``(B, T)`` and ``(B,)``, in nats per example.
        """
        x = self._checked(batch)
        posterior = self.code_posterior(x)
        condition = self.condition(batch) if posterior is None else None
        columns, num_dims = [], self.problem.num_dims
        for i in range(self.problem.num_steps):
            t = torch.full((len(x),), i + 1, device=x.device)
            if posterior is not None:
                condition = posterior.draw(noise[:, i, num_dims:])
            step = self.forward_process.transition(x, t, condition)
            z_t = step.draw_from_uniform(noise[:, i, :num_dims].view(x.shape))
            columns.append(step_kl(step, self.reverse, z_t))
        nll_code = None if posterior is None or condition is None else posterior.nll(condition)
        return Bound(torch.stack(columns, 1), self.further_terms(batch, posterior, condition), nll_code)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._evaluation_step("val", batch)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self._evaluation_step("test", batch)

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """Score examples: ``nelbo`` (nats per example) and the ``index`` of each in its split."""
        index = self._index(batch)
        return {"nelbo": self.nelbo_terms(batch, self._noise(index)).nelbo, "index": index}

    def on_predict_epoch_start(self) -> None:
        self._num_seen = 0

    def on_validation_epoch_start(self) -> None:
        self._prepare_evaluation("val")

    def on_test_epoch_start(self) -> None:
        self._prepare_evaluation("test")

    def on_validation_epoch_end(self) -> None:
        self._log_evaluation("val")

    def on_test_epoch_end(self) -> None:
        self._log_evaluation("test")

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Any], stage: str = "test") -> dict[str, Tensor]:
        """All that validation and testing log, without a trainer: the bound, its terms, further metrics.

        Args:
            batches: Batches of a data loader, with the ``index`` of every example.
            stage: ``val`` or ``test``; whose metrics to use. They are reset.

        Returns:
            Values by name, without the stage; over all processes, if there are several.
        """
        was_training = self.training
        self.eval()
        self._prepare_evaluation(stage)
        for batch in batches:
            self._evaluation_step(stage, self.transfer_batch_to_device(batch, self.device, 0))
        self.train(was_training)
        return self._collect(stage)

    # ---- internals ------------------------------------------------------------------------

    def _index(self, batch: Any) -> Tensor:
        """``(B,)``: what the batch says, or its examples counted; several processes take turns."""
        if isinstance(batch, dict) and "index" in batch:
            index: Tensor = batch["index"]
            return index
        x = self.data(batch)
        seen = self._num_seen + torch.arange(len(x), device=x.device)
        self._num_seen += len(x)
        world, rank = (1, 0) if self._trainer is None else (self.trainer.world_size, self.global_rank)
        return seen * world + rank

    def _noise(self, index: Tensor) -> Tensor:
        """Uniform numbers ``(B, T, D + m)`` that depend on each example's index alone."""
        rows = []
        for i in index.tolist():
            generator = torch.Generator().manual_seed(i)
            size = (self.problem.num_steps, self.problem.num_dims + self.problem.num_draws)
            rows.append(torch.rand(size, dtype=torch.float64, generator=generator))
        noise = torch.stack(rows)
        return noise.to(float64_device(self.device))

    def _prepare_evaluation(self, stage: str) -> None:
        self._num_seen = 0
        if stage not in self.bounds:
            names = self.further_term_names()
            self.bounds[stage] = NELBOMetric(self.problem.num_steps, self.problem.num_dims, names)
            self.extra_metrics[stage] = dict(self.make_metrics())
            if self.code is not None:
                self.extra_metrics[stage]["nll_code"] = MeanMetric()
        for metric in (self.bounds[stage], *self.extra_metrics[stage].values()):
            metric.to(self.device).reset()  # an evaluation before may have been broken off

    def _evaluation_step(self, stage: str, batch: Any) -> None:
        terms = self.nelbo_terms(batch, self._noise(self._index(batch)))
        if terms.nll_code is not None:
            self.extra_metrics[stage]["nll_code"].update(terms.nll_code)
        self.bounds[stage].update(terms.kl, terms.further)
        self.update_metrics(self.extra_metrics[stage], batch, terms.nelbo)

    def _collect(self, stage: str) -> dict[str, Tensor]:
        """Values of all metrics of a stage by name; resets them."""
        bound = self.bounds[stage]
        collected = {name: value.float() for name, value in bound.compute().items()}
        bound.reset()
        for name, metric in self.extra_metrics[stage].items():
            value = metric.compute()
            collected.update(value if isinstance(value, dict) else {name: value})
            metric.reset()
        return collected

    def _log_evaluation(self, stage: str) -> None:
        for name, value in self._collect(stage).items():
            self.log(f"{stage}/{name}", value, prog_bar=name == "nelbo", sync_dist=False, rank_zero_only=False)
