"""The bound of infinitely many steps, beside that of T."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from ..any_order import any_order_nelbo, has_any_order
from ..bound import num_uniforms, uniform_of
from ..categorical import float64_device
from ..errors import FLDDError
from ..metrics import NELBOMetric
from ..module import FLDD
from ..ranges import COUNT, check_numbers

__all__ = ["AnyOrderBound"]


class AnyOrderBound(Callback):
    """Logs ``{val,test}/nelbo_any_order`` and its standard error ``nelbo_any_order_se``, in nats per example.

    Masked diffusion with a time-independent denoiser has a bound of T = infinity, which is that of any order; see
    :func:`~fldd_lightning.any_order.any_order_nelbo`. It is what other work reports, and usually lower than the bound
    of T steps.

    Args:
        draws: Of the masks, for each example.

    Raises:
        FLDDError: If the model is of another kind.
    """

    def __init__(self, draws: int = 4) -> None:
        check_numbers(locals(), draws=COUNT)
        self.draws = draws
        self._metric: NELBOMetric | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not isinstance(pl_module, FLDD) or not has_any_order(pl_module.forward_process, pl_module.reverse):
            raise FLDDError(
                "AnyOrderBound needs an FLDD with AbsorbingProcess and a reverse process with time_independent: true."
            )

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._metric = NELBOMetric(1, pl_module.spec.num_dims).to(pl_module.device)

    def on_test_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._metric = NELBOMetric(1, pl_module.spec.num_dims).to(pl_module.device)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        with trainer.precision_plugin.val_step_context():
            self._update(trainer, pl_module, batch, batch_idx)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        with trainer.precision_plugin.test_step_context():
            self._update(trainer, pl_module, batch, batch_idx)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._log(pl_module, "val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._log(pl_module, "test")

    @torch.no_grad()
    def _update(self, trainer: Trainer, model: FLDD, batch: Any, batch_idx: int) -> None:
        assert self._metric is not None
        x = model.data(batch).long()
        counted = (batch_idx * 10**6 + torch.arange(len(x))) * trainer.world_size + trainer.global_rank
        index = batch["index"] if isinstance(batch, dict) and "index" in batch else counted
        size = (self.draws, 1 + model.spec.num_dims + num_uniforms(model.latents))
        # other numbers than those of the T-step bound
        noise = uniform_of(index, size, torch.initial_seed() % 2**31 + 1).to(float64_device(model.device))
        parts = (model.forward_process, model.reverse, model.latents, x, batch)
        draws = [any_order_nelbo(*parts, noise[:, i]) for i in range(self.draws)]
        self._metric.update(torch.stack(draws).mean(0).unsqueeze(1), {})

    def _log(self, module: LightningModule, stage: str) -> None:
        assert self._metric is not None
        values = self._metric.compute()
        for name in ("nelbo", "nelbo_se"):
            module.log(f"{stage}/{name.replace('nelbo', 'nelbo_any_order')}", values[name].float())
        self._metric = None
