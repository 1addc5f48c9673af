"""What all callbacks of sample quality share: when, which samples, and what is recorded."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any, Generic, TypeVar

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from ..decoding import Ancestral, Decoding
from ..errors import FLDDError
from ..module import FLDD
from ..ranges import COUNT, NATURAL, SEED, check_numbers
from ..sampling import num_passes, with_conditions
from .run import run_folder

__all__ = ["SampleCallback"]

M = TypeVar("M", bound=FLDD)


class SampleCallback(Callback, Generic[M]):
    """Samples at validations and in testing.

    A subclass gives :meth:`evaluate` and names the modules it works on. Samples are drawn in batches
    with seeds of their own, shared out over processes: any number of processes draws the same samples.

    Args:
        num_samples: Samples each time.
        every_n_validations: Evaluate at every so many-th validation of ``fit``; 0 only in
            ``validate`` and ``test``.
        batch_size: Samples at once.
        seed: Of the samples.
        decoding: How a step is drawn; None for :class:`~fldd_lightning.Ancestral`.
        best_of: How many are drawn for each sample, as in :meth:`FLDD.sample`.

    Raises:
        FLDDError: If the numbers are out of range.
    """

    module_class: type[M]

    def __init__(
        self,
        num_samples: int,
        every_n_validations: int,
        batch_size: int,
        seed: int,
        decoding: Decoding | None = None,
        best_of: int = 1,
    ) -> None:
        check_numbers(
            locals(), num_samples=COUNT, every_n_validations=NATURAL, batch_size=COUNT, seed=SEED, best_of=COUNT
        )
        self.decoding, self.best_of = decoding or Ancestral(), best_of
        self.num_samples, self.every_n_validations = num_samples, every_n_validations
        self.batch_size, self.seed = batch_size, seed

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Starts anew with every call of the trainer, as it may be with other data.

        A subclass tries here whatever can fail in :meth:`evaluate`: it is known before the first step then.

        Raises:
            FLDDError: If the module is of another kind, or cannot be sampled as the callback is to.
        """
        self._validations = 0
        if not isinstance(pl_module, self.module_class):
            raise FLDDError(
                f"{type(self).__name__} needs a {self.module_class.__name__}, not a {type(pl_module).__name__}; remove "
                "it from the callbacks."
            )
        self.check_decoding(pl_module, self.decoding)

    def check_decoding(self, model: M, decoding: Decoding) -> None:
        """Raise FLDDError if a model cannot be sampled this way, ``best_of`` times for each sample."""
        decoding.check(model.forward_process, model.reverse)
        if self.best_of > 1:
            with_conditions({}, model.latents, 1, self.seed)

    @abstractmethod
    def evaluate(self, trainer: Trainer, module: M, stage: str) -> None:
        """Sample, compare, and :meth:`report`, for ``val`` or ``test``."""

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        self._validations += 1
        due = self.every_n_validations > 0 and self._validations % self.every_n_validations == 0
        if due or trainer.state.fn != TrainerFn.FITTING:
            self._evaluate(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._evaluate(trainer, pl_module, "test")

    def samples(self, trainer: Trainer, model: M, decoding: Decoding | None = None) -> Iterator[tuple[int, Tensor]]:
        """This process's share of the samples, in batches, each with the number of its first sample.

        Args:
            trainer: The trainer.
            model: Which draws them.
            decoding: In place of the callback's.
        """
        controls: dict[str, Any] = {"decoding": decoding or self.decoding, "best_of": self.best_of}
        for i, first, size in self.shares(trainer, self.num_samples):
            yield first, model.sample(size, 1_000_003 * (self.seed + 1) + i, batch_size=size, **controls)

    def shares(self, trainer: Trainer, number: int) -> Iterator[tuple[int, int, int]]:
        """This process's batches of ``number`` examples: number of the batch, of its first example, and its size."""
        starts = range(0, number, self.batch_size)
        for i in range(trainer.global_rank, len(starts), trainer.world_size):
            yield i, starts[i], min(self.batch_size, number - starts[i])

    def report(
        self,
        trainer: Trainer,
        model: FLDD,
        values: dict[str, Tensor],
        facts: dict[str, Any],
        decoding: Decoding | None = None,
    ) -> None:
        """Print numbers and append them, with all that must be said beside them, to ``sample_quality.jsonl``.

        Args:
            trainer: The trainer.
            model: Which drew the samples.
            values: Numbers by name.
            facts: Plain values: what they were compared with, how many, and the like.
            decoding: Of the samples, if not the callback's.
        """
        folder = run_folder(trainer)
        if not trainer.is_global_zero:
            return
        numbers = {name: float(value) for name, value in values.items()}
        facts = {
            **facts,
            "num_samples": self.num_samples,
            "seed": self.seed,
            "num_steps": model.spec.num_steps,
            "decoding": (decoding or self.decoding).configuration(),
            "best_of": self.best_of,
            "nfe": num_passes(model.spec.num_steps, decoding or self.decoding, self.best_of),
            "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
            "global_step": max(trainer.global_step, model.trained_steps),
            "version": version("fldd-lightning"),
        }
        shown = ", ".join(f"{name} {value:.3f}" for name, value in numbers.items())
        rank_zero_info(f"{shown} ({', '.join(f'{key} {value}' for key, value in facts.items())})")
        with (folder / "sample_quality.jsonl").open("a") as file:
            file.write(json.dumps({**numbers, **facts}) + "\n")

    @torch.no_grad()
    def _evaluate(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        assert isinstance(module, self.module_class)
        self.evaluate(trainer, module, stage)
