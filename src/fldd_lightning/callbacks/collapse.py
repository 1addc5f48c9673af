"""Tells in plain words when a learned forward process has collapsed or does not move."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer

from ..data.loaders import apart_from_training
from ..forward import ForwardProcess, LearnedMaskProcess, MaskProcess
from ..latents import LabelLatent, LengthLatent
from ..module import FLDD
from ..ranges import BELOW_ONE, BETWEEN, UP_TO_ONE, check_numbers

__all__ = ["CollapseMonitor", "dependence_on_x", "marginal_entropy", "moved_from_base", "observed"]

_EVERY = 4  # the gradient of each fourth step is looked at, as that takes as long as the optimiser


class CollapseMonitor(Callback):
    """Compares ``val/nelbo`` with the entropy of the data's marginals, sum_i H(x_i).

    A collapsed process puts all information into one step, and its bound equals that of a
    product of the data's marginals. Warns of that once per run, also when the bound is no lower than that of the
    latents alone. Warns at the end of a run whose bound was lowest before the forward process moved. Logs at every
    validation:

    - ``collapse/marginal_entropy``: of the training data, in nats per example, given where the padding is.
    - ``collapse/share_t{t}``: share of each step in the KL.
    - ``collapse/moved``: mean total variation between the learned marginals and their base, over one validation batch.
    - ``collapse/spread`` and ``collapse/mask_nats``: how the schedule depends on x; see :func:`dependence_on_x`.
    - ``collapse/gradient_snr``: of every fourth step; see :class:`GradientSNR`.

    Args:
        share: Share of one step above which the KL counts as being in one step.
        margin: How far below the marginals' entropy the bound must lie, as a share of it.
    """

    def __init__(self, share: float = 0.95, margin: float = 0.02) -> None:
        check_numbers(locals(), share=UP_TO_ONE, margin=BELOW_ONE)
        self.share, self.margin = share, margin
        self._marginal_entropy: float | None = None
        self._batch: Any = None
        self._warned = False
        self._lowest: tuple[float, int] | None = None  # val/nelbo and its step
        self._validated = 0  # the step of the last validation
        self._snr = GradientSNR()

    def state_dict(self) -> dict[str, Any]:
        """The lowest bound so far and its step, and whether the user has been warned."""
        return {"lowest": self._lowest, "warned": self._warned}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._lowest, self._warned = state_dict["lowest"], state_dict["warned"]

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if not isinstance(pl_module, FLDD) or trainer.global_step % _EVERY:
            return
        if trainer.global_step >= pl_module.held_steps:
            self._snr.update(pl_module.forward_process.parameters())

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if batch_idx == 0:
            self._batch = batch

    @torch.no_grad()
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not isinstance(pl_module, FLDD) or trainer.sanity_checking or trainer.train_dataloader is None:
            return
        if self._marginal_entropy is None:
            # the first process's, as streams differ: all must warn, or none
            self._marginal_entropy = trainer.strategy.broadcast(marginal_entropy(trainer, pl_module))
        pl_module.log("collapse/marginal_entropy", self._marginal_entropy)
        metrics = pl_module.evaluations["val"].bound.compute()  # the module's own epoch end comes later
        steps = pl_module.spec.num_steps
        kl = torch.stack([metrics[f"kl_t{t}"] for t in range(1, steps + 1)]).clamp_min(0)
        shares = kl / kl.sum().clamp_min(1e-12)
        for t, value in enumerate(shares, start=1):
            pl_module.log(f"collapse/share_t{t}", value.float())
        process = pl_module.forward_process
        moved = trainer.strategy.broadcast(moved_from_base(pl_module, self._batch))
        if moved is not None:
            pl_module.log("collapse/moved", moved)
        depends = trainer.strategy.broadcast(dependence_on_x(pl_module, self._batch))
        if depends is not None:
            pl_module.log_dict({"collapse/spread": depends[0], "collapse/mask_nats": depends[1]})
        snr = self._snr.compute()
        if snr is not None:
            pl_module.log("collapse/gradient_snr", snr)
        bound, error, self._validated = float(metrics["nelbo"]), float(metrics["nelbo_se"]), trainer.global_step
        if self._lowest is None or bound < self._lowest[0]:
            self._lowest = bound, trainer.global_step
        past_freeze = trainer.global_step >= max(1, 2 * pl_module.freeze_steps)
        if process.learned and past_freeze and not self._warned:
            nll = pl_module.evaluations["val"].metrics.get("nll_latent")
            of_latents = None if nll is None else float(nll.compute())
            of_names = {latent.name: float(metrics[f"kl_{latent.name}"]) for latent in pl_module.latents}
            given = sum(of_names[name] for name in observed(pl_module))  # the marginals' entropy is given those
            self._warn(shares, bound, error, bound - given, moved, of_latents)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not isinstance(pl_module, FLDD) or not pl_module.forward_process.learned or self._lowest is None:
            return
        step, freeze = self._lowest[1], pl_module.held_steps
        if step <= freeze < self._validated:
            rank_zero_warn(
                f"The best checkpoint has nothing of what the forward process learned. val/nelbo was lowest at step "
                f"{step}, and the process was held still until step {freeze} (freeze_steps). Lower freeze_steps, or "
                "start from a base that leaves more to learn, such as AbsorbingProcess."
            )

    def _warn(
        self,
        shares: Tensor,
        bound: float,
        error: float,
        of_values: float,
        moved: float | None,
        of_latents: float | None,
    ) -> None:
        assert self._marginal_entropy is not None
        floor = self._marginal_entropy * (1 - self.margin)
        if float(shares.max()) > self.share and of_values > floor:
            self._warned = True
            rank_zero_warn(
                f"The forward process has collapsed: step t={int(shares.argmax()) + 1} carries "
                f"{100 * float(shares.max()):.0f} % of the KL, and the bound {of_values:.3f} is no better than a "
                f"product of the data's marginals ({self._marginal_entropy:.3f} nats). Try a longer freeze_steps, a "
                "smaller forward_lr_ratio, another base process, or RLOO with several samples."
            )
        elif of_latents is not None and bound >= of_latents:
            self._warned = True
            rank_zero_warn(self._nothing_added(bound, error, of_latents))
        elif moved is not None and moved < 1e-3:
            self._warned = True
            rank_zero_warn(
                f"The forward process has hardly moved from its base (total variation {moved:.1e}). Try a larger "
                "forward_lr_ratio, a shorter freeze_steps or a longer run."
            )

    def _nothing_added(self, bound: float, error: float, of_latents: float) -> str:
        """A sentence for a bound that is no lower than that of the latents alone."""
        assert self._lowest is not None
        lowest, step = self._lowest
        said = f"val/nelbo is {bound:.3f} nats, and val/nll_latent, of the latents alone, {of_latents:.3f}. "
        if lowest < bound - 2 * error:
            return (
                f"The model overfits: {said}At step {step} val/nelbo was {lowest:.3f}. Use that checkpoint (best-*), "
                "and train with dropout, fewer steps or more examples."
            )
        return f"The steps add nothing to the latents so far: {said}Train longer, unless it stays so."


class GradientSNR:
    """Signal-to-noise ratio of a gradient: |mean|^2 / (total variance), over its last values.

    The squared norm of a running mean of noisy gradients holds (1 - d) / (1 + d) of their
    variance, d being the decay; that part is taken off.

    Args:
        decay: d.
    """

    def __init__(self, decay: float = 0.98) -> None:
        check_numbers(locals(), decay=BETWEEN)
        self.decay = decay
        self._mean: Tensor | None = None
        self._square: Tensor | None = None
        self._seen: Tensor | None = None  # steps that were finite

    @torch.no_grad()
    def update(self, parameters: Iterable[nn.Parameter]) -> None:
        """Take in the gradients of a step; steps without any, or that are not finite, are left out.

        The device is not waited for.
        """
        grads = [p.grad.flatten().float() for p in parameters if p.grad is not None]
        if not grads:
            return
        gradient = torch.cat(grads)
        square = gradient.dot(gradient)
        if self._mean is None or self._square is None or self._seen is None:
            self._mean, self._square = torch.zeros_like(gradient), torch.zeros_like(square)
            self._seen = torch.zeros_like(square, dtype=torch.long)
        is_new = square.isfinite()
        share = torch.where(is_new, 1 - self.decay, 0.0)
        self._mean.lerp_(gradient.nan_to_num_(0.0, 0.0, 0.0), share)
        self._square.lerp_(torch.where(is_new, square, 0.0), share)
        self._seen.add_(is_new)

    def compute(self) -> float | None:
        """The ratio, or None before 10 steps have been seen; this waits for the device."""
        if self._mean is None or self._square is None or self._seen is None or int(self._seen) < 10:
            return None
        correction = 1 - self.decay ** int(self._seen)
        total = float(self._square) / correction
        # share of the variance that is left in the bias-corrected running mean
        left = (1 - self.decay) / (1 + self.decay) * (1 - self.decay ** (2 * int(self._seen))) / correction**2
        of_mean = float(self._mean.square().sum()) / correction**2
        signal = max(0.0, (of_mean - left * total) / (1 - left))
        return signal / max(total - signal, 1e-30)


def marginal_entropy(trainer: Trainer, module: FLDD) -> float:
    """sum_i H(x_i) of the training data in nats per example, from at most 50,000 examples.

    With PAD, sum_i P(x_i is not PAD) H(x_i | x_i is not PAD): what a product costs given the padding.
    """
    num_classes = module.spec.num_classes
    counts = torch.zeros(module.spec.num_dims, num_classes, dtype=torch.float64)
    seen = 0
    for batch in apart_from_training(trainer.train_dataloader):
        x = module.data(batch).flatten(1).long().cpu()  # (B, D)
        counts.scatter_add_(1, x.T, torch.ones_like(x.T, dtype=torch.float64))
        seen += len(x)
        if seen >= 50_000:
            break
    if module.spec.pad is not None:
        counts[:, module.spec.pad] = 0
    live = counts.sum(1)  # (D,)
    return float((torch.xlogy(live, live).sum() - torch.xlogy(counts, counts).sum()) / seen)


def observed(module: FLDD) -> list[str]:
    """The names of the latents that the data say, which are given where the values of x are compared."""
    return [str(latent.name) for latent in module.latents if isinstance(latent, (LabelLatent, LengthLatent))]


def moved_from_base(module: FLDD, batch: Any) -> float | None:
    """Mean total variation between the learned and the base marginals over 0 < t < T, without PAD."""
    process = module.forward_process
    base = getattr(process, "base", None)
    if not isinstance(base, ForwardProcess) or batch is None or module.spec.num_steps < 2:
        return None
    x, t, condition = _between(module, batch)
    if isinstance(process, LearnedMaskProcess):  # x and MASK are all there is
        distance = (process.kept(x, t, condition) - process.kept_at_start(x, t)).abs()  # (B, T - 1, *shape)
    else:
        difference = process.log_marginals(x, t, condition).exp() - base.log_marginals(x, t).exp()
        distance = 0.5 * difference.abs().sum(-1)
    return float(distance[_live(module, x, distance)].mean())


def dependence_on_x(module: FLDD, batch: Any) -> tuple[float, float] | None:
    """How a learned mask schedule depends on x, over one batch; None for other processes.

    Args:
        module: The model.
        batch: What the data loader gives.

    Returns:
        The standard deviation of q(z_t^i = x^i|x) over examples, mean over coordinates and 0 < t < T. And what the
        masks say of x, sum_i H(mean_x gamma_t^i) - mean_x H(gamma_t^i) in nats, mean over t. That is an upper bound of
        the information that they carry. Both are 0 where all examples share the schedule.
    """
    process = module.forward_process
    if not (process.learned and isinstance(process, MaskProcess)) or batch is None or module.spec.num_steps < 2:
        return None
    x, t, condition = _between(module, batch)
    kept = process.kept(x, t, condition).double().cpu()  # (B, T - 1, *shape); 1 at PAD
    live = _live(module, x.cpu(), kept).double()
    count = live.sum(0).clamp_min(1)  # (T - 1, *shape)
    mean = (kept * live).sum(0) / count
    variance = ((kept - mean).square() * live).sum(0) / count
    lost = _binary_entropy(mean) - (_binary_entropy(kept) * live).sum(0) / count
    shown = live.mean(0)  # how often the coordinate is there
    spread = (variance.sqrt() * shown).sum() / shown.sum().clamp_min(1e-12)
    return float(spread), float((lost * shown).flatten(1).sum(1).mean())


def _between(module: FLDD, batch: Any) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """The integers of a batch, the times of 0 < t < T of each example ``(B, T - 1)``, and what networks see."""
    x = module.data(batch).long()
    steps = torch.arange(1, module.spec.num_steps, device=x.device)
    t = module.forward_process.timesteps.t[steps].expand(len(x), -1)
    return x, t, module.likely_condition(batch)


def _live(module: FLDD, x: Tensor, like: Tensor) -> Tensor:
    """Where ``x`` is not PAD, ``(B, *shape)`` expanded to ``(B, T - 1, *shape)``."""
    pad = -1 if module.spec.pad is None else module.spec.pad
    return (x != pad).unsqueeze(1).expand_as(like)


def _binary_entropy(p: Tensor) -> Tensor:
    return -(torch.xlogy(p, p) + torch.xlogy(1 - p, 1 - p))
