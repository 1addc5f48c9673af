"""What a model costs, counted and not timed: floating-point operations and the numbers it needs.

Operations are those of matrix products, convolutions and attention (``torch.utils.flop_counter``), two for a product
and its sum. The rest of a step is left out; it is a small share where networks are large. While they are counted,
attention is computed as matrix products: PyTorch does not count its own kernel for CPUs.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from fldd_lightning import FLDD, DiscreteDataModule

__all__ = [
    "COSTS",
    "TrainingWork",
    "costs",
    "costs_untrained",
    "counted",
    "sampling_work",
    "step_operations",
    "trained_numbers",
]


COSTS = ("training_gflop", "numbers_sampling", "numbers_training")  # columns of a table


class TrainingWork(Callback):
    """Counts the operations of a training: those of fitting latents beforehand, and those of a step times the steps.

    Attributes:
        fit: Operations of fitting latents.
        step: Operations of one step, forward and backward.
    """

    def __init__(self) -> None:
        self.fit = self.step = 0
        self._counter: FlopCounterMode | None = None
        self._open = ExitStack()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start()  # a callback comes before the module, which fits its latents now

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._counter is not None:
            self.fit = self._stop() or self.fit  # a run that goes on has fitted before
            self._start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._counter is not None:
            self.step = self._stop()

    def state_dict(self) -> dict[str, int]:
        return {"fit": self.fit, "step": self.step}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.fit, self.step = state_dict["fit"], state_dict["step"]

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._counter is not None:  # a run that goes on had no step left
            self._stop()

    def total(self, steps: int) -> int:
        """Operations of a training of so many steps."""
        return self.fit + steps * self.step

    def _start(self) -> None:
        self._open, self._counter = ExitStack(), FlopCounterMode(display=False)
        self._open.enter_context(sdpa_kernel(SDPBackend.MATH))
        self._open.enter_context(self._counter)

    def _stop(self) -> int:
        assert self._counter is not None
        self._open.close()
        total, self._counter = int(self._counter.get_total_flops()), None
        return total


class _Touched(TorchDispatchMode):
    """Remembers which memory operations read."""

    def __init__(self) -> None:
        super().__init__()
        self.places: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for leaf in tree_leaves((args, kwargs or {})):
            if isinstance(leaf, Tensor):
                self.places.add(leaf.untyped_storage().data_ptr())
        return func(*args, **(kwargs or {}))


def counted(run: Callable[[], object]) -> int:
    """Operations of a call."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


def step_operations(model: FLDD, data: DiscreteDataModule) -> int:
    """Of one training step of a model, on one batch."""
    batch = next(iter(data.train_dataloader()))
    model.train()
    total = counted(lambda: model.training_step(batch, 0).backward())
    model.zero_grad()
    return total


def sampling_work(model: FLDD, num_samples: int = 64) -> tuple[int, int]:
    """Operations for one sample, and how many trained numbers sampling reads.

    Those are the parameters, and what a latent has fitted and keeps as tables.
    """
    held = [*model.parameters(), *(buffer for latent in model.latents for buffer in latent.buffers())]
    # not the check of all weights, which is no part of sampling
    with patch("fldd_lightning.module.check_weights"), _Touched() as touched:
        operations = counted(lambda: model.sample(num_samples, batch_size=num_samples))
    read = {p.untyped_storage().data_ptr(): p.numel() for p in held if p.is_floating_point()}
    numbers = sum(numel for place, numel in read.items() if place in touched.places)
    return operations // num_samples, numbers


def costs(model: FLDD, training: int) -> dict[str, int]:
    """The columns of a table that say what a row costs.

    Args:
        model: After its training.
        training: Operations of that.
    """
    values = (round(training / 1e9), sampling_work(model)[1], trained_numbers(model))
    return dict(zip(COSTS, values, strict=True))


def costs_untrained(make: Callable[[], tuple[FLDD, DiscreteDataModule]], steps: int) -> dict[str, int]:
    """:func:`costs` of a model that is not trained for it: of two steps, and two short fits of its latent.

    A fit looks at held-out examples ten times, however long it is. So its operations are linear in its steps.

    Args:
        make: Makes the model and its data.
        steps: Optimiser steps of its training.
    """

    def short(fit_steps: int) -> tuple[FLDD, TrainingWork, int]:
        model, data = make()
        fitted = [latent for latent in model.latents if getattr(latent, "fit_steps", 0)]
        assert len(fitted) <= 1, "the fits of several latents cannot be told apart"
        whole = int(fitted[0].fit_steps) if fitted else 0
        for latent in fitted:
            latent.fit_steps = fit_steps
        work = TrainingWork()
        Trainer(
            max_steps=2, callbacks=[work], limit_val_batches=0, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False,
        ).fit(model, data)  # fmt: skip
        return model, work, whole

    model, work, whole = short(10)
    fit = work.fit
    if whole:
        fit += round((whole - 10) * (short(20)[1].fit - work.fit) / 10)
    return costs(model, fit + steps * work.step)


@torch.no_grad()
def trained_numbers(model: FLDD) -> int:
    """How many numbers training moves or fits: parameters, and tables of latents."""
    tables = (buffer for latent in model.latents for buffer in latent.buffers() if buffer.is_floating_point())
    return sum(each.numel() for each in (*model.parameters(), *tables))
