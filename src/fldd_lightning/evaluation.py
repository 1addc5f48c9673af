"""Validation, testing and prediction: all T terms of the bound, the same whatever batch an example stands in."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric

from .coded import CodedModule
from .forward import ForwardProcess
from .metrics import NELBOMetric
from .objective import step_kl
from .reverse import ReverseProcess

__all__ = ["EvaluatedModule"]


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
        self.bounds = nn.ModuleDict()
        self.extra_metrics = nn.ModuleDict()

    @torch.no_grad()
    def nelbo_terms(self, batch: Any, noise: Tensor) -> Tensor:
        """KL of every step, one draw of z_t each (eq. 5).

        Args:
            batch: What the data loader gives.
            noise: Uniform float64 numbers ``(B, T, D + m)``: of every step, D for z_t, the others for the code.

        Returns:
            ``(B, T)`` in nats per example; with :meth:`further_terms` the sum is an unbiased NELBO.
        """
        x = self._checked(batch)
        condition = self.condition_draws(batch, x)
        columns, num_dims = [], self.problem.num_dims
        for i in range(self.problem.num_steps):
            t = torch.full((len(x),), i + 1, device=x.device)
            step = self.forward_process.transition(x, t, condition(noise[:, i, num_dims:]))
            z_t = step.draw_from_uniform(noise[:, i, :num_dims].view(x.shape))
            columns.append(step_kl(step, self.reverse, z_t))
        return torch.stack(columns, 1)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._evaluation_step("val", batch, batch_idx)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self._evaluation_step("test", batch, batch_idx)

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """Score examples: ``nelbo`` (nats per example) and the ``index`` of each in its split."""
        index = self._index(batch, batch_idx)
        kl = self.nelbo_terms(batch, self._noise(index))
        terms = self.further_terms(batch, self._checked(batch))
        return {"nelbo": kl.sum(1) + sum(terms.values(), torch.zeros_like(kl[:, 0])), "index": index}

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
        for i, batch in enumerate(batches):
            batch = {key: value.to(self.device) for key, value in batch.items()}
            self._evaluation_step(stage, batch, i)
        self.train(was_training)
        return self._collect(stage)

    # ---- internals ------------------------------------------------------------------------

    def _noise_device(self) -> torch.device:
        return torch.device("cpu") if self.device.type == "mps" else self.device

    def _index(self, batch: Any, batch_idx: int) -> Tensor:
        if isinstance(batch, dict) and "index" in batch:
            index: Tensor = batch["index"]
            return index
        x = self.data(batch)
        return torch.arange(len(x), device=x.device) + (batch_idx * self.trainer.world_size + self.global_rank) * len(x)

    def _noise(self, index: Tensor) -> Tensor:
        """Uniform numbers ``(B, T, D + m)`` that depend on each example's index alone."""
        rows = []
        for i in index.tolist():
            generator = torch.Generator().manual_seed(i)
            size = (self.problem.num_steps, self.problem.num_dims + self.problem.num_parts)
            rows.append(torch.rand(size, dtype=torch.float64, generator=generator))
        noise = torch.stack(rows)
        return noise.to(self._noise_device())

    def _prepare_evaluation(self, stage: str) -> None:
        if stage not in self.bounds:
            names = self.further_term_names()
            bound = NELBOMetric(self.problem.num_steps, self.problem.num_dims, names)
            self.bounds[stage] = bound.to(self.device)
            metrics: dict[str, Metric] = dict(self.make_metrics())
            if self.code is not None:
                metrics["nll_code"] = MeanMetric()
            self.extra_metrics[stage] = nn.ModuleDict(metrics).to(self.device)

    def _evaluation_step(self, stage: str, batch: Any, batch_idx: int) -> None:
        x = self._checked(batch)
        kl = self.nelbo_terms(batch, self._noise(self._index(batch, batch_idx)))
        terms = self.further_terms(batch, x)
        if self.code is not None:
            self.extra_metrics[stage]["nll_code"].update(self.code.nll(x))  # type: ignore[index]
        bound = self.bounds[stage]
        assert isinstance(bound, NELBOMetric)
        bound.update(kl, terms)
        nelbo = kl.sum(1) + sum(terms.values(), torch.zeros_like(kl[:, 0]))
        self.update_metrics(dict(self.extra_metrics[stage].items()), batch, nelbo)  # type: ignore[operator]

    def _collect(self, stage: str) -> dict[str, Tensor]:
        """Values of all metrics of a stage by name; resets them."""
        bound = self.bounds[stage]
        assert isinstance(bound, NELBOMetric)
        collected = {name: value.float() for name, value in bound.compute().items()}
        bound.reset()
        for name, metric in self.extra_metrics[stage].items():  # type: ignore[operator]
            value = metric.compute()
            collected.update(value if isinstance(value, dict) else {name: value})
            metric.reset()
        return collected

    def _log_evaluation(self, stage: str) -> None:
        for name, value in self._collect(stage).items():
            self.log(f"{stage}/{name}", value, prog_bar=name == "nelbo", sync_dist=False, rank_zero_only=False)
