"""Weights are averaged once: a second callback that does it is refused, from Python and on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, StochasticWeightAveraging, WeightAveraging

from fldd_lightning import FLDD, FLDDError
from fldd_lightning.cli import main
from fldd_lightning.training import Averaging
from tiny import Pairs, build, fit

DIGITS = str(Path(__file__).parents[1] / "configs" / "digits.yaml")


class Twice(FLDD):
    """Brings a second average itself."""

    def configure_callbacks(self) -> list[Callback]:
        return [*super().configure_callbacks(), EMAWeightAveraging(decay=0.9)]


@pytest.mark.parametrize("second", [EMAWeightAveraging(decay=0.9), WeightAveraging(), StochasticWeightAveraging(1e-2)])
def test_a_second_average_is_refused(tmp_path: Path, second: Callback) -> None:
    with pytest.raises(FLDDError, match=rf"remove the callback {type(second).__name__}.*Set model.ema_decay"):
        fit(tmp_path, build(), Pairs(), max_steps=2, callbacks=[second])


def test_also_where_the_model_brings_it(tmp_path: Path) -> None:
    with pytest.raises(FLDDError, match="remove the callback EMAWeightAveraging"):
        fit(tmp_path, build(Twice), Pairs(), max_steps=2)


def test_on_the_command_line_it_is_one_paragraph(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["fit", "--config", DIGITS, "--trainer.default_root_dir", str(tmp_path), "--trainer.accelerator", "cpu"]
    assert main([*args, "--trainer.callbacks+=EMAWeightAveraging", "--trainer.callbacks.decay", "0.9"]) == 1
    (message,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "model.ema_decay" in message


def test_one_trainer_trains_twice(tmp_path: Path) -> None:
    """The average of the first training is none of the user's."""
    run = fit(tmp_path, build(), Pairs(), max_steps=1, limit_val_batches=0)
    run.fit(build(), Pairs())
    callbacks: list[Any] = run.callbacks  # type: ignore[attr-defined]
    assert sum(isinstance(each, Averaging) for each in callbacks) == 1
