"""A value of validation that is watched and never logged is told before the first step, and nothing else is."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, LambdaCallback, ModelCheckpoint

from fldd_lightning import FLDD, FLDDError, NGramJudge, PerplexityCallback
from fldd_lightning.watched import check_watched
from tiny import Pairs, build, fit

LOGGED = {name: torch.zeros(()) for name in ("val/nelbo", "val/bpd", "val/kl_t1")}


class Own(Callback):
    """May log anything."""


class OwnModel(FLDD):
    """The same."""


def check(watched: str, *callbacks: Callback, model: Any = None) -> None:
    trainer: Any = SimpleNamespace(callbacks=[EarlyStopping(watched), *callbacks], callback_metrics=LOGGED)
    check_watched(trainer, model or build())


@pytest.mark.parametrize(
    ("watched", "said"),
    [
        ("val/loss", "did you mean val/nelbo"),
        ("val_loss", ""),
        ("val/nelb", "did you mean val/nelbo"),
        ("val/kl_t9", "did you mean val/kl_t1"),
        ("val/nelbo_T2", "did you mean val/nelbo"),
        ("valid_accuracy", "most often val/nelbo is meant"),
    ],
)
def test_what_no_validation_logs_is_refused(watched: str, said: str) -> None:
    with pytest.raises(FLDDError, match=f"^EarlyStopping watches {watched}, which this run does not log; {said}"):
        check(watched)


@pytest.mark.parametrize("watched", [*LOGGED, "train/nelbo", "train/kl_t3", "lr-AdamW/reverse", "collapse/moved"])
def test_what_may_be_logged_is_not(watched: str) -> None:
    check(watched)


@pytest.mark.parametrize("watched", ["val/gen_ppl_gpt2-large_T2", "val/fid_T4", "val/entropy_data"])
def test_values_of_samples_come_later(watched: str) -> None:
    check(watched, PerplexityCallback(NGramJudge()))
    with pytest.raises(FLDDError):
        check(watched)


def test_a_users_own_classes_and_functions_log_what_they_like() -> None:
    for callback in (Own(), LambdaCallback()):
        check("val/mine", callback)
    check("val/mine", model=build(OwnModel))


def test_the_first_step_is_not_reached(tmp_path: Path) -> None:
    model = build()
    callbacks = [ModelCheckpoint(monitor="val/loss")]
    with pytest.raises(FLDDError, match=r"^ModelCheckpoint watches val/loss"):
        fit(
            tmp_path,
            model,
            Pairs(),
            callbacks=callbacks,
            max_steps=1,
            num_sanity_val_steps=1,
            enable_checkpointing=True,
        )
    assert not model.logged
