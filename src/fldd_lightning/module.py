"""The LightningModule: forward process, denoiser, latents and estimator under one NELBO loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from math import log
from os import PathLike
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from huggingface_hub import ModelCard, ModelHubMixin
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torchmetrics import Metric

from .any_order import has_any_order
from .bound import (
    Bound,
    Noise,
    SharedGenerator,
    StepTerms,
    draw_latents,
    mixed_seed,
    nelbo,
    noise_of,
    num_uniforms,
    step_terms,
    stratified_steps,
    summed_over_processes,
    uniform,
)
from .categorical import check_integers, check_states, check_values, float64_device, grey_levels
from .checkpoint import about_model, check_same, load_module, same_vocabulary
from .checkpoint_file import check_room, write_whole_checkpoints
from .compiled import CompiledLoss, TrainingLoss
from .data.base import DiscreteDataModule
from .decoding import Decoding
from .errors import FLDDError
from .estimators import GradientEstimator, Reinforce
from .estimators.score import LatentScore
from .evaluation import Evaluation, Scores, check_weights, part_of
from .factory import build, describe, plain
from .forward import AbsorbingProcess, ForwardProcess, MaskProcess
from .forward.padding import check_draws, check_prior
from .latents.base import Latent
from .latents.condition import ConditionLatent
from .latents.given import GivenLatent, random_subset
from .latents.several import fit_latents, fit_without_trainer, make_latents, settled
from .memory import check_memory
from .networks import Backbone, StateEmbedding
from .pretrained import check_options, check_own, load_pretrained, model_card, write_folder, writing_to_hub
from .ranges import ANY_SEED, BELOW_ONE, COUNT, NATURAL, NOT_NEGATIVE, POSITIVE, SHARE, check_kinds, check_numbers
from .reverse import DirectReverse, MaskedReverse, Reverse
from .sampling import (
    BOUND_DRAWS,
    as_batch,
    batches_of,
    chosen_latents,
    draw_samples,
    given_rows,
    rows_of_share,
    with_conditions,
)
from .sampling import best_of as best_of_samples
from .spec import Spec
from .strategy import refuse_split_weights
from .training import (
    AdaptiveClip,
    Averaging,
    averages_of,
    check_length,
    clip_apart,
    held_still,
    refuse_other_averaging,
    run_length,
    run_progress,
    two_time_scales,
)
from .watched import check_watched

__all__ = ["FLDD"]

_CHECK_EVERY = 100  # steps


class FLDD(LightningModule, ModelHubMixin):
    """Forward-Learned Discrete Diffusion.

    Logs ``{train,val,test}/nelbo`` (nats per example, eq. 5), ``*/bpd`` (bits per dimension), ``*/kl_t{t}`` for every
    step (in training if a batch has an example for each) and ``*/kl_{name}`` for every latent. Evaluation adds
    ``*/nelbo_se``, the standard error of the bound. Where a latent says something of the values,
    ``{val,test}/nll_latent`` is the bound of the latents alone. Training draws one step per example, evaluation sums
    all T. Evaluation and checkpoints use averaged weights.

    With ``budgets`` one training serves several numbers of steps. Its loss is the mean of their bounds, which
    ``train/nelbo`` is, and ``train/nelbo_T{n}`` is each. Validation, testing and samples are of ``num_steps`` steps;
    :meth:`with_num_steps` gives the same model with others.

    A modality is added by subclassing: see the methods under "what a modality may change". A subclass with options of
    its own passes the rest on to this class and calls ``self.save_hyperparameters("its_option", ...)``.

    Args:
        num_classes: K; on the command line linked from the data.
        shape: Shape of one example; linked from the data.
        forward_process: Makes the forward process from the :class:`Spec`.
        denoiser: Makes the denoiser from ``(spec, num_inputs, num_outputs)``.
        estimator: Makes the gradient estimator from the :class:`Spec`.
        latents: Make, from the :class:`Spec`, what is drawn before the first step: none, one, or several. Padded
            sequences get a :class:`LengthLatent` in any case.
        reverse: Makes the reverse process from ``(spec, process, denoiser, latents)``. If None, :class:`MaskedReverse`
            for processes that only mask, else :class:`DirectReverse`.
        num_steps: T, fixed at training time unless there are ``budgets``.
        budgets: Numbers of steps that one training is to serve, such as ``[1, 2, 4, 8, 16, 64]``, ``num_steps`` among
            them. The largest is the grid of times of the forward process; a smaller number takes evenly spaced times
            of it, and the denoiser is told both times of a step.
        padded: Whether the last class is PAD; linked from the data. See :class:`Spec`.
        num_values: How many values each coordinate has, where they differ; linked from the data. See :class:`Spec`.
        condition_sizes: What comes with every example, and its size; linked from the data. See :class:`Spec`.
        lr: Peak learning rate of the denoiser.
        forward_lr_ratio: Learning rate of the forward process as a share of ``lr``.
        freeze_steps: Optimiser steps before the forward process starts to move; half of the run at most.
        auxiliary_weight: Weight at first of the auxiliary loss, which falls to 0 along the run (a run without an
            end keeps it). Under masked diffusion every masked coordinate teaches the denoiser at every step, with
            its probability of being revealed, 1/t; an order reveals few at a step, and teaches little. This
            loss counts the others up to 1/t, times the weight, after L_lambda of Austin et al., 2021, eq. 5, for
            processes that only mask. It is 0 for masked diffusion, has no gradient to the forward process, and
            estimators over relaxed states have none. 0 is the bound itself.
        observed: Share of the training examples of which a random subset of the coordinates is given to both processes,
            in [0, 1]: it is not noised and costs nothing. So the model learns to complete partial examples, see
            :meth:`sample`. ``train/nelbo`` is then that of the rest; validation and testing give nothing, and
            their bound is the usual one.
        weight_decay: AdamW's, for both.
        ema_decay: Decay of the averaged weights.
        compile: Whether torch.compile makes one graph of a training step. The first steps take a minute or so longer.

    Attributes:
        spec: K, shape, PAD and T, and what networks see.
        evaluations: The metrics of ``val`` and ``test``, from the first evaluation on.
        vocabulary: What the K integers stand for, if the data says so. Taken from the data that the
            trainer brings, kept in checkpoints; data or checkpoints with another one are refused.
        trained_steps: Optimiser steps of the checkpoint that was loaded.
        own_steps: Optimiser steps of a training without a trainer; see :class:`OwnLoop`.
        logged: The bound of the last training step and its terms, on the device.
        text_ending: Ending of files with the lines of :meth:`to_text`.
        held_steps: Optimiser steps for which this run holds the forward process still.

    Raises:
        FLDDError: If the numbers or submodules do not fit together.
    """

    latents: Sequence[Latent]
    vocabulary: Sequence[str] | None = None
    trained_steps: int = 0
    own_steps: int = 0
    text_ending: str = ".txt"
    _run_progress: Callable[[int], float] | None = None
    _compiled_loss: CompiledLoss | None = None

    def __init__(
        self,
        num_classes: int,
        shape: Sequence[int],
        forward_process: Callable[[Spec], ForwardProcess],
        denoiser: Callable[[Spec, int, int], Backbone],
        estimator: Callable[[Spec], GradientEstimator] = Reinforce,
        latents: Sequence[Callable[[Spec], Latent]] | Callable[[Spec], Latent] = (),
        reverse: Callable[[Spec, ForwardProcess, Any, Sequence[Latent]], Reverse] | None = None,
        num_steps: int = 4,
        budgets: Sequence[int] = (),
        padded: bool = False,
        num_values: Sequence[int] | None = None,
        condition_sizes: Mapping[str, int] | None = None,
        lr: float = 2e-3,
        forward_lr_ratio: float = 1.0,
        freeze_steps: int = 250,
        auxiliary_weight: float = 4.0,
        observed: float = 0.0,
        weight_decay: float = 0.0,
        ema_decay: float = 0.998,
        compile: bool = False,
    ) -> None:
        check_numbers(
            locals(), lr=POSITIVE, forward_lr_ratio=NOT_NEGATIVE, freeze_steps=NATURAL, auxiliary_weight=NOT_NEGATIVE,
            observed=SHARE, weight_decay=NOT_NEGATIVE, ema_decay=BELOW_ONE,
        )  # fmt: skip
        check_kinds(locals(), shape=Iterable, budgets=Iterable, padded=bool, compile=bool)
        super().__init__()
        arguments = {key: value for key, value in locals().items() if key not in ("self", "__class__")}
        arguments.pop("condition_sizes")  # latents keep their own
        values = None if num_values is None else tuple(num_values)
        bare = Spec(
            num_classes, tuple(shape), num_steps, padded, num_values=values, budgets=tuple(budgets),
            condition_sizes={} if condition_sizes is None else dict(condition_sizes),
        )  # fmt: skip
        plainly = {"shape": list(bare.shape), "num_values": None if bare.num_values is None else list(bare.num_values)}
        self.save_hyperparameters(describe({**arguments, **plainly, "budgets": [int(n) for n in budgets]}))
        if budgets and num_steps not in bare.budgets:
            raise FLDDError(f"num_steps={num_steps} is none of the budgets {list(budgets)}: set it to one, or add it.")
        bare = replace(bare, num_steps=bare.grid)
        modules = nn.ModuleList(made := make_latents(latents, bare))
        self.hparams["latents"] = settled(self.hparams["latents"], made)
        self.latents = modules  # type: ignore[assignment]
        self.spec = replace(bare, seen=tuple(c.seen for c in self.latents if c.seen is not None))
        self.forward_process = build(forward_process, ForwardProcess, self.spec)
        masks = isinstance(self.forward_process, MaskProcess)
        if observed and not masks:  # a value that is given looks like noise: networks have to be told
            modules.append(told := GivenLatent(bare))
            self.spec = replace(self.spec, seen=(*self.spec.seen, told.seen))
            self.forward_process = build(forward_process, ForwardProcess, self.spec)
        check_prior(self.forward_process)
        reverse = reverse or (MaskedReverse if masks else DirectReverse)
        self.reverse = build(reverse, Reverse, self.spec, self.forward_process, denoiser, self.latents)
        self.observed = observed
        self._check_sees_given()
        self._walk(num_steps)
        self.estimator = build(estimator, GradientEstimator, self._of_all_steps())
        self.latent_score = self._score_of_latents()
        self.estimator.check(self.forward_process, self.reverse)
        if budgets and has_any_order(self.forward_process, self.reverse):
            raise FLDDError(
                "masked diffusion whose denoiser does not see the step serves any number of steps: leave out budgets."
            )
        self.lr, self.forward_lr_ratio, self.weight_decay = float(lr), float(forward_lr_ratio), float(weight_decay)
        self.freeze_steps = self.held_steps = freeze_steps
        self.ema_decay, self.auxiliary_weight = ema_decay, auxiliary_weight
        self.clip_forward, self.clip_reverse = AdaptiveClip("the forward process"), AdaptiveClip("the denoiser")
        # DDP need not send the tables of latents before every step: fit_latents does when training starts
        names = [f"latents.{name}" for name, _ in modules.named_buffers()]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self, names)  # type: ignore[no-untyped-call]
        self.evaluations: dict[str, Evaluation] = {}
        self.logged: dict[str, Tensor] = {}
        self._num_seen = 0
        self._has_checked_draws = False
        self.compiled = compile
        self._progress = 0.0  # share of the run that is done, for weights that change along it

    # ---- training -------------------------------------------------------------------------

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The loss: T E_t of the estimator's surrogate, plus what latents add, per dimension.

        With budgets each example has a T of its own. All noise, dropout's included, goes by the seed and by where
        training stands: a resumed run repeats it.
        """
        generator = self._generator(self.current_epoch, batch_idx)
        if self.compiled and self._compiled_loss is None:
            self._compiled_loss = CompiledLoss(self)
        loss_of = self._compiled_loss or self.loss_of
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            # dropout draws from torch's own generators
            _seed_torch(mixed_seed(generator.initial_seed(), self.global_rank), self.device)
            computed = loss_of(batch, generator, self.global_step, self._progress)
        self._log_training(computed)
        return computed.loss

    def loss_of(self, batch: Any, generator: Noise, global_step: int, progress: float) -> TrainingLoss:
        """The loss of a batch, a function of all that is given and of the model; what can be compiled.

        Args:
            batch: What the data loader gave.
            generator: Source of the noise, or what was drawn beforehand.
            global_step: Optimiser steps so far.
            progress: Share of the run that is done.
        """
        x, spec = self.data(batch).long(), self.spec
        t = stratified_steps(len(x), self.forward_process.timesteps, generator).to(self.device)  # (B,)
        size = (len(x), num_uniforms(self.latents))
        posteriors = [each.posterior(x, batch) for each in self.latents]
        drawn = draw_latents(self.latents, posteriors, uniform(size, generator))
        given = None
        if self.observed:
            given = random_subset(x, self.observed, spec.pad, uniform((len(x), 1 + spec.num_dims), generator))
            drawn = drawn.with_given(given)
        if any(isinstance(latent, ConditionLatent) and latent.dropped for latent in self.latents):
            drawn = drawn.with_dropped(uniform((len(x), 2 + len(self.latents)), generator))
        step = self.forward_process.step(x, t, drawn.condition)
        step = step if given is None else step.with_given(given)

        def terms(z_t: Tensor) -> StepTerms:
            if spec.pad is not None and not self._has_checked_draws:
                process, names = self.forward_process, [type(self.forward_process), type(self.estimator)]
                check_draws(x, z_t, spec.pad, process.num_states, " or ".join(name.__name__ for name in names))
                self._has_checked_draws = True  # once: it waits for the device
            return step_terms(step, self.reverse, z_t)

        out = self.estimator.loss(step, terms, generator, global_step)
        per_step = out.surrogate
        if out.auxiliary is not None:
            per_step = per_step + self.auxiliary_weight * (1 - progress) * out.auxiliary
        if self.latent_score is not None and out.kl is not None:
            said = drawn.said(self.forward_process.leaving(t))
            per_step = per_step + self.latent_score(drawn.log_q(), out.kl, t, said)
        kl = drawn.kl()
        num_steps = self.forward_process.timesteps.size[t]  # (B,)
        loss = ((num_steps * per_step).mean() + drawn.loss(kl)) / spec.num_dims
        return TrainingLoss(loss, out.kl, out.auxiliary, t, {name: term.detach().mean() for name, term in kl.items()})

    def _walk(self, num_steps: int) -> None:
        """Evaluate and sample in this number of steps from now on; train for all budgets."""
        self.spec = replace(self.spec, num_steps=num_steps)
        self.forward_process.walk(num_steps, [number for number in self.spec.budgets if number != num_steps])
        self.reverse.follow(self.forward_process)

    def _of_all_steps(self) -> Spec:
        """The spec of what keeps a number for every step there is."""
        return replace(self.spec, num_steps=self.forward_process.timesteps.total)

    def forget_means(self) -> None:
        """Let the running means of training start anew, in the steps of now."""
        self.estimator.start_anew(self._of_all_steps())
        self.latent_score = self._score_of_latents()

    def _score_of_latents(self) -> LatentScore | None:
        names = [type(each).__name__ for each in self.latents if each.has_score]
        if names and not self.estimator.has_kl:
            raise FLDDError(
                f"{names[0]} learns by the score of its draws, which needs the KL of a draw. "
                f"{type(self.estimator).__name__} does not have it. Use Reinforce or RLOO."
            )
        return LatentScore(self._of_all_steps()) if names else None

    def _log_training(self, computed: TrainingLoss) -> None:
        _, kl, auxiliary, t, terms = computed
        timesteps, size = self.forward_process.timesteps, len(t)
        num_steps, values = timesteps.size[t], dict(terms)
        world = 1 if self._trainer is None else self._trainer.world_size
        if auxiliary is not None:
            values["auxiliary"] = (num_steps * auxiliary).mean()
        if kl is not None:
            of_latents = sum(terms.values(), torch.zeros(()))
            bound = of_latents + (num_steps * kl).mean()
            values["bpd"] = bound / (self.spec.num_dims * log(2))
            values["nelbo"] = bound
            if self.spec.budgets:
                for i, mean in _means(num_steps * kl, timesteps.which[t], len(timesteps.numbers), world).items():
                    values[f"nelbo_T{timesteps.numbers[i]}"] = of_latents + mean
            else:
                values.update({f"kl_t{1 + i}": mean for i, mean in _means(kl, t - 1, timesteps.total, world).items()})
        self.logged = {name: value.detach() for name, value in values.items()}
        if self._trainer is not None:
            names = values if self._logs_all() else ("nelbo",) if "nelbo" in values else ()
            for name in names:
                self.log(f"train/{name}", values[name], on_step=True, prog_bar=name == "nelbo", batch_size=size)

    def _logs_all(self) -> bool:
        """Whether all terms go to the trainer at this step, and not the bound alone: each takes it a while.

        When loggers write, at the first step and the last, and at the end of an epoch.
        """
        trainer, done = self.trainer, self.global_step + 1
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        return trainer.is_last_batch or done in (1, trainer.max_steps) or (every > 0 and done % every == 0)

    def on_train_start(self) -> None:
        """Fit the latents that are fitted beforehand.

        Raises:
            FLDDError: If there are several training loaders, or the batches do not fit the model.
        """
        if isinstance(self.trainer.train_dataloader, (list, tuple, dict)):
            raise FLDDError(
                "there are several training loaders, and a model trains on one: join their data sets, with "
                "torch.utils.data.ConcatDataset."
            )
        fit_latents(self.trainer, self, self.latents, averages_of(self.trainer), self._checked)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Check batches: all on the CPU, and now and then on a device, which has to be waited for."""
        if self.device.type == "cpu" or self.global_step % _CHECK_EVERY == 0:
            self._checked(batch)
        if self._run_progress is not None:
            self._progress = min(1.0, self._run_progress(self.global_step))
        for latent in self.latents:
            latent.anneal(self._progress)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """End the run if the loss is not finite: on the CPU at once, on a device when it is waited for anyway."""
        if self.device.type == "cpu" or self.global_step % _CHECK_EVERY == 0:
            self.check_loss(outputs["loss"] if isinstance(outputs, dict) else outputs)

    def check_loss(self, loss: Tensor) -> None:
        """Say what is wrong with a loss that is not finite; this waits for the device.

        Args:
            loss: That of the last step.

        Raises:
            FLDDError: If it is NaN or infinite, with the step, the term that is, and the likely cause.
        """
        for clip in (self.clip_forward, self.clip_reverse):
            clip.warn()
        if bool(loss.isfinite()):
            return
        terms = [name for name, value in self.logged.items() if name != "nelbo" and not bool(value.isfinite())]
        raise FLDDError(
            f"the loss is not finite at step {self.global_step}" + (f", in {', '.join(terms)}" if terms else "") + ". "
            f"Most often the learning rate is too high: lower model.lr, which is {self.lr:g}. In half precision, try "
            "bf16-mixed or 32-true. Checkpoints that are there were written before, and stay."
        )

    def configure_optimizers(self) -> Any:
        """One AdamW, a parameter group for denoiser and latents and one for the forward process."""
        return self.make_optimizer(run_length(self.trainer), run_progress(self.trainer))

    def make_optimizer(self, num_steps: float, progress: Callable[[int], float]) -> dict[str, Any]:
        """The optimiser of a run that starts now, and its schedule; :meth:`configure_optimizers` for any loop.

        Args:
            num_steps: Optimiser steps of the run.
            progress: Share of the run that is done at a step.
        """
        self._run_progress = progress
        if self.forward_process.learned:
            self.held_steps = held_still(num_steps, self.freeze_steps)
        rates = (self.lr, self.lr * self.forward_lr_ratio)
        # float16 scales the loss, and a fused optimiser would undo that only after gradients are clipped
        fused = self._trainer is None or self.trainer.precision != "16-mixed"
        return two_time_scales(progress, self, self.forward_process, rates, self.held_steps, self.weight_decay, fused)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the two networks apart, each to twice the running mean of its gradient's norm."""
        clips = {"forward": self.clip_forward, "reverse": self.clip_reverse}
        is_frozen = self.global_step < self.held_steps
        clip_apart(optimizer, clips, is_frozen, gradient_clip_val, gradient_clip_algorithm)

    def configure_callbacks(self) -> list[Callback]:
        """Averages the weights; callbacks listed by the user see the averaged ones in validation."""
        if self.trainer.training:
            check_length(self.trainer)
        refuse_split_weights(self.trainer.strategy)  # here, as it is the first hook: no data have been read
        callbacks: list[Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        refuse_other_averaging(callbacks)  # Lightning would drop a plain WeightAveraging, and say so in a note
        is_there = any(isinstance(each, Averaging) for each in callbacks)  # of the training before
        return [] if is_there and not self.trainer.training else [Averaging(self.ema_decay)]

    def setup(self, stage: str) -> None:
        self._run_progress = None
        write_whole_checkpoints(self.trainer)
        check_room(self.trainer, self)
        refuse_other_averaging(self.trainer.callbacks)  # type: ignore[attr-defined]  # those of a subclass, too
        if self.trainer.precision in ("bf16-true", "16-true"):
            raise FLDDError(
                f"precision {self.trainer.precision} keeps weights in 16 bits, in which their average does not move. "
                "Use bf16-mixed."
            )
        self.adopt(getattr(self.trainer, "datamodule", None))

    @property
    def global_step(self) -> int:
        """Optimiser steps of this training, with or without a trainer."""
        return self.own_steps if self._trainer is None else super().global_step

    def fit_latents(self, batches: Any) -> None:
        """Fit the latents that are fitted before training, where there is no trainer to do it.

        Args:
            batches: The training loader, or batches that can be gone through more than once.
        """
        fit_without_trainer(batches, self, self.latents, self._checked)

    def adopt(self, data: Any) -> None:
        """Take from a data module what goes with the model: what its integers stand for.

        Args:
            data: A data module, or anything else, which says nothing.

        Raises:
            FLDDError: If it contradicts the model.
        """
        self.vocabulary = same_vocabulary(self.vocabulary, getattr(data, "vocabulary", None))
        num_values = getattr(data, "num_values", None)
        if num_values is not None:
            self.spec.check_num_values(num_values)

    # ---- evaluation -----------------------------------------------------------------------

    @torch.no_grad()
    def nelbo_terms(self, batch: Any, noise: Tensor) -> Bound:
        """Unbiased terms of the bound, one draw of z_t a step (eq. 5).

        Args:
            batch: What the data loader gives.
            noise: Float64 numbers in [0, 1), ``(B, T, D + n)``: of every step, D for z_t, n of
                :func:`~fldd_lightning.bound.num_uniforms` for the latents.
        """
        x = self._checked(batch)
        return nelbo(self.forward_process, self.reverse, self.latents, x, batch, noise)

    @torch.no_grad()
    def nelbo(self, batch: Any, draws: int = 1, seed: int = 0, batch_size: int = 256) -> Scores:
        """The bound of every example, its standard error and its terms; equal seeds give equal numbers.

        Noise goes by the seed and the example's ``index``, or its place in the batch if it has none. The batch size
        changes no more than the rounding of the networks.

        Args:
            batch: Integers ``(N, *shape)``, or what a data loader gives: a dictionary with ``x`` and what latents
                need, such as ``label``.
            draws: Of z_t at every step and of the latents, for each example; the bound is their mean.
            seed: Of the draws.
            batch_size: Examples at once.

        Raises:
            FLDDError: If the examples do not fit the model, a number is less than 1, or a weight is not finite.
        """
        check_numbers(locals(), draws=COUNT, seed=ANY_SEED, batch_size=COUNT)
        check_weights(self)
        size = len(self._checked(batch))
        was_training = self.training
        self.eval()
        index = self._told_index(batch, size)
        index = torch.arange(size) if index is None else index
        seeds = [mixed_seed(seed, draw) for draw in range(draws)]
        parts = []
        for first in range(0, size, batch_size):
            chosen = slice(first, first + batch_size)
            part = self.transfer_batch_to_device(part_of(batch, chosen), self.device, 0)
            parts.append(Scores.of([self.nelbo_terms(part, self._noise(index[chosen], each)) for each in seeds]))
        self.train(was_training)
        return Scores.joined(parts)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._evaluation_step("val", batch)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self._evaluation_step("test", batch)

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """Score examples: ``nelbo`` (nats per example) and the ``index`` of each in its split."""
        index = self._index(batch)
        return {"nelbo": self.nelbo_terms(batch, self._noise(index)).nelbo, "index": index}

    def on_predict_epoch_start(self) -> None:
        check_weights(self)
        self._num_seen = 0

    def on_validation_epoch_start(self) -> None:
        self._prepare_evaluation("val")

    def on_test_epoch_start(self) -> None:
        self._prepare_evaluation("test")

    def on_validation_epoch_end(self) -> None:
        self._log_evaluation("val")

    def on_validation_end(self) -> None:
        if self.trainer.sanity_checking:
            check_watched(self.trainer, self)

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

        Raises:
            FLDDError: If a weight is not finite, there is no such stage, or the examples do not fit the model.
        """
        check_kinds(locals(), batches=Iterable)
        if stage not in ("val", "test"):
            raise FLDDError(f"stage is {stage!r}, but it must be 'val' or 'test'.")
        was_training = self.training
        self.eval()
        self._prepare_evaluation(stage)
        for batch in batches:
            self._evaluation_step(stage, self.transfer_batch_to_device(batch, self.device, 0))
        self.train(was_training)
        return self.evaluations[stage].compute(self.forward_process.dtype)

    def _prepare_evaluation(self, stage: str) -> None:
        check_weights(self)
        self._num_seen = 0
        if stage not in self.evaluations:
            self.evaluations[stage] = Evaluation(self.spec, self.latents, self.make_metrics())
        self.evaluations[stage].reset(self.device)

    def _evaluation_step(self, stage: str, batch: Any) -> None:
        terms = self.nelbo_terms(batch, self._noise(self._index(batch)))
        self.evaluations[stage].update(terms)
        self.update_metrics(self.evaluations[stage].metrics, batch, terms.nelbo)

    def _log_evaluation(self, stage: str) -> None:
        for name, value in self.evaluations[stage].compute(self.forward_process.dtype).items():
            self.log(f"{stage}/{name}", value, prog_bar=name == "nelbo", sync_dist=False, rank_zero_only=False)

    # ---- sampling -------------------------------------------------------------------------

    @torch.no_grad()
    def sample(
        self,
        num_samples: int,
        seed: int = 0,
        num_steps: int | None = None,
        trajectory: bool = False,
        batch_size: int = 256,
        progress: bool = False,
        decoding: Decoding | None = None,
        given: Tensor | None = None,
        best_of: int = 1,
        condition: Mapping[str, Any] | None = None,
        share: tuple[int, int] = (0, 1),
    ) -> Tensor:
        """Draw samples; see :func:`fldd_lightning.sampling.ancestral_sample`.

        Args:
            num_samples: N.
            seed: Equal seeds and batch sizes give equal samples.
            num_steps: If given, must equal T, or be one that :meth:`with_num_steps` takes.
            trajectory: Return z_T..z_0, ``(T + 1, N, *shape)``.
            batch_size: Samples drawn at once.
            progress: Show a progress bar.
            decoding: How a step is drawn, with temperature and top-p; None for :class:`Ancestral`, which the bound is
                of.
            given: What samples are given: integers of one example ``shape`` or of n ``(n, *shape)``, -1 where unknown.
                N is a multiple of n, and sample i gets example i modulo n.
            best_of: How many to draw for each sample, of which the one with the lowest bound is kept. The bound is a
                mean of four draws of z_t at every step.
            condition: Labels and vectors that samples are asked to have, by the names of their latents:
                ``{"label": 3}``, or n of them ``(n,)``, ``(n, size)``. N is a multiple of n, and sample i gets value i
                modulo n. Those that are not given are drawn; see :class:`ConditionLatent`.
            share: ``(r, W)`` gives process r of W its part of the N samples alone. The parts of all processes, in their
                order, are the N samples of one process with the same seed and ``batch_size``.

        Returns:
            Integers ``(N, *shape)`` on the CPU, or those of this process's share.

        Raises:
            FLDDError: If N or ``best_of`` is not positive, an argument is of another kind, or the model takes no such
                ``num_steps``. If it cannot be decoded this way or be given anything. If a condition is none of the
                model's, or cannot be. If a weight is not finite. If there are fewer batches than processes.
        """
        check_numbers(
            locals(), num_samples=COUNT, seed=ANY_SEED, num_steps=COUNT.or_none, batch_size=COUNT, best_of=COUNT
        )
        check_kinds(locals(), trajectory=bool, progress=bool, decoding=Decoding | None, condition=Mapping | None)
        if num_steps not in (None, self.spec.num_steps):
            other: FLDD = self.with_num_steps(num_steps)
            return other.sample(
                num_samples, seed, None, trajectory, batch_size, progress, decoding, given, best_of, condition, share
            )
        rows = rows_of_share(num_samples, batch_size, share)
        size = rows.stop - rows.start
        needed = 8 * size * self.spec.num_dims * (1 + trajectory * self.spec.num_steps)
        check_memory(needed, f"drawing {size:,} samples", "Draw fewer at a time, each time with another seed.")
        check_weights(self)
        if given is not None:
            self._check_takes_given()
            given = given_rows(given, self.spec, num_samples)
        chosen = chosen_latents(condition or {}, self.latents, num_samples)
        if best_of > 1:
            chosen = with_conditions(chosen, self.latents, num_samples, seed)
            asked = as_batch(chosen, self.latents)
            known = {"index": torch.arange(rows.start, rows.stop), **part_of(asked, rows)}
            states = best_of_samples(
                best_of,
                lambda i: self.sample(
                    num_samples, mixed_seed(seed, i), num_steps, True, batch_size, progress, decoding, given, 1, asked,
                    share,
                ),
                lambda x: self.nelbo({"x": x, **known}, BOUND_DRAWS, seed, batch_size).nelbo.cpu(),
            )  # fmt: skip
            return states if trajectory else states[-1]
        was_training = self.training
        self.eval()
        parts = (self.forward_process, self.reverse, self.latents)
        batches = batches_of(rows, batch_size, seed)
        samples = draw_samples(*parts, batches, num_steps, trajectory, progress, decoding, given, chosen)
        if was_training:
            self.train()
        return samples

    def _check_takes_given(self) -> None:
        """Raise FLDDError if this model can hold no values that are given."""
        if not self.observed and not isinstance(self.reverse, MaskedReverse):
            raise FLDDError(
                f"this model of {type(self.forward_process).__name__} cannot hold values that are given: it does not "
                "tell them from noise. Train one with model.observed=0.5, or with a process that only masks."
            )

    def _check_sees_given(self) -> None:
        """Raise FLDDError if a network has to be told what is given, and cannot see it."""
        if any(isinstance(latent, GivenLatent) for latent in self.latents):
            for network in (each for each in self.modules() if isinstance(each, Backbone)):
                if not any(isinstance(part, StateEmbedding) for part in network.modules()):
                    raise FLDDError(
                        f"{type(network).__name__} cannot see which coordinates are given, which observed needs with "
                        f"{type(self.forward_process).__name__}. Use MLP or Transformer, or a process that only masks."
                    )

    def with_num_steps(self, num_steps: int) -> Any:
        """A copy of this model with another T.

        For models of several ``budgets``, and for masked diffusion whose denoiser does not see the step. A T that is
        none of the budgets takes evenly spaced times, too; it was not trained for, and a warning says so. Saved, such
        a copy is loaded with the T of the training.

        Raises:
            FLDDError: If it is another kind of model, which has its T from training, or there are too few times for T.
                If T is no whole number above 0.
        """
        check_numbers(locals(), num_steps=COUNT)
        budgets, any_order = self.spec.budgets, has_any_order(self.forward_process, self.reverse)
        if not budgets and not any_order:
            raise FLDDError(
                f"this model was trained with T={self.spec.num_steps} alone: for another T train one with budgets, as "
                f"in --model.budgets [{self.spec.num_steps},{num_steps}], or masked diffusion whose denoiser "
                "does not see the step (AbsorbingProcess, and a reverse process with time_independent: true)."
            )
        if budgets and num_steps > self.spec.grid:
            raise FLDDError(
                f"this model takes from 1 to {self.spec.grid} steps, not {num_steps}: for more, train one with "
                f"{num_steps} among its budgets."
            )
        other: FLDD = deepcopy(self)
        if any_order:
            other.spec = replace(self.spec, num_steps=num_steps)
            other.forward_process = AbsorbingProcess(other.spec).to(self.forward_process.dtype)
        elif num_steps not in budgets:
            known = ", ".join(map(str, budgets))
            rank_zero_warn(f"T={num_steps} is none of the numbers of steps that this model was trained for ({known}).")
        if any_order or num_steps in budgets:
            other.hparams["num_steps"] = num_steps
        other._walk(num_steps)
        other.forget_means()
        return other.to(self.device)

    def likely_condition(self, batch: Any) -> tuple[Tensor, ...]:
        """What networks see of a batch at the most likely latents; for pictures and monitors."""
        x = self._checked(batch)
        return tuple(each.posterior(x, batch).likely() for each in self.latents if each.seen is not None)

    # ---- what a modality may change ---------------------------------------------------------

    def data(self, batch: Any) -> Tensor:
        """The integers ``(B, *shape)`` of a batch: the batch itself, its ``"x"``, or the first of several tensors."""
        several = isinstance(batch, (list, tuple)) and len(batch) > 0
        x: Any = batch.get("x") if isinstance(batch, dict) else batch[0] if several else batch
        return x  # type: ignore[no-any-return]  # _integers checks it

    def make_metrics(self) -> dict[str, Metric]:
        """Further metrics by name; one set is made for each of ``val`` and ``test``."""
        return {}

    def update_metrics(self, metrics: dict[str, Metric], batch: Any, nelbo: Tensor) -> None:
        """Update the metrics of :meth:`make_metrics` with a batch and its NELBO ``(B,)`` in nats."""

    def render(self, x: Tensor) -> Tensor:
        """Show examples, or states on the way to them, as pictures.

        Args:
            x: Integers ``(N, *shape)``; K is MASK, where the process has one.

        Returns:
            Float pictures in [0, 1], ``(N, channels, height, width)``; one row per example here.
        """
        flat = x.flatten(2) if x.dim() > 2 else x.unsqueeze(1)
        return grey_levels(flat.unsqueeze(1), self.spec.num_classes)

    def to_text(self, x: Tensor) -> list[str] | None:
        """Write examples ``(N, *shape)``, or states with MASK as K, as one line each; None for no text."""
        return None

    def text_head(self) -> list[str]:
        """Lines that stand before those of :meth:`to_text` in a file, such as the names of columns."""
        return []

    # ---- checkpoints ----------------------------------------------------------------------

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls, checkpoint_path: Any, map_location: Any = None, trusted: Sequence[Any] = (), **overrides: Any
    ) -> Any:
        """Load a module of this class, with averaged weights. Nothing in the file is run.

        Args:
            checkpoint_path: The file.
            map_location: Where to put the weights; the CPU if None.
            trusted: Your own classes that the file may name, such as networks.
            overrides: Options in place of those in the file.

        Raises:
            FLDDError: If the file is not a checkpoint of this package, is of another class, or names a class that is
                neither this package's nor trusted.
        """
        return load_module(cls, checkpoint_path, map_location, trusted, overrides)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        map_location: Any = None,
        trusted: Sequence[Any] = (),
        force_download: bool = False,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
        **overrides: Any,
    ) -> Any:
        """Load a trained model, ready to sample. Nothing in its files is run.

        Args:
            pretrained_model_name_or_path: ``digits`` or ``text``, which come with this package; a folder that
                :meth:`save_pretrained` wrote; or ``OWNER/NAME`` on the Hugging Face hub.
            map_location: Where to put the weights; the CPU if None.
            trusted: Your own classes that the configuration may name, such as networks.
            force_download: Download again what is cached.
            token: Of the hub, for models that are not public.
            cache_dir: Where downloads are kept.
            local_files_only: Take what is cached, and use no network.
            revision: A branch, tag or commit on the hub.
            overrides: Options in place of those of the configuration.

        Raises:
            FLDDError: If there is no such model, a file is missing or damaged, it is of another class, or it names a
                class that is neither this package's nor trusted.
        """
        check_kinds(
            locals(), pretrained_model_name_or_path=str | PathLike, force_download=bool,
            cache_dir=str | PathLike | None, local_files_only=bool, revision=str | None,
        )  # fmt: skip
        hub = {"force_download": force_download, "token": token, "cache_dir": cache_dir}
        hub |= {"local_files_only": local_files_only, "revision": revision}
        return load_pretrained(cls, pretrained_model_name_or_path, map_location, trusted, overrides, **hub)

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> str | None:
        """Write a folder that :meth:`from_pretrained` loads: configuration, averaged weights and a model card.

        Args:
            save_directory: The folder. A model that is there already is replaced, its card is kept.
            options: Of ``huggingface_hub.ModelHubMixin``. ``model_card_kwargs`` are those of
                :func:`~fldd_lightning.pretrained.model_card`: ``data``, ``bound``, ``budget``, ``license``, ``notes``.

        Raises:
            FLDDError: If the folder cannot be written to, or holds a configuration of something else. If there is no
                such option.
        """
        check_kinds(locals(), save_directory=str | PathLike)
        check_options(options)
        check_own(Path(save_directory))
        made: str | None = super().save_pretrained(save_directory, **options)
        return made

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Write what :meth:`save_pretrained` writes to the Hugging Face hub; returns the address of the commit.

        Args:
            repo_id: ``OWNER/NAME``.
            options: Of ``huggingface_hub.ModelHubMixin``, such as ``private`` and ``token``, and
                ``model_card_kwargs`` as for :meth:`save_pretrained`.

        Raises:
            FLDDError: If the hub cannot be reached or does not take it, and as for :meth:`save_pretrained`.
        """
        with writing_to_hub(repo_id):
            made: str = super().push_to_hub(repo_id, **options)
        return made

    def _save_pretrained(self, save_directory: Path) -> None:
        write_folder(self, save_directory)

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """The model card; see :func:`~fldd_lightning.pretrained.model_card`."""
        return model_card(self, *args, **kwargs)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        data = checkpoint.get("datamodule_hyper_parameters")
        if data is not None:
            checkpoint["datamodule_hyper_parameters"] = plain(data)
        if "loops" in checkpoint and isinstance(getattr(self._trainer, "datamodule", None), DiscreteDataModule):
            # it keeps its place itself; Lightning refuses to go on with another kind of loader where it kept one, too
            checkpoint["loops"]["fit_loop"]["state_dict"].pop("combined_loader", None)
        checkpoint["fldd"] = about_model(self)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another configuration, naming what differs."""
        check_same(self, checkpoint)
        if checkpoint["fldd"]["settings"].get("num_steps", self.spec.num_steps) != self.spec.num_steps:
            kept = checkpoint["state_dict"].items()  # but running means, whose steps come in another order
            means = ("estimator.", "latent_score.")
            checkpoint["state_dict"] = {name: value for name, value in kept if not name.startswith(means)}
        self.vocabulary = same_vocabulary(self.vocabulary, checkpoint["fldd"].get("vocabulary"))
        self.trained_steps = int(checkpoint.get("global_step", 0))

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As always, but mistakes are told in a sentence."""
        try:
            return super().load_state_dict(state_dict, strict, assign)
        except RuntimeError as error:
            what = shorten(str(error).partition("\n")[2], 160, placeholder=" ...")
            raise FLDDError(
                f"the checkpoint is of other networks ({what}). Use the config it was trained with, and no options "
                "that change it."
            ) from error

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: without what is of a run, and metrics, which are made anew."""
        return {**super().__getstate__(), "_run_progress": None, "_compiled_loss": None, "evaluations": {}}

    # ---- batches and noise -------------------------------------------------------------------

    def _checked(self, batch: Any) -> Tensor:
        """The integers of a batch, ``(B, *shape)``; raises FLDDError where they cannot be right."""
        x = self._integers(batch)
        check_states(x, self.spec.num_classes, self.spec.shape)
        if self.spec.num_values is not None:
            check_values(x, self.spec.num_values)
        for each in self.latents:
            each.check(x, batch)
        return x.long()

    def _integers(self, batch: Any) -> Tensor:
        """What :meth:`data` finds; raises FLDDError where that is no tensor."""
        x: Any = self.data(batch)
        if not isinstance(x, Tensor):
            has_x = isinstance(batch, dict) and "x" in batch
            found = f"'x' is a {type(x).__name__}" if has_x else shorten(repr(batch), 60)
            shape = ", ".join(map(str, self.spec.shape))
            raise FLDDError(
                f"a batch is a tensor of integers (N, {shape}), or a dictionary that has one as 'x'. This is none: "
                f"{found}."
            )
        return x

    @staticmethod
    def _told_index(batch: Any, size: int) -> Tensor | None:
        """The numbers ``(B,)`` that a batch gives its examples; None if it gives none."""
        if not isinstance(batch, dict) or "index" not in batch:
            return None
        index: Any = batch["index"]
        if not isinstance(index, Tensor):
            raise FLDDError(f"index is a {type(index).__name__}, but it must be a tensor of integers ({size},).")
        check_integers(index, "index")
        if tuple(index.shape) != (size,):
            raise FLDDError(f"index has shape {tuple(index.shape)}, but the batch has {size} examples.")
        return index

    def _generator(self, *counters: int) -> SharedGenerator:
        """Noise that depends on the seed and where training stands, so that resuming repeats it."""
        generator = SharedGenerator("cpu" if self.device.type == "mps" else self.device)
        generator.manual_seed(mixed_seed(torch.initial_seed() % 2**31, 0, *counters))
        if self._trainer is not None:
            generator.world, generator.rank = self._trainer.world_size, self._trainer.global_rank
        return generator

    def _index(self, batch: Any) -> Tensor:
        """``(B,)``: what the batch says, or its examples counted; several processes take turns."""
        x = self._integers(batch)
        index = self._told_index(batch, len(x))
        if index is not None:
            return index
        seen = self._num_seen + torch.arange(len(x), device=x.device)
        self._num_seen += len(x)
        world, rank = (1, 0) if self._trainer is None else (self.trainer.world_size, self.global_rank)
        return seen * world + rank

    def _noise(self, index: Tensor, seed: int | None = None) -> Tensor:
        """For :meth:`nelbo_terms`, by each example's index and a seed; None for torch's."""
        seed = torch.initial_seed() % 2**31 if seed is None else seed
        return noise_of(index, self.spec, self.latents, seed).to(float64_device(self.device))


def _seed_torch(seed: int, device: torch.device) -> None:
    """Seed torch's own generators of the CPU and of a device.

    ``torch.manual_seed`` seeds all kinds of devices, and keeps a traceback for each that is not there, which takes
    longer than a small network.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


def _means(values: Tensor, place: Tensor, num: int, world: int) -> dict[int, Tensor]:
    """The mean of values ``(B,)`` at each of the places ``(B,)`` in 0..num-1, over the batch of all processes.

    Nothing if it has fewer values than places: then some do not occur, and only the device knows which.
    """
    if len(values) * world < num:
        return {}
    counts = values.new_zeros(num).index_add(0, place, torch.ones_like(values))
    counts, sums = summed_over_processes(torch.stack([counts, torch.zeros_like(counts).index_add(0, place, values)]))
    return dict(enumerate(sums / counts))
