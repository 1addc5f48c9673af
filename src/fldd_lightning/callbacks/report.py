"""One page about a run: what it reached, what it draws, what its forward process learned, how it was made."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from itertools import islice
from time import monotonic
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from ..data.loaders import apart_from_training
from ..errors import FLDDError
from ..module import FLDD
from ..ranges import COUNT, SEED, check_numbers
from . import report_facts, report_page, report_parts
from .collapse import marginal_entropy, observed
from .history import History
from .run import in_training, on_training_device, run_folder

__all__ = ["Report"]


class Report(Callback):
    """Writes ``report.html`` into the run's folder at the end of ``fit``, and prints one line about what it reached.

    The page is one file that needs no network. It shows the bound and its terms over steps, beside the bound of a
    product of the data's marginals; samples, and how they come about; when the forward process reveals each
    coordinate, and how far it moved; settings, versions, seeds, time; and the commands that go on from here.

    Where the last validation was before the last step, the bound is computed once more, so that it is that of
    the weights that were kept. The curves are in checkpoints: the report of a resumed run shows all of it.

    Args:
        num_samples: Samples shown.
        num_trajectories: Samples shown as they come about.
        seed: Of the samples.

    Raises:
        FLDDError: If a number is not positive or the module is no :class:`~fldd_lightning.FLDD`.
    """

    def __init__(self, num_samples: int = 64, num_trajectories: int = 16, seed: int = 0) -> None:
        check_numbers(locals(), num_samples=COUNT, num_trajectories=COUNT, seed=SEED)
        self.num_samples, self.num_trajectories, self.seed = num_samples, num_trajectories, seed
        self.history = History()
        self._seconds_before, self._started = 0.0, monotonic()
        self._num_examples, self._rate, self._validated_at = 0, 0.0, -1

    # ---- what is collected ------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The curves and the time so far, as plain values."""
        return {"history": self.history.state(), "seconds": self._seconds()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history.load(state_dict["history"])
        self._seconds_before = float(state_dict["seconds"])

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not isinstance(pl_module, FLDD):
            raise FLDDError("Report shows FLDD modules only; remove it from the callbacks.")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step == 0:  # another run with the same callback
            self.history, self._seconds_before = History(), 0.0
        self._started, self._num_examples, self._validated_at = monotonic(), 0, -1

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, FLDD)
        self._num_examples += len(pl_module.data(batch)) * trainer.world_size
        values = trainer.callback_metrics
        if "train/nelbo" in values:
            self.history.add(trainer.global_step, {"train/nelbo": values["train/nelbo"]})

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if in_training(trainer):
            self._validated_at = trainer.global_step
            self._keep(trainer, trainer.callback_metrics)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._rate = self._num_examples / max(monotonic() - self._started, 1e-9)
        self._seconds_before, self._started = self._seconds(), float("inf")

    # ---- what is written --------------------------------------------------------------------

    @torch.no_grad()
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not in_training(trainer) or not isinstance(pl_module, FLDD):
            return
        folder = run_folder(trainer)
        with on_training_device(trainer, pl_module):
            self._validate(trainer, pl_module)
            if trainer.is_global_zero:
                page, summary = self._page(trainer, pl_module)
                path = folder / "report.html"
                path.write_text(page, encoding="utf-8")
                print(f"{summary} Report: {path}")

    def _validate(self, trainer: Trainer, module: FLDD) -> None:
        """The bound of the weights at the end, if the last validation was earlier; all processes take part."""
        loaders: Any = trainer.val_dataloaders
        if loaders is None or self._validated_at == trainer.global_step:
            return
        limit = trainer.num_val_batches[0]
        batches = islice(loaders, None if limit == float("inf") else int(limit))
        with trainer.precision_plugin.val_step_context():
            values = module.evaluate(batches, "val")
        self._keep(trainer, {f"val/{name}": value for name, value in values.items()})

    def _page(self, trainer: Trainer, module: FLDD) -> tuple[str, str]:
        """The page, and one line about the run."""
        baseline = self._baseline(trainer, module)
        states = module.sample(self.num_trajectories, self.seed, trajectory=True)  # first, as it warms up
        began = monotonic()
        x = module.sample(self.num_samples, self.seed)
        speed = self.num_samples / max(monotonic() - began, 1e-9)
        batch: Any = None
        if trainer.val_dataloaders is not None:
            with suppress(FLDDError):
                batch = next(iter(apart_from_training(trainer.val_dataloaders)))
        seconds = self._seconds()
        bound, facts = self._bound()
        if baseline is not None:
            bound += f" a product of marginals has {baseline:.1f};"
            facts["product of marginals"] = f"{baseline:.2f} nats"
        facts["samples a second"] = f"{speed:,.0f}"
        facts["training took"] = report_facts.duration(seconds)
        facts["parameters"] = f"{report_facts.num_parameters([module]):,}"
        spec, data = module.spec, getattr(trainer, "datamodule", None)
        made = [type(module.forward_process).__name__, *(type(latent).__name__ for latent in module.latents)]
        lead = (
            f"{', '.join(made)}; T = {spec.num_steps}; examples of shape {' × '.join(map(str, spec.shape))} with "
            f"{spec.num_classes} classes; {trainer.global_step:,} steps."
        )
        sections = [
            report_parts.curves(module, self.history, baseline),
            report_parts.samples(module, x, speed),
            report_parts.trajectory(module, states),
            report_parts.forward_process(module, batch, self.history),
            report_facts.commands(trainer, module),
            report_facts.made_with(trainer, module, seconds, self._rate),
            report_parts.metrics(self.history),
        ]
        title = f"{type(module).__name__} on {type(data).__name__}" if data is not None else type(module).__name__
        summary = f"{bound} {speed:,.0f} samples a second."
        return report_page.page(title, lead, facts, sections), summary

    def _baseline(self, trainer: Trainer, module: FLDD) -> float | None:
        """What a product of marginals has, in nats per example; with labels or lengths, if the model draws those."""
        entropy = self.history.last("collapse/marginal_entropy")
        if entropy is None:
            with suppress(FLDDError):  # data that can be gone through only once have none
                entropy = marginal_entropy(trainer, module)
        given = [self.history.last(f"val/kl_{name}") or 0.0 for name in observed(module)]
        return None if entropy is None else entropy + sum(given)

    def _bound(self) -> tuple[str, dict[str, str]]:
        """The bound that was reached, as the beginning of a sentence and as a fact by its name."""
        for name in ("val/nelbo", "train/nelbo"):
            value, lowest = self.history.last(name), self.history.lowest(name)
            if value is None or lowest is None:
                continue
            said, facts = f"{name} {value:.1f} nats an example", {name: f"{value:.2f} nats"}
            if name == "val/nelbo" and lowest[1] < value:
                said += f", {lowest[1]:.1f} at step {lowest[0]}"
                facts["lowest"] = f"{lowest[1]:.2f} nats, step {lowest[0]}"
            of_latents = self.history.last("val/nll_latent")
            if of_latents is not None:
                facts["latents alone"] = f"{of_latents:.2f} nats"
            return f"{said};", facts
        return "no bound was computed;", {}

    def _keep(self, trainer: Trainer, values: Mapping[str, Any]) -> None:
        named = {name: torch.as_tensor(v) for name, v in values.items() if not name.startswith("train/")}
        self.history.add(trainer.global_step, {name: v for name, v in named.items() if v.numel() == 1})

    def _seconds(self) -> float:
        """Of training so far, without what came after."""
        return self._seconds_before + max(0.0, monotonic() - self._started)
