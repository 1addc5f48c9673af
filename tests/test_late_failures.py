"""What would fail late fails before the first step; what fails after the last leaves all that a run should leave."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback

from conftest import Stripes
from fldd_lightning import FIDCallback, FLDDError
from fldd_lightning.callbacks import PerplexityCallback
from fldd_lightning.cli import main
from fldd_lightning.metrics import FeatureExtractor
from tiny import Pairs, build, fit

CONFIG = Path(__file__).parents[1] / "configs" / "digits.yaml"
Usage = namedtuple("Usage", "total used free")


class FailsInTheEnd(Callback):
    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        raise FLDDError("the very end")


class Steps(Callback):
    seen = 0

    def on_train_batch_start(self, *_: Any) -> None:
        self.seen += 1


class OnlyColours(FeatureExtractor):
    name = "colours"

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        raise FLDDError("colours only")


def digits(folder: Path, *args: str) -> list[str]:
    network = "{class_path: MLP, init_args: {width: 8, depth: 1, dropout: 0.2}}"
    process = f"{{class_path: LearnedMaskProcess, init_args: {{network: {network}}}}}"
    small = ["--model.latents", "[]", f"--model.denoiser={network}", f"--model.forward_process={process}"]
    shown = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
    options = ["--trainer.default_root_dir", str(folder), "--trainer.accelerator", "cpu", *shown]
    return ["fit", "--config", str(CONFIG), *small, *options, *args]


def test_what_fails_in_the_end_leaves_the_last_checkpoint_and_validation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["--trainer.max_steps", "3", "--trainer.callbacks+=test_late_failures.FailsInTheEnd"]
    assert main(digits(tmp_path, *args)) == 1
    said = capsys.readouterr()
    assert "error: the very end" in said.err
    assert "val/nelbo" in said.out
    final = next(tmp_path.rglob("final.ckpt"))
    assert torch.load(final, weights_only=True)["global_step"] == 3


def test_no_room_for_two_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 10**9, 1_000))
    assert main(digits(tmp_path, "--trainer.max_steps", "3")) == 1
    assert "0 MB left, but two checkpoints take about" in capsys.readouterr().err


def test_a_folder_that_is_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(digits(tmp_path / "file")) == 1
    assert "cannot write into" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (lambda: FIDCallback(OnlyColours()), "FIDCallback needs a ImageFLDD"),
        (lambda: PerplexityCallback(), "PerplexityCallback needs a TextFLDD"),
    ],
)
def test_callbacks_that_do_not_fit(tmp_path: Path, callback: Any, message: str) -> None:
    steps = Steps()
    with pytest.raises(FLDDError, match=message):
        fit(tmp_path, build(), Pairs(), callbacks=[callback(), steps], max_steps=1)
    assert steps.seen == 0


def test_an_extractor_that_does_not_take_the_pictures(tmp_path: Path) -> None:
    from conftest import image_model

    steps = Steps()
    with pytest.raises(FLDDError, match="colours only"):
        fit(tmp_path, image_model(2), Stripes(), callbacks=[FIDCallback(OnlyColours()), steps], max_steps=1)
    assert steps.seen == 0


# ---- in processes of their own -----------------------------------------------------------------


def started(args: list[str], **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "fldd_lightning.cli.main", *args]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment})


def wait_for(folder: Path, name: str, process: subprocess.Popen[str]) -> None:
    while not list(folder.rglob(name)):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_two_processes_stop_and_go_on_exactly(tmp_path: Path, signum: signal.Signals) -> None:
    two = ["--trainer.strategy", "ddp", "--trainer.devices", "2", "--trainer.max_steps", "150"]
    two += ["--trainer.val_check_interval", "10"]
    assert started(digits(tmp_path / "whole", *two)).wait(200) == 0
    process = started(digits(tmp_path / "half", *two))
    wait_for(tmp_path / "half", "last.ckpt", process)
    process.send_signal(signum)
    said = process.communicate(timeout=100)[1].splitlines()
    assert process.returncode == 128 + signum
    command = next(line for line in said if "Go on with: " in line).partition("Go on with: fldd-lightning ")[2]
    path = next((tmp_path / "half").rglob("last.ckpt"))
    assert torch.load(path, weights_only=True)["global_step"] < 150
    assert started([*command.split(), "--trainer.default_root_dir", str(tmp_path / "rest")]).wait(200) == 0
    states = [
        torch.load(next((tmp_path / name).rglob("final.ckpt")), weights_only=True)["state_dict"]
        for name in ("whole", "rest")
    ]
    assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(*(each.values() for each in states), strict=True))


@pytest.mark.slow
def test_slurm_requeues_and_the_next_run_goes_on(tmp_path: Path) -> None:
    """Without SLURM: its environment, and a ``scontrol`` that writes down what it is asked."""
    programs, home = tmp_path / "bin", tmp_path / "run"
    programs.mkdir()
    (programs / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    (programs / "scontrol").chmod(0o755)
    slurm = {"SLURM_NTASKS": "1", "SLURM_NTASKS_PER_NODE": "1", "SLURM_JOB_ID": "77", "SLURM_JOB_NAME": "train"}
    slurm |= {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
    slurm["PATH"] = f"{programs}{os.pathsep}{os.environ['PATH']}"
    interval = ["--trainer.val_check_interval", "10", "--trainer.plugins", "SLURMEnvironment"]
    process = started(digits(home, *interval, "--trainer.max_steps", "100000"), **slurm)
    wait_for(home, "last.ckpt", process)
    process.send_signal(signal.SIGUSR1)
    wait_for(tmp_path, "asked", process)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=100)
    assert process.returncode == 143
    assert (tmp_path / "asked").read_text() == "requeue 77\n"
    saved = torch.load(home / "hpc_ckpt_1.ckpt", weights_only=True)["global_step"]
    process = started(digits(home, *interval, "--trainer.max_steps", str(saved + 5)), **slurm)
    process.communicate(timeout=200)
    assert process.returncode == 0
    assert not (home / "hpc_ckpt_1.ckpt").exists()
    checkpoints = next(home.rglob("final.ckpt")).parent
    assert (checkpoints / "hpc_ckpt_1.ckpt").exists()
    assert torch.load(checkpoints / "final.ckpt", weights_only=True)["global_step"] == saved + 5
