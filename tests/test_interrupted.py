"""A run that is ended by a signal, or killed, goes on to the weights of one that was not: bit for bit."""

from __future__ import annotations

import os
import random
import signal
import time
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from PIL import Image
from torch import nn

from fldd_lightning import (
    AutoencoderLatent,
    ImageDataModule,
    ImageFLDD,
    LastCheckpoint,
    LearnedMaskProcess,
    MixtureLatent,
    SaveOnSignal,
)
from fldd_lightning.interrupted import Interrupted
from fldd_lightning.networks import MLP, MLPAutoencoder
from test_text import WORDS, data_of, model_of
from test_text import tiny as transformer
from tiny import Pairs, build, fit

dropout_mlp = partial(MLP, width=8, depth=2, embedding=4, dropout=0.3)


class Signal(Callback):
    """Sends this process a signal at a batch, or in the next validation, twice if ``again``."""

    def __init__(self, signum: int, batch: int, in_validation: bool = False, again: bool = False) -> None:
        self.signum, self.batch, self.in_validation, self.again = signum, batch, in_validation, again
        self.seen = 0

    def on_train_batch_start(self, *_: Any) -> None:
        self.seen += 1
        if self.seen == self.batch and not self.in_validation:
            self.send()

    def on_validation_batch_start(self, *_: Any) -> None:
        if self.seen >= self.batch and self.in_validation:
            self.send()

    def send(self) -> None:
        for _ in range(1 + self.again):
            os.kill(os.getpid(), self.signum)


def masks(**options: Any) -> Any:
    process = partial(LearnedMaskProcess, network=dropout_mlp)
    return build(forward_process=process, denoiser=dropout_mlp, **options)


def pictures(folder: Path) -> ImageDataModule:
    home = folder / "pictures"
    if not home.exists():
        home.mkdir()
        generator = torch.Generator().manual_seed(0)
        for i in range(40):
            noise = torch.randint(256, (4, 4), generator=generator, dtype=torch.uint8)
            Image.fromarray(noise.numpy()).save(home / f"{i}.png")
    options: dict[str, Any] = {"levels": 2, "stochastic": True, "flip": True, "num_val": 4, "batch_size": 4}
    return ImageDataModule(str(home), num_workers=2, **options)


def image_run(folder: Path) -> tuple[Any, Any]:
    data = pictures(folder)
    process = partial(LearnedMaskProcess, network=dropout_mlp)
    return ImageFLDD(2, data.shape, process, dropout_mlp, num_steps=2, freeze_steps=0), data


def stream_run(folder: Path, workers: int) -> tuple[Any, Any]:
    (folder / "words.txt").write_text("\n".join(WORDS * 30))
    options = {"streaming": True, "alphabet": " abcdef", "held_out": 20, "num_workers": workers}
    data = data_of(folder / "words.txt", cache_dir=str(folder / "cache"), **options)
    return model_of(data, network=partial(transformer, dropout=0.3)), data


def fitted(size: int, steps: int) -> Any:
    autoencoder = partial(MLPAutoencoder, width=8)
    return partial(AutoencoderLatent, size=size, autoencoder=autoencoder, components=2, fit_steps=steps)


RUNS: dict[str, Any] = {
    "latent": lambda _: (masks(latents=partial(MixtureLatent, size=4)), Pairs(batch_size=8)),
    "long fit": lambda _: (masks(latents=fitted(2, 300)), Pairs(batch_size=8)),
    "workers": lambda _: (masks(), Pairs(batch_size=8, num_workers=2)),
    "stream": partial(stream_run, workers=0),
    "stream, workers": partial(stream_run, workers=3),
    "pictures": image_run,
}


def run(folder: Path, name: str, ckpt_path: Path | None = None, *callbacks: Any, **options: Any) -> nn.Module:
    seed_everything(1)
    model, data = RUNS[name](folder)
    kept = [LastCheckpoint(str(folder / "kept"), 100), SaveOnSignal(), *callbacks]
    options = {"max_steps": 13, "limit_val_batches": 1, "enable_checkpointing": True, **options}
    fit(folder, model, data, None if ckpt_path is None else str(ckpt_path), callbacks=kept, **options)
    return model  # type: ignore[no-any-return]


def same(a: nn.Module, b: nn.Module) -> bool:
    pairs = zip(a.state_dict().items(), b.state_dict().values(), strict=True)
    return all(torch.equal(x.nan_to_num(), y.nan_to_num()) for (_, x), y in pairs)


@pytest.mark.parametrize(
    ("name", "batch", "options"),
    [
        ("latent", 3, {}),
        ("latent", 11, {"accumulate_grad_batches": 3}),
        ("workers", 10, {}),
        pytest.param("stream", 5, {}, marks=pytest.mark.slow),
        ("stream, workers", 5, {}),
        ("pictures", 7, {}),
    ],
)
def test_a_run_that_a_signal_ended_goes_on_exactly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, batch: int, options: dict[str, Any]
) -> None:
    whole = run(tmp_path, name, **options)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted) as ended:
        run(tmp_path, name, None, Signal(signal.SIGTERM, batch), **options)
    assert ended.value.code == 143
    assert signal.getsignal(signal.SIGTERM) == before
    said = capsys.readouterr().err.splitlines()[-1]
    step = -(-batch // options.get("accumulate_grad_batches", 1))
    path = tmp_path / "kept" / "last.ckpt"
    assert torch.load(path, weights_only=True)["global_step"] >= step
    assert f"; saved in '{path}'. Go on with: fldd-lightning fit --ckpt_path {path}" in said
    assert same(whole, run(tmp_path, name, path, **options))


class Enough(Callback):
    """Ends training after a batch, as a limit of time does."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        trainer.should_stop = batch_idx + 1 == self.batch


def test_a_run_that_ended_goes_on_exactly(tmp_path: Path) -> None:
    whole = run(tmp_path, "latent")
    path = tmp_path / "kept" / "last.ckpt"
    path.unlink()
    run(tmp_path, "latent", None, Enough(5))
    assert torch.load(path, weights_only=True)["global_step"] == 5
    assert same(whole, run(tmp_path, "latent", path))


def test_a_run_that_was_at_its_end_has_the_weights_of_the_end(tmp_path: Path) -> None:
    whole = run(tmp_path, "latent")
    assert same(whole, run(tmp_path, "latent", tmp_path / "kept" / "last.ckpt"))


@pytest.mark.parametrize(("end", "step"), [({"max_steps": 5}, 5), ({"max_steps": -1, "max_epochs": 1}, 8)])
def test_a_short_run_can_go_on(tmp_path: Path, end: dict[str, int], step: int) -> None:
    run(tmp_path, "latent", **end)
    assert torch.load(tmp_path / "kept" / "last.ckpt", weights_only=True)["global_step"] == step


@pytest.mark.parametrize(
    ("how", "status", "step", "said"),
    [
        (Signal(signal.SIGINT, 3, in_validation=True), 130, 5, "Stopped by Ctrl-C at step 5; saved in"),
        (Signal(signal.SIGINT, 3, again=True), 130, None, "Stopped by Ctrl-C at step 2. There is no checkpoint"),
        (Signal(signal.SIGTERM, 3, again=True), 143, 3, "Stopped by SIGTERM at step 3; saved in"),
    ],
)
def test_a_validation_is_waited_for_and_a_second_ctrl_c_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], how: Signal, status: int, step: int | None, said: str
) -> None:
    with pytest.raises(Interrupted) as ended:
        run(tmp_path, "latent", None, how, val_check_interval=4)
    assert ended.value.code == status
    told = capsys.readouterr().err
    assert said in told
    assert ("Stopping after this validation" in told) == how.in_validation
    path = tmp_path / "kept" / "last.ckpt"
    assert path.exists() == (step is not None)
    assert step is None or torch.load(path, weights_only=True)["global_step"] == step


def killable(folder: Path, name: str, path: Path | None, every: int, out: Path) -> None:
    """A run that writes its weights in the end; what a process is started with."""
    torch.set_num_threads(1)
    seed_everything(1)
    model, data = RUNS[name](folder)
    kept = LastCheckpoint(str(folder / "kept"), every)
    given = None if path is None else str(path)
    options = {"max_steps": 30, "limit_val_batches": 0, "enable_checkpointing": True, "accumulate_grad_batches": 2}
    fit(folder, model, data, given, callbacks=[kept], **options)
    torch.save(model.state_dict(), out)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["long fit", "workers", "stream"])
def test_a_run_that_is_killed_ten_times_goes_on_exactly(tmp_path: Path, name: str) -> None:
    """In the fit of a latent, between steps and while checkpoints are written, one after every step."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["test_interrupted"])
    start = context.Process

    def timed(home: Path, path: Path | None, out: str) -> Any:
        home.mkdir(exist_ok=True)
        return start(target=killable, args=(home, name, path, 1, tmp_path / out))

    (warm := timed(tmp_path / "whole", None, "warm.pt")).start()  # imports
    warm.join()
    began = time.monotonic()
    (whole := timed(tmp_path / "whole", None, "whole.pt")).start()
    whole.join()
    assert whole.exitcode == 0
    length, home = time.monotonic() - began, tmp_path / "killed"
    moments, last = random.Random(0), home / "kept" / "last.ckpt"
    for _ in range(10):
        (each := timed(home, last if last.exists() else None, "unused.pt")).start()
        each.join(moments.uniform(0.1, 0.8) * length)
        each.kill()
        each.join()
    (rest := timed(home, last if last.exists() else None, "rest.pt")).start()
    rest.join()
    assert rest.exitcode == 0
    a, b = (torch.load(tmp_path / name, weights_only=True) for name in ("whole.pt", "rest.pt"))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name].nan_to_num(), b[name].nan_to_num()) for name in a)
