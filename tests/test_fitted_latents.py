"""The way of a fitted latent through training."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from importlib import import_module
from pathlib import Path
from time import sleep
from typing import Any
from unittest.mock import patch

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, WeightAveraging
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch.utils.data import BatchSampler, DataLoader, SubsetRandomSampler

from conftest import randomise
from fldd_lightning import FLDD, AutoencoderLatent, ChainLatent, FLDDError, MixtureLatent, TrainedMixtureLatent
from fldd_lightning.bound import step_terms
from fldd_lightning.callbacks import CollapseMonitor
from fldd_lightning.data import DiscreteDataModule, Split
from fldd_lightning.estimators import RLOO
from fldd_lightning.latents import Latent
from fldd_lightning.networks import MLPAutoencoder
from some_latents import clustered
from tiny import fit, trainer, with_latent


class Clusters(DiscreteDataModule):
    def load(self) -> dict[str, Split]:
        x = clustered(800)
        return {"train": Split(x[:600]), "val": Split(x[600:700]), "test": Split(x[700:])}


def clusters_model(**options: Any) -> FLDD:
    return with_latent(num_classes=4, shape=(12,), **options)


def latent_of(model: FLDD) -> Any:
    (latent,) = model.latents
    assert isinstance(latent, Latent)
    return latent


LATENTS: dict[str, Any] = {
    "mixture": partial(MixtureLatent, size=4),
    "chain": partial(ChainLatent, part=3, size=4),
    "autoencoder": partial(
        AutoencoderLatent,
        size=3,
        autoencoder=partial(MLPAutoencoder, width=32),
        components=8,
        couplings=2,
        fit_steps=400,
    ),
}
# for tests in which it does not matter how good the fit is
QUICK = {
    **LATENTS,
    "autoencoder": partial(LATENTS["autoencoder"], fit_steps=100),
    "trained": partial(TrainedMixtureLatent, size=4),
}


@pytest.mark.parametrize("kind", LATENTS)
def test_training_fits_logs_and_keeps_the_latent(tmp_path: Path, kind: str) -> None:
    model = clusters_model(freeze_steps=2, latents=LATENTS[kind])
    run = fit(tmp_path, model, Clusters(batch_size=50), max_steps=12)
    latent = latent_of(model)
    assert bool(latent.is_fitted)
    logged = run.callback_metrics
    most = {"mixture": 1.5, "chain": 4 * 1.5, "autoencoder": 3.0}[kind]  # of four clusters log 4, 1.39; in every part
    assert 0.5 < float(logged[f"val/kl_{kind}"]) < most
    assert {f"train/kl_{kind}", "val/nll_latent"} <= logged.keys()
    posterior = latent.posterior(Clusters().splits["val"].x)
    uniform = torch.rand(50, 100, latent.num_uniforms, dtype=torch.float64)
    alone = torch.stack([posterior.nll(posterior.draw(each)) for each in uniform]).detach().mean()
    tolerance = 0.3 if kind == "autoencoder" else 1e-4  # one draw, of each of a hundred examples
    torch.testing.assert_close(logged["val/nll_latent"], alone, atol=tolerance, rtol=1e-4)
    steps = logged["val/kl_t1"] + logged["val/kl_t2"]
    torch.testing.assert_close(logged["val/nelbo"], steps + logged[f"val/kl_{kind}"])
    run.save_checkpoint(tmp_path / "model.ckpt")
    loaded = FLDD.load_from_checkpoint(tmp_path / "model.ckpt")
    torch.testing.assert_close(latent_of(loaded).state_dict(), latent.state_dict())
    assert torch.equal(loaded.sample(20, seed=1), model.sample(20, seed=1))
    tested = [trainer(tmp_path).test(each, Clusters(batch_size=7), verbose=False)[0] for each in (model, loaded)]
    assert tested[0] == tested[1]
    own = {
        "mixture": r"MixtureLatent\(size=4\)",
        "chain": r"ChainLatent\(size=4, parts=4\)",
        "autoencoder": r"AutoencoderLatent\(size=3, autoencoder=MLPAutoencoder\(width=32\), components=8, "
        r"couplings=2\)",
    }[kind]
    for recipes in (
        (),
        partial(MixtureLatent, size=8),
        partial(ChainLatent, part=2, size=4),
        partial(AutoencoderLatent, size=2),
    ):
        other = clusters_model(latents=recipes)
        with pytest.raises(FLDDError, match=rf"\(latents: \['{own}'\] there, \[.*\] here\)"):
            trainer(tmp_path).test(other, Clusters(), ckpt_path=str(tmp_path / "model.ckpt"))


@pytest.mark.parametrize("kind", QUICK)
def test_resuming_does_not_fit_again(tmp_path: Path, kind: str) -> None:
    fit(tmp_path, clusters_model(latents=QUICK[kind]), Clusters(batch_size=50), max_steps=4).save_checkpoint(
        tmp_path / "half.ckpt"
    )
    model = clusters_model(latents=QUICK[kind])
    with patch.object(latent_of(model), "fit") as fitting:
        fit(tmp_path, model, Clusters(batch_size=50), str(tmp_path / "half.ckpt"), max_steps=6)
    assert not fitting.called
    assert bool(latent_of(model).is_fitted)


def test_resuming_keeps_the_average_of_a_latent(tmp_path: Path) -> None:
    class Look(Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            average = next(each for each in trainer.callbacks if isinstance(each, WeightAveraging))._average_model
            seen.append(average.module.latents[0].autoencoder.encoded.weight.clone())  # type: ignore[union-attr]

    seen: list[torch.Tensor] = []
    path, options = tmp_path / "half.ckpt", {"latents": QUICK["autoencoder"], "lr": 1e-2}
    saving: dict[str, Any] = {"callbacks": [ModelCheckpoint(tmp_path, filename="half", every_n_train_steps=30)]}
    fit(tmp_path, clusters_model(**options), Clusters(batch_size=50), max_steps=30, enable_checkpointing=True, **saving)
    saved = torch.load(path, weights_only=True)
    name = "latents.0.autoencoder.encoded.weight"
    assert not torch.equal(saved["state_dict"][name], saved["current_model_state"][name])
    fit(tmp_path, clusters_model(**options), Clusters(batch_size=50), str(path), max_steps=31, callbacks=[Look()])
    assert torch.equal(seen[0], saved["state_dict"][name])


def test_the_fit_does_not_count_for_the_time_limit(tmp_path: Path) -> None:
    model = clusters_model(latents=LATENTS["mixture"])
    original = latent_of(model).fit

    def slow(x: torch.Tensor, seed: int = 0) -> dict[str, float]:
        sleep(5)
        return original(x, seed)

    with patch.object(latent_of(model), "fit", side_effect=slow):
        trainer_ = fit(tmp_path, model, Clusters(batch_size=50), max_steps=4, max_time=timedelta(seconds=5))
    assert trainer_.global_step == 4


def test_a_latent_is_worth_its_bits_at_once(tmp_path: Path) -> None:
    """The denoiser starts from the latent: after two steps the bound is below that of a product of marginals."""
    values = {}
    for kind, recipes in {"none": (), **LATENTS}.items():
        model, data = clusters_model(latents=recipes), Clusters(batch_size=50)
        fit(tmp_path, model, data, max_steps=2)
        values[kind] = trainer(tmp_path).test(model, data, verbose=False)[0]["test/nelbo"]
    assert all(values[kind] < values["none"] - 2 for kind in LATENTS)


def test_monitor_says_when_the_steps_add_nothing(tmp_path: Path) -> None:
    """A denoiser of random weights, which never move, spoils the mixture."""
    model = clusters_model(freeze_steps=2, lr=1e-12)
    randomise(model.reverse)
    with pytest.warns(UserWarning, match="The steps add nothing to the latent"):
        fit(tmp_path, model, Clusters(batch_size=50), max_epochs=1, callbacks=[CollapseMonitor()])


def test_the_latent_is_fitted_to_what_is_trained_on_and_no_more(tmp_path: Path) -> None:
    """A sampler of the user's own is kept; values that do not exist and data that can be read once are refused."""
    x = torch.cat([torch.zeros(60, 12, dtype=torch.long), torch.ones(60, 12, dtype=torch.long)])
    for options in ({"sampler": SubsetRandomSampler(range(60))}, {"batch_sampler": BatchSampler(range(60), 20, False)}):
        size = {} if "batch_sampler" in options else {"batch_size": 20}
        model = clusters_model()
        trainer(tmp_path, max_steps=2).fit(model, DataLoader(x, **options, **size))  # type: ignore[arg-type]
        latent = latent_of(model)
        assert float(latent.posterior(x[:60]).kl().max()) < 1e-4
        first = latent.log_conditional[..., 0].exp()  # (12, K): half of the examples were never seen
        assert float(first[:, 0].min()) > 0.95
    with pytest.raises(FLDDError, match=r"must lie in 0\.\.3"):
        trainer(tmp_path, max_steps=2).fit(clusters_model(), DataLoader(x + 4, batch_size=20))  # type: ignore[arg-type]
    with pytest.raises(FLDDError, match="Train on one DataLoader"):
        trainer(tmp_path, max_steps=2).fit(clusters_model(), iter(DataLoader(x, batch_size=20)))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", QUICK)
def test_validation_before_the_first_update_has_the_latent(tmp_path: Path, kind: str) -> None:
    """The averaged weights are a copy from before the fit."""
    seen: list[bool] = []

    class Look(Callback):
        def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
            if not trainer.sanity_checking:
                latent = latent_of(pl_module)
                seen.append(bool(latent.is_fitted) and not latent.says_nothing)

    options = {"accumulate_grad_batches": 8, "val_check_interval": 1, "max_steps": 1, "callbacks": [Look()]}
    fit(tmp_path, clusters_model(latents=QUICK[kind]), Clusters(batch_size=50), **options)
    assert seen
    assert all(seen)


@pytest.mark.parametrize("kind", QUICK)
def test_evaluation_with_a_latent_does_not_depend_on_the_batch_size(tmp_path: Path, kind: str) -> None:
    model = clusters_model(latents=QUICK[kind])
    randomise(model, 0.1)
    data = [Clusters(batch_size=size) for size in (3, 16)]
    latent_of(model).fit(data[0].splits["train"].x)
    values = [trainer(tmp_path).test(model, each, verbose=False)[0]["test/nelbo"] for each in data]
    assert values[0] == pytest.approx(values[1], rel=1e-6)


def test_several_draws_share_the_latents_of_their_examples(tmp_path: Path) -> None:
    """Of every z_t an example has the networks see the example's own latents, not another's."""
    model = clusters_model(latents=LATENTS["chain"], estimator=partial(RLOO, samples=3), freeze_steps=2)
    data = Clusters(batch_size=50)
    fit(tmp_path, model, data, max_steps=4)
    x = data.splits["train"].x[:5]
    c = latent_of(model).posterior(x).likely()
    assert len(c.unique(dim=0)) > 1
    step = model.forward_process.step(x, torch.full((5,), 2), (c,))
    all_masked = torch.full_like(x, model.forward_process.num_states - 1)
    kl = step_terms(step, model.reverse, torch.stack([all_masked] * 3)).kl
    assert float((kl[0].max() - kl[0].min()).detach()) > 0.01  # of every example another
    for each in kl:
        torch.testing.assert_close(each, kl[0])


@pytest.mark.parametrize(
    ("kind", "file", "name"), [("mixture", "mixture", "log_likelihood"), ("chain", "hidden_markov", "filtered")]
)
def test_a_step_looks_its_examples_up_once(kind: str, file: str, name: str) -> None:
    model, x = clusters_model(latents=QUICK[kind]), clustered(6)
    module = import_module(f"fldd_lightning.latents.{file}")
    noise = torch.rand(6, model.spec.num_steps, 12 + latent_of(model).num_uniforms, dtype=torch.float64)
    with patch.object(module, name, wraps=getattr(module, name)) as looked_up:
        model.nelbo_terms(x, noise)
        assert looked_up.call_count == 1
        model.training_step(x, 0)
        assert looked_up.call_count == 2


def test_a_latent_that_is_kept_is_the_first_process_s_too(tmp_path: Path) -> None:
    """It may have been fitted before, by every process on its own."""
    model = clusters_model()
    latent = latent_of(model)
    latent.fit(clustered(600))
    first = {name: value.clone() for name, value in latent.state_dict().items()}
    first["log_conditional"] += 1
    sent = lambda each: first if isinstance(each, dict) else each  # noqa: E731
    with patch.object(SingleDeviceStrategy, "broadcast", side_effect=sent):
        fit(tmp_path, model, Clusters(batch_size=50), max_steps=1)
    assert torch.equal(latent.log_conditional, first["log_conditional"])
