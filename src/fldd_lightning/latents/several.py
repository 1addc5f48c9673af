"""All latents of a model together: made from their recipes, and fitted before training starts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from ..data.loaders import apart_from_training
from ..errors import FLDDError
from ..factory import build, public_path
from ..spec import Spec
from .base import Latent
from .condition import ConditionLatent
from .length import LengthLatent

__all__ = ["fit_latents", "fit_without_trainer", "make_latents", "settled"]


def make_latents(recipes: Any, spec: Spec) -> list[Latent]:
    """The latents that were asked for, and the length of padded sequences.

    Args:
        recipes: One recipe or several; see :func:`fldd_lightning.factory.build`.
        spec: K, shape and T.

    Raises:
        FLDDError: If two of them have one name.
    """
    several = recipes if isinstance(recipes, (list, tuple)) else [recipes]
    made = [build(recipe, Latent, spec) for recipe in several]
    says_padding = any(type(each).padding is not Latent.padding for each in made)
    if spec.padded and len(spec.shape) == 1 and not says_padding:
        made.append(LengthLatent(spec))
    names = [each.name for each in made]
    if len(set(names)) < len(names):
        raise FLDDError(f"the latents are called {', '.join(names)}, but each needs a name of its own.")
    return made


def settled(recipes: Any, latents: Sequence[Latent]) -> Any:
    """Recipes of latents in their plain form, with the sizes that the data said, so that checkpoints need no data.

    Args:
        recipes: One or several, as :func:`fldd_lightning.factory.describe` writes them.
        latents: What was made of them.
    """
    if not isinstance(recipes, (list, tuple)):
        return settled([recipes], latents)[0]
    whole = []
    for recipe, latent in zip(recipes, latents):  # a length may follow
        options = dict(recipe.get("init_args") or {})
        if isinstance(latent, ConditionLatent) and recipe["class_path"] == public_path(type(latent)):
            options[latent.size_option] = latent.size
        whole.append({**recipe, "init_args": options} if options else recipe)
    return whole


def fit_latents(
    trainer: Trainer,
    module: LightningModule,
    latents: Sequence[Latent],
    averages: Sequence[Any],
    integers: Callable[[Any], Tensor],
) -> None:
    """Fit what is fitted before training, to training examples, and give the averaged weights a copy.

    A resumed run keeps its latents. The clock of ``max_time`` starts anew afterwards. All processes get those of
    the first.

    Args:
        trainer: The trainer, whose training loader is there.
        module: The module.
        latents: Its latents.
        averages: The modules with averaged weights, which are given copies.
        integers: Gets the checked integers ``(B, *shape)`` of a batch.
    """
    if not latents:
        return
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    has_fitted = False
    for i, latent in enumerate(latents):
        copies = [average.latents[i] for average in averages]
        if latent.num_examples == 0:
            continue
        if bool(trainer.strategy.broadcast(bool(latent.is_fitted))):
            rank_zero_info(f"Keeping the {type(latent).__name__} of before: {latent.summary()}.")
        else:
            fit = _fit(trainer.train_dataloader, module, latent, integers)
            for logger in trainer.loggers:
                named = {f"{latent.name}/{key}": value for key, value in fit.items()}
                logger.log_metrics(named, step=trainer.global_step)
            has_fitted = True
            for copy in copies:  # averages were made before
                copy.load_state_dict(latent.state_dict())
        for each in (latent, *copies):
            on_cpu = {name: value.cpu() for name, value in each.state_dict().items()}
            each.load_state_dict(trainer.strategy.broadcast(on_cpu))  # the first process's
    for timer in callbacks:
        if has_fitted and isinstance(timer, Timer):
            timer.on_train_start(trainer, module)


def fit_without_trainer(
    batches: Any, module: LightningModule, latents: Sequence[Latent], integers: Callable[[Any], Tensor]
) -> None:
    """Fit what is fitted before training and has not been; see :func:`fit_latents`.

    Args:
        batches: The training loader, or batches that can be gone through more than once.
        module: The module.
        latents: Its latents.
        integers: Gets the checked integers ``(B, *shape)`` of a batch.
    """
    for latent in latents:
        if latent.num_examples and not bool(latent.is_fitted):
            _fit(batches, module, latent, integers)


def _fit(batches: Any, module: LightningModule, latent: Latent, integers: Callable[[Any], Tensor]) -> dict[str, float]:
    parts: list[Tensor] = []
    for batch in apart_from_training(batches):
        parts.append(integers(batch).to(module.device))
        if sum(map(len, parts)) >= latent.num_examples:
            break
    examples = torch.cat(parts)[: latent.num_examples]
    name = type(latent).__name__
    rank_zero_info(f"{latent.announcement.format(name=name)} {len(examples)} training examples ...")
    with _numbers_in(module.dtype):  # as Lightning's steps are
        fit = latent.fit(examples, seed=torch.initial_seed() % 2**31)
    if latent.says_nothing:
        rank_zero_info(
            f"The {name} says nothing: nothing was found that helps held-out examples. There may be nothing, or too "
            "few training examples; or, of an AutoencoderLatent, fit_steps may be too small or kl_weight too large."
        )
    elif "nll" in fit:
        rank_zero_info(
            f"{latent.summary()}. On held-out training examples: {fit['nll']:.2f} "
            f"nats by the latent alone, {fit['nll_marginals']:.2f} by a product of marginals."
        )
    else:
        rank_zero_info(f"{latent.summary()}.")
    return fit


@contextmanager
def _numbers_in(dtype: Any) -> Iterator[None]:
    """Make new tensors of real numbers in a dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
