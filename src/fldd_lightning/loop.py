"""Training without a Trainer: what a loop of one's own needs beside the loss."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from .data.base import DiscreteDataModule
from .errors import FLDDError
from .module import FLDD
from .ranges import COUNT, check_numbers
from .training import RisingAverage

__all__ = ["OwnLoop"]


_APART = 2**31 - 1  # more steps than any training has; of a seed, PyTorch's generator takes the last 32 bits


class OwnLoop:
    """Everything that a Trainer would do for an :class:`FLDD` within a loop that is yours, on one device.

    It fits latents that are fitted beforehand. It makes the optimiser, with a parameter group for each of the two
    networks, and its schedule. It holds the forward process still at first, clips the two apart, and averages the
    weights. Batches, evaluation, precision and saving are left to you::

        loop = OwnLoop(model, data, num_steps=500)
        for batch in batches:  # 500 of them
            loop.loss(batch).backward()
            loop.step()
        loop.finish()  # the model has the averaged weights now

    Move the model to its device first. To stop and go on, keep the states of the model, :attr:`optimizer`,
    :attr:`schedule` and :attr:`averages`, and ``model.own_steps``.

    Args:
        model: The model. It goes into training mode.
        data: A data module, or the training batches, which can be gone through more than once: what latents are
            fitted to. A data module also says what the integers stand for.
        num_steps: Optimiser steps of the whole training, along which rates fall.

    Attributes:
        model: The model that is trained.
        optimizer: AdamW, with the groups ``reverse`` and ``forward``.
        schedule: Of its rates.
        averages: Keeps the averaged weights.

    Raises:
        FLDDError: If there is no step to take, the data can be gone through once only, or it does not fit the model.
    """

    def __init__(self, model: FLDD, data: Any, num_steps: int) -> None:
        check_numbers(locals(), num_steps=COUNT)
        model.trainer = None  # of a training before
        model.own_steps, model.trained_steps = 0, 0
        self.model, self.num_steps = model.train(), num_steps
        self._batches = 0  # of this step so far: several may make one
        if isinstance(data, Iterator):
            raise FLDDError("data can be gone through once only: give OwnLoop a list, a loader or a data module.")
        batches = data
        if isinstance(data, DiscreteDataModule):
            model.adopt(data)
            batches = data.train_dataloader()
        model.fit_latents(batches)
        made = model.make_optimizer(num_steps, lambda step: step / num_steps)
        self.optimizer: torch.optim.Optimizer = made["optimizer"]
        self.schedule: torch.optim.lr_scheduler.LRScheduler = made["lr_scheduler"]["scheduler"]
        self.averages = RisingAverage(model, model.ema_decay)

    @property
    def averaged(self) -> FLDD:
        """The model with averaged weights, to sample from and to evaluate on the way."""
        averaged: FLDD = self.averages.module  # type: ignore[assignment]
        return averaged

    def loss(self, batch: Any) -> Tensor:
        """The loss of a batch, per dimension; ``model.logged`` then has the bound and its terms.

        Args:
            batch: Integers ``(B, *shape)`` or what a data loader gives. It is moved to the model's device.

        Raises:
            FLDDError: If the examples do not fit the model, or the loss is not finite.
        """
        batch = self.model.transfer_batch_to_device(batch, self.model.device, 0)
        self.model.on_train_batch_start(batch, self.model.own_steps)
        place = self.model.own_steps + _APART * self._batches  # each batch of a step has noise of its own
        loss = self.model.training_step(batch, place)
        self.model.on_train_batch_end(loss.detach(), batch, place)
        self._batches += 1
        return loss

    def step(self) -> None:
        """Clip and apply the gradients that are there, clear them, and average the weights.

        Raises:
            FLDDError: If there are no gradients.
        """
        if all(weight.grad is None for group in self.optimizer.param_groups for weight in group["params"]):
            raise FLDDError("there is no gradient to step along: call loss(batch).backward() before step().")
        self.model.configure_gradient_clipping(self.optimizer)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.schedule.step()
        self.averages.update_parameters(self.model)
        self.model.own_steps, self._batches = self.model.own_steps + 1, 0
        if self.model.own_steps == self.num_steps + 1:
            rank_zero_warn(f"the training of {self.num_steps} steps is over: its rates stay low. Give OwnLoop more.")

    def finish(self) -> FLDD:
        """Give the model the averaged weights, and make it ready to sample."""
        self.model.load_state_dict(self.averaged.state_dict())
        self.model.trained_steps = self.model.own_steps
        return self.model.eval()
