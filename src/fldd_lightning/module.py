"""The LightningModule: forward process, denoiser and estimator under one NELBO loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.core.mixins.hparams_mixin import _given_hyperparameters
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from .categorical import float64_device
from .checkpointed import CheckpointedModule
from .codes import Code
from .errors import FLDDError
from .estimators import GradientEstimator, StepLoss
from .factory import build, describe
from .forward import ForwardProcess
from .hooks import ModalityHooks
from .networks import Backbone
from .objective import stratified_steps
from .optimization import AdaptiveClip, averaging, learning_rate_factor, run_length, run_progress
from .problem import Problem
from .reverse import ReverseProcess
from .sampling import ancestral_sample

__all__ = ["FLDD"]


class FLDD(CheckpointedModule):
    """Forward-Learned Discrete Diffusion.

    Logs ``{train,val,test}/nelbo`` (nats per example, eq. 5), ``*/bpd`` (bits per dimension),
    ``*/kl_t{t}``, further terms of the bound and, with a code, ``*/kl_code`` and the bound of the
    code alone, ``{val,test}/nll_code``. Training draws one step per example, evaluation
    sums all T. Evaluation and checkpoints use averaged weights.

    A modality is added by subclassing; what it may override stands in
    :class:`~fldd_lightning.hooks.ModalityHooks`. A subclass with options of its own passes
    the rest on to this class and calls ``self.save_hyperparameters("its_option", ...)``.

    Args:
        num_classes: K; on the command line linked from the data.
        shape: Shape of one example; linked from the data.
        num_steps: T, fixed at training time.
        num_labels: Labels of a conditional model, or 0.
        padded: Whether the last class is PAD; linked from the data. See :class:`Problem`.
        forward_process: Makes the forward process from the :class:`Problem`.
        denoiser: Makes the denoiser from ``(problem, num_inputs, num_outputs)``.
        estimator: Makes the gradient estimator from the :class:`Problem`.
        code: Makes, from the :class:`Problem`, the code of an example that is drawn before the first step and that both
            networks see; it is fitted to the training data when training starts. None does without.
        lr: Peak learning rate of the denoiser.
        forward_lr_ratio: Learning rate of the forward process as a share of ``lr``.
        freeze_steps: Optimiser steps before the forward process starts to move.
        forward_interval: The forward process moves at every so many-th step only, so that the
            denoiser makes that many updates to one of the forward process.
        free_bits: Nats per example and step below which a step's KL is no longer pressed down
            (Kingma et al., 2016); 0 is the bound itself. Needs an estimator that reports a KL.
        auxiliary_weight: Weight at first of the auxiliary loss, which falls to 0 along the run (a run without an
            end keeps it). Under masked diffusion every masked coordinate teaches the denoiser at every step, with
            its probability of being revealed, 1/t; an order reveals few at a step, and teaches little. This
            loss counts the others up to 1/t, times the weight, after L_lambda of Austin et al., 2021, eq. 5, for
            processes that only mask. It is 0 for masked diffusion, has no gradient to the forward process, and
            estimators over relaxed states have none. 0 is the bound itself.
        weight_decay: AdamW's, for both.
        clip_ratio: Gradients are clipped to this multiple of their running mean norm, the two
            networks apart. ``trainer.gradient_clip_val``, if given, replaces it by a fixed norm or value, 0 by none.
        ema_decay: Decay of the averaged weights.

    Raises:
        FLDDError: If the numbers or submodules do not fit together.
    """

    _run_progress: Callable[[int], float] | None = None

    def __init__(
        self,
        num_classes: int,
        shape: Sequence[int],
        forward_process: Callable[[Problem], ForwardProcess],
        denoiser: Callable[[Problem, int, int], Backbone],
        estimator: Callable[[Problem], GradientEstimator],
        num_steps: int = 4,
        num_labels: int = 0,
        padded: bool = False,
        code: Callable[[Problem], Code] | None = None,
        lr: float = 2e-3,
        forward_lr_ratio: float = 1.0,
        freeze_steps: int = 250,
        forward_interval: int = 1,
        free_bits: float = 0.0,
        auxiliary_weight: float = 4.0,
        weight_decay: float = 0.0,
        clip_ratio: float = 2.0,
        ema_decay: float = 0.998,
    ) -> None:
        super().__init__()
        if forward_interval < 1 or min(free_bits, auxiliary_weight) < 0:
            raise FLDDError("forward_interval must be at least 1, free_bits and auxiliary_weight at least 0.")
        arguments = {key: value for key, value in locals().items() if key not in ("self", "__class__")}
        if _given_hyperparameters.get() is not None:
            self.save_hyperparameters()  # on the command line, which knows class paths itself
        else:
            self.save_hyperparameters(describe({**arguments, "shape": [int(size) for size in shape]}))
        self.problem = Problem(num_classes, tuple(shape), num_steps, num_labels, padded)
        self.code = None if code is None else build(code, self.problem)
        if self.code is not None:
            if num_labels > 0 or type(self).condition is not ModalityHooks.condition:
                raise FLDDError(
                    "labels stand where a code would: set model.code to null, or use a model without labels."
                )
            self.problem = self.code.seen_by_networks(self.problem)
            # DDP need not send its tables before every step: CodedModule does when training starts
            names = [f"code.{name}" for name, _ in self.code.named_buffers()]
            DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self, names)  # type: ignore[no-untyped-call]
        self.forward_process = build(forward_process, self.problem)
        self.reverse = ReverseProcess(self.problem, self.forward_process, lambda *a: build(denoiser, *a), self.code)
        self.estimator = build(estimator, self.problem)
        self.lr, self.forward_lr_ratio, self.weight_decay = float(lr), float(forward_lr_ratio), float(weight_decay)
        self.freeze_steps, self.ema_decay = freeze_steps, ema_decay
        self.forward_interval, self.free_bits, self.auxiliary_weight = forward_interval, free_bits, auxiliary_weight
        self.clip_forward = AdaptiveClip(clip_ratio, name="the forward process")
        self.clip_reverse = AdaptiveClip(clip_ratio, name="the denoiser")

    # ---- objective ------------------------------------------------------------------------

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x = self._checked(batch)
        generator = self._generator(self.current_epoch, batch_idx)
        t = stratified_steps(len(x), self.problem.num_steps, generator).to(self.device)
        uniform = torch.rand(
            len(x), self.problem.num_draws, dtype=torch.float64, device=generator.device, generator=generator
        )
        posterior = self.code_posterior(x)
        condition = self.condition(batch) if posterior is None else posterior.draw(uniform)
        terms = self.further_terms(batch, posterior, condition)
        step = self.forward_process.transition(x, t, condition)
        out = self.estimator.loss(step, self.reverse, generator, self.global_step)
        extra = sum((term.mean() for term in terms.values()), torch.zeros((), device=self.device))
        for name, term in terms.items():
            self.log(f"train/{name}", term.mean(), on_step=True, batch_size=len(x))
        per_step = self._pressed(out, t)
        if out.auxiliary is not None:
            weight = self.auxiliary_weight * (1 - min(1.0, self._progress()))
            per_step = per_step + weight * out.auxiliary
            self.log("train/auxiliary", self.problem.num_steps * out.auxiliary.mean(), on_step=True, batch_size=len(x))
        loss = (self.problem.num_steps * per_step.mean() + extra) / self.problem.num_dims
        if out.kl is not None:
            nelbo = self.problem.num_steps * out.kl.mean() + extra.detach()
            bits = nelbo / (self.problem.num_dims * torch.log(torch.tensor(2.0)))
            self.log("train/nelbo", nelbo, on_step=True, prog_bar=True, batch_size=len(x))
            self.log("train/bpd", bits, on_step=True, batch_size=len(x))
            sums = torch.zeros(self.problem.num_steps + 1, device=self.device)
            counts = sums.clone().index_add(0, t, torch.ones_like(out.kl))
            means = sums.index_add(0, t, out.kl.float()) / counts
            for i in counts.nonzero().flatten().tolist():  # at once: every transfer waits for the device
                self.log(f"train/kl_t{i}", means[i], on_step=True, batch_size=len(x))
        return loss

    # ---- sampling -------------------------------------------------------------------------

    def sample(
        self,
        num_samples: int,
        seed: int = 0,
        num_steps: int | None = None,
        trajectory: bool = False,
        batch_size: int = 256,
        progress: bool = False,
    ) -> Tensor:
        """Draw samples; see :func:`fldd_lightning.sampling.ancestral_sample`.

        Args:
            num_samples: N.
            seed: Equal seeds and batch sizes give equal samples.
            num_steps: If given, must equal T.
            trajectory: Return z_T..z_0, ``(T + 1, N, *shape)``.
            batch_size: Samples drawn at once.
            progress: Show a progress bar.

        Returns:
            Integers ``(N, *shape)`` on the CPU.

        Raises:
            FLDDError: If N is not positive or ``num_steps`` is not T.
        """
        if min(num_samples, batch_size) < 1:
            raise FLDDError("the number of samples and the batch size must be at least 1.")
        from rich.progress import Progress

        generator = torch.Generator(float64_device(self.device)).manual_seed(seed)
        was_training = self.training
        self.eval()
        sizes = [min(batch_size, num_samples - i) for i in range(0, num_samples, batch_size)]
        parts = []
        with Progress(disable=not progress) as bar:
            task = bar.add_task("sampling", total=len(sizes) * self.problem.num_steps)
            for size in sizes:
                part = ancestral_sample(
                    self.forward_process,
                    self.reverse,
                    size,
                    generator,
                    self.prior_condition(size, generator),
                    self.sample_padding(size, generator),
                    num_steps,
                    trajectory,
                    on_step=lambda: bar.advance(task),
                )
                parts.append(part.cpu())
        self.train(was_training)
        return torch.cat(parts, 1 if trajectory else 0)

    # ---- optimisation ---------------------------------------------------------------------

    def configure_optimizers(self) -> Any:
        """One AdamW, a parameter group for denoiser and code and one for the forward process."""
        self._run_progress = progress = run_progress(self.trainer)
        own = {id(p) for p in self.forward_process.parameters()}
        rest = [p for p in self.parameters() if id(p) not in own]
        groups: list[dict[str, Any]] = [{"params": rest, "lr": self.lr, "name": "reverse"}]
        factors = [learning_rate_factor(progress)]
        if own:
            total = run_length(self.trainer)
            if total <= self.freeze_steps:
                rank_zero_warn(
                    f"the forward process will not learn: this run ends after {total:.0f} steps, and the first "
                    f"freeze_steps={self.freeze_steps} leave it as it is. Train longer or freeze less."
                )
            lr = self.lr * self.forward_lr_ratio
            groups.append({"params": list(self.forward_process.parameters()), "lr": lr, "name": "forward"})
            factors.append(learning_rate_factor(progress, self.freeze_steps))
        optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=self.weight_decay)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factors)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the two networks apart, and hold the forward process still while it is frozen."""
        for group in optimizer.param_groups:
            frozen = self.global_step < self.freeze_steps or self.global_step % self.forward_interval != 0
            if group["name"] == "forward" and frozen:
                for p in group["params"]:
                    p.grad = None
            elif gradient_clip_val is None:
                clip = self.clip_forward if group["name"] == "forward" else self.clip_reverse
                clip.clip(group["params"])
            elif gradient_clip_val > 0:  # 0 is Lightning's word for none
                by_value = gradient_clip_algorithm == "value"
                clip_to = torch.nn.utils.clip_grad_value_ if by_value else torch.nn.utils.clip_grad_norm_
                clip_to(group["params"], gradient_clip_val)

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: without what is of a run, and metrics, which are made anew."""
        return {**super().__getstate__(), "_run_progress": None, "bounds": {}, "extra_metrics": {}}

    def configure_callbacks(self) -> list[Callback]:
        """Averages the weights; callbacks listed by the user see the averaged ones in validation."""
        return [averaging(self.ema_decay)]

    def setup(self, stage: str) -> None:
        self._run_progress = None
        if self.trainer.precision in ("bf16-true", "16-true"):
            raise FLDDError(
                f"precision {self.trainer.precision} keeps weights in 16 bits, in which their average does not move. "
                "Use bf16-mixed."
            )
        data = getattr(self.trainer, "datamodule", None)
        self._take_vocabulary(getattr(data, "vocabulary", None))

    # ---- internals ------------------------------------------------------------------------

    def _progress(self) -> float:
        """Share of the run that is done; 0 without one."""
        if self._trainer is None:
            return 0.0
        if self._run_progress is None:
            self._run_progress = run_progress(self.trainer)
        return self._run_progress(self.global_step)

    def _pressed(self, out: StepLoss, t: Tensor) -> Tensor:
        """The surrogate ``(B,)``, zero for steps whose mean KL over the batch lies below the free bits."""
        if self.free_bits == 0:
            return out.surrogate
        if out.kl is None:
            raise FLDDError("free_bits needs an estimator that reports a KL; Concrete does not. Set free_bits to 0.")
        same = (t.unsqueeze(0) == t.unsqueeze(1)).to(out.kl)  # (B, B)
        mean_kl = (same * out.kl).sum(1) / same.sum(1)
        return torch.where(mean_kl >= self.free_bits, out.surrogate, 0.0)

    def _generator(self, *counters: int) -> torch.Generator:
        """Noise that depends on the seed, the rank and where training stands, so that resuming repeats it."""
        seed = torch.initial_seed() % 2**31
        for number in (self.global_rank, *counters):
            seed = (seed * 1_000_003 + number + 1) % (2**61 - 1)
        return torch.Generator(float64_device(self.device)).manual_seed(seed)
