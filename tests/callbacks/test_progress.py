"""The bar counts the run's steps, whatever ends the run, and knows how far it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback

from conftest import Stripes, image_model
from fldd_lightning.callbacks import RunProgressBar, progress


class Watching(Callback):
    """Remembers what the bar said after every batch; ends a run that has no end."""

    def __init__(self, most: int = 50) -> None:
        self.seen: list[tuple[str, float]] = []
        self.most = most

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        bar = trainer.progress_bar_callback.train_progress_bar  # type: ignore[union-attr]
        self.seen.append((str(bar.desc), float(bar.n)))
        trainer.should_stop = trainer.global_step >= self.most


def fit(folder: Path, watching: Watching, ckpt_path: Path | None = None, **options: Any) -> Trainer:
    run = Trainer(
        accelerator="cpu", default_root_dir=str(folder), logger=False, enable_model_summary=False,
        callbacks=[RunProgressBar(), watching], num_sanity_val_steps=0, **options,
    )  # fmt: skip
    run.fit(image_model(2), Stripes(), ckpt_path=None if ckpt_path is None else str(ckpt_path), weights_only=True)
    return run


@pytest.fixture(autouse=True)
def _every_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_SECONDS", 0.0)


@pytest.mark.parametrize("limit", [{"max_steps": 10}, {"max_epochs": 3}])
def test_steps_of_the_whole_run(tmp_path: Path, limit: Any, capsys: pytest.CaptureFixture[str]) -> None:
    watching, total = Watching(), 10 if "max_steps" in limit else 12  # 4 batches an epoch
    fit(tmp_path, watching, **limit)
    assert watching.seen == [(f"step {i}/{total}", pytest.approx(i / total)) for i in range(1, total + 1)]
    last = capsys.readouterr().out.split("\r")[-1]
    assert f"step {total}/{total} 100%" in last
    assert "train/nelbo=" in last
    assert "val/nelbo=" in last
    assert "v_num" not in last


def test_a_clock_ends_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    watching = Watching(most=10**6)
    fit(tmp_path, watching, max_time={"seconds": 1}, max_epochs=-1)
    shares = [share for _, share in watching.seen]
    assert shares == sorted(shares)
    assert 0.8 < shares[-1] <= 1.0
    assert watching.seen[-1][0] == f"step {len(shares)}"
    assert "100%" in capsys.readouterr().out.split("\r")[-1]


def test_a_run_without_an_end_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    watching = Watching(most=9)
    fit(tmp_path, watching, max_epochs=-1)
    assert watching.seen == [(f"step {i}", float(i)) for i in range(1, 10)]
    assert "%" not in capsys.readouterr().out.split("\r")[-1]


def test_a_resumed_run_starts_where_it_was(tmp_path: Path) -> None:
    run = fit(tmp_path, Watching(), max_steps=6)
    run.save_checkpoint(tmp_path / "last.ckpt")
    watching = Watching()
    run = fit(tmp_path, watching, tmp_path / "last.ckpt", max_steps=8)
    assert watching.seen == [("step 7/8", 7 / 8), ("step 8/8", 1.0)]
    bar: Any = run.progress_bar_callback
    assert bar.train_progress_bar.initial == 6 / 8  # time left counts the steps of this run alone


def test_evaluation_has_bars(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Trainer(
        accelerator="cpu", default_root_dir=str(tmp_path), logger=False, enable_model_summary=False,
        callbacks=[RunProgressBar()],
    )  # fmt: skip
    model = image_model(2)
    run.validate(model, Stripes(), verbose=False)
    run.test(model, Stripes(), verbose=False)
    run.predict(model, Stripes())
    out = capsys.readouterr().out
    for name in ("Validation", "Testing", "Predicting"):
        assert f"{name} DataLoader 0: 100%" in out
