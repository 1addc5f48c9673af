"""Trains and tests on two processes; started by test_ddp.py. Writes what each rank saw."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import Callback

from conftest import Stripes, image_model
from fldd_lightning import FLDD, AutoencoderLatent
from fldd_lightning.callbacks import CollapseMonitor, FIDCallback, Pictures
from fldd_lightning.estimators import RLOO, StepLoss
from fldd_lightning.metrics import PixelFeatures
from fldd_lightning.networks import MLPAutoencoder
from test_ddp import text_data, text_quality
from test_text import model_of
from tiny import Pairs, trainer, with_latent


class RecordingRLOO(RLOO):
    """Keeps the generator state of the first step."""

    noise: torch.Tensor | None = None

    def loss(self, step: Any, terms: Any, generator: torch.Generator, global_step: int) -> StepLoss:
        if self.noise is None:
            self.noise = generator.get_state()
        return super().loss(step, terms, generator, global_step)


class Report(Callback):
    """Saves parameters, noise and metrics of this rank, and the buffers sent before every step."""

    sent: list[str]

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.sent = list(trainer.strategy.model.named_module_buffers)

    def on_test_end(self, trainer: Any, pl_module: Any) -> None:
        assert isinstance(pl_module, FLDD)
        report = {
            "parameters": [p.detach().clone() for p in pl_module.parameters()],
            "latents": pl_module.latents.state_dict(),
            "noise": pl_module.estimator.noise,
            "sent": self.sent,
            "test": {key: float(value) for key, value in trainer.callback_metrics.items() if "test/" in key},
        }
        torch.save(report, Path(sys.argv[1]) / f"rank{trainer.global_rank}.pt")


if __name__ == "__main__":
    seed_everything(1)
    run = trainer(Path(sys.argv[1]), strategy="ddp", devices=2, max_epochs=3, callbacks=[Report(), Pictures()])
    model = with_latent(freeze_steps=1, estimator=RecordingRLOO)
    data = Pairs(batch_size=8)
    run.fit(model, data)
    run.test(model, data, verbose=False)
    model = with_latent(
        freeze_steps=1,
        latents=partial(
            AutoencoderLatent, size=2, autoencoder=partial(MLPAutoencoder, width=8), components=2, fit_steps=50
        ),
    )
    run = trainer(Path(sys.argv[1]), strategy="ddp", devices=2, max_epochs=1)
    run.fit(model, data)
    torch.save(model.latents.state_dict(), Path(sys.argv[1]) / f"autoencoder{run.global_rank}.pt")
    model = with_latent(freeze_steps=1)
    run = trainer(Path(sys.argv[1]), strategy="ddp", devices=2, max_time={"seconds": 2}, callbacks=[CollapseMonitor()])
    run.fit(model, data)
    torch.save([p.detach() for p in model.parameters()], Path(sys.argv[1]) / f"clock{run.global_rank}.pt")
    for num_samples in (90, 15):  # then with no batch for the second process
        quality = FIDCallback(PixelFeatures(), num_samples, batch_size=20)
        run = trainer(Path(sys.argv[1]), strategy="ddp", devices=2, callbacks=[quality])
        logged = run.test(image_model(2), Stripes(), verbose=False)[0]
        torch.save(logged, Path(sys.argv[1]) / f"quality{num_samples}_{run.global_rank}.pt")
    text = text_data(Path(sys.argv[1]))
    run = trainer(Path(sys.argv[1]), strategy="ddp", devices=2, callbacks=[text_quality()])
    logged = run.test(model_of(text), text, verbose=False)[0]
    torch.save(logged, Path(sys.argv[1]) / f"text{run.global_rank}.pt")
    stream = text_data(Path(sys.argv[1]), streaming=True, alphabet=" abcdef", held_out=20)
    run = trainer(Path(sys.argv[1]), strategy="ddp", devices=2, max_steps=3)
    model = model_of(stream)
    run.fit(model, stream)
    torch.save(model.latents.state_dict(), Path(sys.argv[1]) / f"lengths{run.global_rank}.pt")
