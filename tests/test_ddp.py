"""Several processes: parameters in step, metrics of one process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import Stripes, image_model
from fldd_lightning.callbacks import FIDCallback, PerplexityCallback
from fldd_lightning.data import TextDataModule
from fldd_lightning.metrics import PixelFeatures
from test_text import WORDS, data_of, model_of
from tiny import Pairs, trainer, with_latent


def text_data(folder: Path, **options: Any) -> TextDataModule:
    return data_of(folder / "words.txt", cache_dir=str(folder / "cache"), **options)


def text_quality() -> PerplexityCallback:
    return PerplexityCallback(num_samples=30, batch_size=8)


def evaluated(folder: Path, model: Any, data: Any, *callbacks: Any) -> dict[str, float]:
    """By one process, with the seed of the two: the noise of an evaluation depends on it."""
    torch.manual_seed(1)
    return dict(trainer(folder, callbacks=list(callbacks)).test(model, data, verbose=False)[0])


@pytest.mark.slow
def test_two_processes_train_in_step(tmp_path: Path) -> None:
    """DDP on CPU (gloo)."""
    script = Path(__file__).with_name("ddp_script.py")
    (tmp_path / "words.txt").write_text("\n".join(WORDS * 30))
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [torch.load(tmp_path / f"rank{i}.pt", weights_only=True) for i in range(2)]
    for a, b in zip(ranks[0]["parameters"], ranks[1]["parameters"]):
        assert torch.equal(a, b)
    assert torch.equal(ranks[0]["noise"], ranks[1]["noise"])  # of the whole batch, of which each takes its rows
    assert ranks[0]["sent"]
    assert not any(name.startswith("latents.") for name in ranks[0]["sent"])
    assert bool(ranks[0]["latents"]["0.is_fitted"])
    assert int((ranks[0]["latents"]["0.log_prior"] > -torch.inf).sum()) > 1
    for name, value in ranks[0]["latents"].items():
        assert torch.equal(value, ranks[1]["latents"][name])
    for kind in ("autoencoder", "lengths"):
        trained = [torch.load(tmp_path / f"{kind}{i}.pt", weights_only=True) for i in range(2)]
        assert bool(trained[0]["0.is_fitted"])
        for name, value in trained[0].items():
            assert torch.equal(value, trained[1][name])
    clocks = [torch.load(tmp_path / f"clock{i}.pt", weights_only=True) for i in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*clocks, strict=True))
    model = with_latent(freeze_steps=1)
    model.latents.load_state_dict(ranks[1]["latents"])  # type: ignore[attr-defined]
    with torch.no_grad():
        for p, value in zip(model.parameters(), ranks[0]["parameters"]):
            p.copy_(value)
    alone = evaluated(tmp_path, model, Pairs(batch_size=5))
    for key, value in ranks[1]["test"].items():
        assert value == pytest.approx(alone[key], rel=1e-5), key
    for num_samples in (90, 15):
        quality = FIDCallback(PixelFeatures(), num_samples, batch_size=20)
        alone = evaluated(tmp_path, image_model(2), Stripes(), quality)
        for i in range(2):
            for key, value in torch.load(tmp_path / f"quality{num_samples}_{i}.pt", weights_only=True).items():
                assert value == pytest.approx(alone[key], rel=1e-4), key
    assert {"test/frechet_pixels_T2", "test/coverage_pixels_T2", "test/recall_pixels_T2"} <= alone.keys()
    data = text_data(tmp_path)
    alone = evaluated(tmp_path, model_of(data), data, text_quality())
    for i in range(2):
        for key, value in torch.load(tmp_path / f"text{i}.pt", weights_only=True).items():
            assert value == pytest.approx(alone[key], rel=1e-4), key
    assert {"test/gen_ppl_5gram_T2", "test/distinct_4_data", "test/bits_per_char_T2"} <= alone.keys()
