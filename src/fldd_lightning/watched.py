"""Whether the values that EarlyStopping and ModelCheckpoint watch are ever logged."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, LambdaCallback, ModelCheckpoint

from .errors import FLDDError

__all__ = ["check_watched"]

_OF_THIS_PACKAGE = ("fldd_lightning", "lightning", "pytorch_lightning")
_OF_SAMPLES = re.compile(r"val/.+(_T\d+|_data)")  # the check before training draws none


def check_watched(trainer: Trainer, module: LightningModule) -> None:
    """See after the check of validation, before the first step, that a value of validation that is watched was logged.

    Other names, and runs with functions or classes of the user's own, are left to Lightning, which looks at the first
    validation: they may log what they like, when they like.

    Args:
        trainer: The trainer, whose metrics are those of a validation.
        module: What was validated.

    Raises:
        FLDDError: If a name that begins with ``val`` is none of them.
    """
    callbacks: list[object] = trainer.callbacks  # type: ignore[attr-defined]
    if any(
        isinstance(each, LambdaCallback) or type(each).__module__.partition(".")[0] not in _OF_THIS_PACKAGE
        for each in (module, *callbacks)
    ):
        return
    known = sorted(trainer.callback_metrics)
    draws = any(hasattr(each, "every_n_validations") for each in callbacks)  # FIDCallback and PerplexityCallback do
    for each in callbacks:
        watched = each.monitor if isinstance(each, (EarlyStopping, ModelCheckpoint)) else None
        if watched is None or watched in known or not watched.startswith("val"):
            continue
        if not (draws and _OF_SAMPLES.fullmatch(watched)):
            raise FLDDError(_refusal(type(each).__name__, watched, known))


def _refusal(owner: str, watched: str, known: Iterable[str]) -> str:
    near = get_close_matches(watched, known, 1)
    meant = f"did you mean {near[0]}?" if near else "most often val/nelbo is meant."
    return f"{owner} watches {watched}, which this run does not log; {meant} A validation logs {', '.join(known)}."
