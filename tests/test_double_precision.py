"""``precision="64-true"``: every kind of process, latent and network trains, resumes and samples, all in float64."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import PROCESSES, small_mlp
from fldd_lightning import (
    AutoencoderLatent,
    ChainLatent,
    Concrete,
    DiT,
    ExactMasks,
    LabelLatent,
    MaskedReverse,
    MixtureLatent,
    PredictingReverse,
    Split,
    TrainedMixtureLatent,
    Transformer,
    UNet,
    load_model,
)
from fldd_lightning.cli import main
from fldd_lightning.data import DiscreteDataModule
from tiny import build, fit, trainer

ONCE = partial(MaskedReverse, time_independent=True)
CASES: dict[str, dict[str, Any]] = {
    **{name: {"forward_process": process} for name, process in PROCESSES.items()},
    "padded": {"forward_process": PROCESSES["uniform"], "padded": True},
    "predicting": {"forward_process": PROCESSES["d3pm"], "reverse": PredictingReverse},
    "concrete": {"forward_process": PROCESSES["residual_absorbing"], "estimator": Concrete},
    "exact": {"forward_process": PROCESSES["absorbing"], "estimator": ExactMasks, "reverse": ONCE},
    "mixture": {"latents": partial(MixtureLatent, size=4)},
    "trained": {"latents": partial(TrainedMixtureLatent, size=4), "forward_process": PROCESSES["learned_mask"]},
    "chain": {"latents": partial(ChainLatent, size=4), "forward_process": PROCESSES["learned_mask"]},
    "autoencoder": {
        "latents": partial(AutoencoderLatent, size=2, fit_steps=3),
        "forward_process": PROCESSES["learned_mask"],
    },
    "label": {"latents": partial(LabelLatent, num_labels=3)},
    "transformer": {"denoiser": partial(Transformer, width=16, depth=1, heads=2)},
    "dit": {"denoiser": partial(DiT, patch=1, width=8, depth=1, heads=2), "shape": (2, 2), "estimator": Concrete},
    "unet": {"denoiser": partial(UNet, widths=(8,), heads=2), "shape": (2, 2)},
}


class Labelled(DiscreteDataModule):
    """Four values, the last of which is PAD for those who want it, with labels."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(batch_size=16)
        self.size = shape

    def load(self) -> dict[str, Split]:
        x = torch.randint(3, (96, *self.size), generator=torch.Generator().manual_seed(0))
        if len(self.size) == 1:
            x[::2, -1] = 3
        parts = zip(("train", "val", "test"), x.split(32))
        return {name: Split(part, part.flatten(1)[:, 0]) for name, part in parts}


@pytest.mark.parametrize("name", CASES)
def test_all_of_a_run(name: str, tmp_path: Path) -> None:
    options = {"num_classes": 4, "shape": (4,), **CASES[name]}
    data = partial(Labelled, options["shape"])
    make = partial(build, **options)
    half = fit(tmp_path, make(), data(), precision="64-true", max_steps=2)
    half.save_checkpoint(tmp_path / "half.ckpt", weights_only=False)
    resumed = make()
    run = fit(tmp_path, resumed, data(), str(tmp_path / "half.ckpt"), precision="64-true", max_steps=3)
    assert all(p.dtype == torch.float64 for p in resumed.parameters())
    run.save_checkpoint(tmp_path / "model.ckpt")
    loaded = load_model(tmp_path / "model.ckpt")
    assert torch.equal(loaded.sample(4), resumed.sample(4))
    batch = next(iter(data().test_dataloader()))
    terms = loaded.nelbo_terms(batch, loaded._noise(batch["index"]))
    assert {each.dtype for each in (terms.kl, *terms.further.values())} == {torch.float64}
    values = loaded.evaluate(data().test_dataloader())
    assert {value.dtype for value in values.values()} == {torch.float64}
    for command in (run.validate, run.test, trainer(tmp_path).test):
        assert command(loaded, data(), verbose=False)
    assert run.predict(loaded, data())


def test_resuming_loses_no_digit(tmp_path: Path) -> None:
    """Lightning reads checkpoints before it puts the module into float64."""
    options = {"num_classes": 4, "shape": (4,)}
    one = build(**options)
    run = fit(tmp_path, one, Labelled((4,)), precision="64-true", max_steps=4)
    run.save_checkpoint(tmp_path / "one.ckpt", weights_only=False)
    saved = torch.load(tmp_path / "one.ckpt", weights_only=True)["state_dict"]
    other = build(**options)
    fit(tmp_path, other, Labelled((4,)), str(tmp_path / "one.ckpt"), precision="64-true", max_steps=4)
    assert all(torch.equal(saved[name], p) for name, p in other.named_parameters())
    assert any(not torch.equal(p, p.float().double()) for p in other.parameters())


def test_marginals_are_normalised_to_float64() -> None:
    for process in PROCESSES.values():
        model = build(forward_process=process, denoiser=small_mlp, num_steps=3).double()
        x = torch.tensor([[0, 1], [2, 2]])
        with torch.no_grad():
            log_u = model.forward_process.log_marginals(x, torch.arange(4).expand(2, -1))
        assert log_u.dtype == torch.float64
        assert float((log_u.exp().sum(-1) - 1).abs().max()) < 1e-14


def test_on_the_command_line(tmp_path: Path) -> None:
    config = Path(__file__).parents[1] / "configs" / "digits.yaml"
    quick = ["--trainer.precision", "64-true", "--trainer.accelerator", "cpu", "--trainer.limit_val_batches", "1"]
    args = ["fit", "--config", str(config), "--trainer.default_root_dir", str(tmp_path), *quick]
    assert main([*args, "--trainer.max_steps", "2", "--trainer.val_check_interval", "2"]) == 0
    path = str(next(tmp_path.rglob("final.ckpt")))
    test = ["test", "--ckpt_path", path, *quick, "--trainer.logger", "false", "--trainer.limit_test_batches", "1"]
    assert main(test) == 0
    assert main(["sample", "--ckpt_path", path, "--num_samples", "2", "--output", str(tmp_path / "s")]) == 0
