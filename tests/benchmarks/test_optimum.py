from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from optimum import KnownOptimum, energy_distance
from sources import KnownSource, XORBlocks

from conftest import small_mlp
from fldd_lightning import FLDD, FLDDError
from fldd_lightning.data import DigitsDataModule
from fldd_lightning.estimators import RLOO
from fldd_lightning.forward import AbsorbingProcess


def model_for(data: KnownSource | DigitsDataModule) -> FLDD:
    return FLDD(
        num_classes=data.num_classes,
        shape=data.shape,
        num_steps=2,
        forward_process=partial(AbsorbingProcess),
        denoiser=small_mlp,
        estimator=RLOO,
    )


def test_gap_is_the_bound_less_the_entropy_of_the_same_examples(tmp_path: Path) -> None:
    data = XORBlocks(num_train=64, num_held=300)
    trainer = Trainer(
        default_root_dir=tmp_path, accelerator="cpu", logger=False, callbacks=[KnownOptimum(200)],
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    logged = trainer.test(model_for(data), data, verbose=False)[0]
    here = -data.log_prob(data.splits["test"].x).mean().item()
    assert logged["test/gap"] == pytest.approx(logged["test/nelbo"] - here, abs=1e-4)
    assert logged["test/gap_share"] == pytest.approx(logged["test/gap"] / data.entropy, rel=1e-5)
    assert logged["test/gap"] > 0
    with pytest.raises(FLDDError, match="known log-probability"):
        trainer.test(model_for(digits := DigitsDataModule()), digits, verbose=False)


def test_energy_distance_sees_more_than_marginals() -> None:
    torch.manual_seed(0)
    a, b = torch.randint(3, (1_500, 1)).expand(-1, 2), torch.randint(3, (1_500, 1)).expand(-1, 2)
    product = torch.randint(3, (1_500, 2))
    assert abs(energy_distance(a, b, 3)) < 0.01
    # exact: E d = (2/3) between equal pairs; the share of differing coordinates is 0, 1/2, 1 for the product
    pair = 2 / 3
    mixed = (4 / 9) * 0.5**0.5 + 4 / 9
    assert energy_distance(a, product, 3) == pytest.approx(2 * mixed - pair - mixed, abs=0.02)
