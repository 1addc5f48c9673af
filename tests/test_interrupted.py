"""A run that is ended by a signal, or killed, goes on to the weights of one that was not: bit for bit."""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from PIL import Image
from torch import nn

from fldd_lightning import ImageDataModule, ImageFLDD, LastCheckpoint, LearnedMaskProcess, MixtureLatent, SaveOnSignal
from fldd_lightning.callbacks.signals import Interrupted
from fldd_lightning.networks import MLP
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


RUNS: dict[str, Any] = {
    "latent": lambda _: (masks(latents=partial(MixtureLatent, size=4)), Pairs(batch_size=8)),
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
        ("stream", 5, {}),
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
