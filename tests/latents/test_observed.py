"""Latents that the data say: labels and lengths. Posterior, KL, gradients, samples, and what is refused."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import all_states, randomise
from fldd_lightning import FLDD, FLDDError, LabelLatent, LengthLatent
from fldd_lightning.data import DiscreteDataModule, Split
from fldd_lightning.estimators import RLOO, Reinforce
from fldd_lightning.forward import AbsorbingProcess
from fldd_lightning.latents import Latent, PointPosterior
from fldd_lightning.spec import Seen, Spec
from tiny import build, fit, trainer

PAD = 3


def labelled(**options: Any) -> FLDD:
    """Two coordinates of three classes and a label of four, with random weights."""
    made = {"forward_process": AbsorbingProcess, "latents": partial(LabelLatent, num_labels=4), **options}
    model = build(**made)
    randomise(model)
    label_of(model).logits.data *= 3
    return model


def label_of(model: FLDD) -> LabelLatent:
    (latent,) = model.latents
    assert isinstance(latent, LabelLatent)
    return latent


def batch_of(labels: Any) -> dict[str, torch.Tensor]:
    labels = torch.as_tensor(labels)
    return {"x": all_states(3, 2)[torch.arange(len(labels)) % 9], "label": labels}


class Padded(DiscreteDataModule):
    """Texts of three letters, of one to four tokens; PAD behind them."""

    padded = True
    num_classes = 4

    def load(self) -> dict[str, Split]:
        x = torch.randint(3, (120, 4), generator=torch.Generator().manual_seed(0))
        n = torch.tensor([1, 2, 2, 4]).repeat(30)
        x = x.masked_fill(torch.arange(4) >= n[:, None], PAD)
        return {"train": Split(x[:80]), "val": Split(x[80:100]), "test": Split(x[100:])}


def padded_model(**options: Any) -> FLDD:
    return build(**{"num_classes": 4, "shape": (4,), "padded": True, **options})


class Full(Latent):
    """All examples are as long as can be."""

    name = "full"

    def posterior(self, x: torch.Tensor, batch: Any = None) -> PointPosterior:
        return PointPosterior(torch.zeros(len(x), 1), torch.zeros(len(x)))

    def sample(self, num_samples: int, generator: torch.Generator) -> torch.Tensor:
        return torch.zeros(num_samples, 1)

    def padding(self, c: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(c), 4, dtype=torch.bool)


def test_a_label_is_a_point_that_costs_what_its_frequency_says() -> None:
    model = labelled()
    latent, labels = label_of(model), torch.tensor([0, 3, 1, 1, 2])
    posterior = latent.posterior(batch_of(labels)["x"], batch_of(labels))
    assert isinstance(posterior, PointPosterior)
    assert latent.num_uniforms == 0
    assert not latent.says_values
    c = posterior.draw(torch.rand(5, 0, dtype=torch.float64))
    assert torch.equal(c, labels[:, None])
    assert torch.equal(posterior.likely(), labels[:, None])
    p = latent.logits.detach().double().exp()
    torch.testing.assert_close(posterior.kl(c).double().detach(), -(p / p.sum()).log()[labels])
    assert latent.seen == Seen("label", num_values=4)
    assert model.spec.seen == (latent.seen,)
    (condition,) = model.likely_condition(batch_of(labels))
    assert torch.equal(condition, labels[:, None])
    terms = model.nelbo_terms(batch_of(labels), torch.rand(5, 2, 2, dtype=torch.float64))
    assert terms.nll_latent is None
    torch.testing.assert_close(terms.further["kl_label"], posterior.kl(c).detach())
    torch.testing.assert_close(terms.nelbo, terms.kl.sum(1) + terms.further["kl_label"])


@pytest.mark.parametrize("estimator", [RLOO, Reinforce])
def test_the_gradient_reaches_the_frequencies(estimator: Any) -> None:
    """Of the loss, which is a coordinate's: (p(y) - share of y) / D."""
    model = labelled(estimator=estimator)
    latent, labels = label_of(model), torch.tensor([0, 3, 1, 1, 1, 1])
    (gradient,) = torch.autograd.grad(model.training_step(batch_of(labels), 0), latent.logits)
    shares = labels.bincount(minlength=4) / len(labels)
    torch.testing.assert_close(gradient, (latent.logits.detach().softmax(0) - shares) / 2)


def test_frequencies_are_learned_beside_the_networks(tmp_path: Path) -> None:
    class Labelled(DiscreteDataModule):
        def load(self) -> dict[str, Split]:
            x = torch.randint(3, (96, 2), generator=torch.Generator().manual_seed(0))
            labels = torch.tensor([0, 2, 2, 3]).repeat(24)
            return {name: Split(x, labels) for name in ("train", "val", "test")}

    torch.manual_seed(0)
    model = build(latents=partial(LabelLatent, num_labels=4), lr=0.1, freeze_steps=1_000)
    run = fit(tmp_path, model, Labelled(batch_size=96), max_epochs=150, limit_val_batches=0)
    p = label_of(model).logits.detach().softmax(0)
    torch.testing.assert_close(p, torch.tensor([0.25, 0.0, 0.5, 0.25]), atol=0.04, rtol=0)
    assert "train/kl_label" in run.callback_metrics
    logged = trainer(tmp_path).test(model, Labelled(), verbose=False)[0]
    assert logged["test/kl_label"] == pytest.approx(1.5 * 0.693, abs=0.03)
    steps = logged["test/kl_t1"] + logged["test/kl_t2"]
    assert logged["test/nelbo"] == pytest.approx(steps + logged["test/kl_label"], rel=1e-5)
    assert "test/nll_latent" not in logged


def test_labels_are_drawn_by_their_frequencies() -> None:
    latent, n = label_of(labelled()), 40_000
    drawn = latent.sample(n, torch.Generator().manual_seed(0))
    assert drawn.shape == (n, 1)
    p = latent.logits.detach().softmax(0)
    error = (p * (1 - p) / n).sqrt()
    assert ((drawn[:, 0].bincount(minlength=4) / n - p).abs() < 4 * error).all()
    assert torch.equal(drawn, latent.sample(n, torch.Generator().manual_seed(0)))
    assert float(p.max() - p.min()) > 0.1


def test_labels_that_cannot_be_are_refused(tmp_path: Path) -> None:
    model, noise = labelled(), torch.rand(3, 2, 2, dtype=torch.float64)
    for labels, message in (
        ([0, 1, 4], r"label has values from 0 to 4, but the model has 4 labels, .* in 0\.\.3"),
        ([-1, 1, 3], r"label has values from -1 to 3"),
        ([0.0, 1.0, 3.0], "a label is a whole number from 0 to 3"),
        ([[0, 1]] * 3, "label has shape"),
    ):
        for use in (lambda batch: model.nelbo_terms(batch, noise), model.likely_condition):
            with pytest.raises(FLDDError, match=message):
                use(batch_of(labels))

    class Wrong(DiscreteDataModule):
        def load(self) -> dict[str, Split]:
            return {name: Split(all_states(3, 2), torch.arange(9)) for name in ("train", "val", "test")}

    with pytest.raises(FLDDError, match=r"label has values from 0 to 8"):
        fit(tmp_path, labelled(), Wrong(batch_size=9), max_steps=1, num_sanity_val_steps=0)
    for number in (-1, 0, 1):
        with pytest.raises(FLDDError, match=f"num_labels of LabelLatent is {number}"):
            labelled(latents=partial(LabelLatent, num_labels=number))


def test_labels_that_are_missing_are_named(tmp_path: Path) -> None:
    model, x, noise = labelled(), all_states(3, 2), torch.rand(9, 2, 2, dtype=torch.float64)
    for batch in (x, {"x": x}, [x]):
        for use in (lambda b: model.nelbo_terms(b, noise), model.likely_condition, lambda b: model.training_step(b, 0)):
            with pytest.raises(FLDDError, match="the data have no 'label'"):
                use(batch)

    class Unlabelled(DiscreteDataModule):
        def load(self) -> dict[str, Split]:
            return {name: Split(all_states(3, 2)) for name in ("train", "val", "test")}

    with pytest.raises(FLDDError, match="the data have no 'label'"):
        fit(tmp_path, labelled(), Unlabelled(), max_steps=1, num_sanity_val_steps=0)


def test_a_label_may_have_another_name_in_the_batch() -> None:
    model = labelled(latents=partial(LabelLatent, num_labels=4, key="colour"))
    x, noise = all_states(3, 2), torch.rand(9, 2, 2, dtype=torch.float64)
    colour = torch.arange(9) % 4
    terms = model.nelbo_terms({"x": x, "colour": colour, "label": torch.full((9,), 7)}, noise)
    torch.testing.assert_close(terms.further["kl_colour"], -label_of(model).logits.detach().log_softmax(0)[colour])
    with pytest.raises(FLDDError, match="the data have no 'colour'"):
        model.nelbo_terms({"x": x, "label": colour}, noise)
    with pytest.raises(FLDDError, match="colour has values from 0 to 4"):
        model.nelbo_terms({"x": x, "colour": torch.arange(9) % 5}, noise)


def test_lengths_are_counted_and_cost_what_their_frequency_says() -> None:
    latent = LengthLatent(Spec(4, (4,), 2, padded=True))
    x = Padded().splits["train"].x
    before = latent.posterior(x).kl(torch.zeros(len(x), 1))
    torch.testing.assert_close(before, torch.full((len(x),), 4.0).log())  # all lengths alike
    assert not bool(latent.is_fitted)
    assert latent.fit(x)["mean"] == pytest.approx(9 / 4)
    assert bool(latent.is_fitted)
    p = torch.tensor([0.0, 21, 41, 1, 21]) / 84  # one more of each but 0
    torch.testing.assert_close(latent.log_prior.exp(), p)
    assert latent.summary() == f"Lengths have been counted: {float(p @ torch.arange(5.0)):.1f} tokens in the mean"
    posterior = latent.posterior(x)
    assert isinstance(posterior, PointPosterior)
    n = (x != PAD).sum(1)
    assert torch.equal(latent.lengths(x), n)
    for c in (posterior.draw(torch.rand(len(x), 0, dtype=torch.float64)), posterior.likely()):
        assert torch.equal(c, n[:, None])
        assert torch.equal(latent.padding(c), x == PAD)
    torch.testing.assert_close(posterior.kl(n[:, None]), -p.log()[n])
    assert latent.seen is None  # networks see where PAD is
    assert latent.num_uniforms == 0


def test_lengths_are_drawn_by_their_frequencies() -> None:
    latent, n = LengthLatent(Spec(4, (4,), 2, padded=True)), 40_000
    latent.fit(Padded().splits["train"].x)
    drawn = latent.sample(n, torch.Generator().manual_seed(0))
    assert drawn.shape == (n, 1)
    p = latent.log_prior.exp()
    error = (p * (1 - p) / n).sqrt()
    assert ((drawn[:, 0].bincount(minlength=5) / n - p).abs() <= 4 * error).all()
    assert int(drawn.min()) == 1
    padding = latent.padding(drawn)
    assert torch.equal((~padding).sum(1), drawn[:, 0])
    assert not (padding[:, :-1] & ~padding[:, 1:]).any()  # at the end only


def test_padded_sequences_get_a_length(tmp_path: Path) -> None:
    model = padded_model(freeze_steps=1)
    (latent,) = model.latents
    assert isinstance(latent, LengthLatent)
    assert model.spec.seen == ()
    run = fit(tmp_path, model, Padded(batch_size=20), max_epochs=1)
    assert bool(latent.is_fitted)
    x = Padded().splits["val"].x
    expected = -latent.log_prior[(x != PAD).sum(1)].mean()
    torch.testing.assert_close(run.callback_metrics["val/kl_length"], expected)
    steps = run.callback_metrics["val/kl_t1"] + run.callback_metrics["val/kl_t2"]
    torch.testing.assert_close(run.callback_metrics["val/nelbo"], steps + expected)
    samples = model.sample(2_000, batch_size=2_000)
    lengths = (samples != PAD).sum(1)
    assert torch.equal(samples == PAD, torch.arange(4) >= lengths[:, None])
    torch.testing.assert_close(lengths.bincount(minlength=5) / 2_000, latent.log_prior.exp(), atol=0.04, rtol=0)
    run.save_checkpoint(tmp_path / "model.ckpt")
    loaded = FLDD.load_from_checkpoint(tmp_path / "model.ckpt")
    assert torch.equal(loaded.latents[0].log_prior, latent.log_prior)
    assert torch.equal(loaded.sample(20, seed=1), model.sample(20, seed=1))


def test_a_length_is_added_only_where_there_is_padding_of_a_sequence_and_none_says_it() -> None:
    assert list(build().latents) == []
    assert [type(each) for each in padded_model(latents=LengthLatent).latents] == [LengthLatent]
    assert list(padded_model(shape=(2, 2)).latents) == []

    model = padded_model(latents=Full)
    assert [type(each) for each in model.latents] == [Full]
    assert not (model.sample(20) == PAD).any()
    for spec in (Spec(4, (4,), 2), Spec(4, (2, 2), 2, padded=True)):
        with pytest.raises(FLDDError, match="needs padded sequences"):
            LengthLatent(spec)


def test_padding_that_cannot_be_is_refused(tmp_path: Path) -> None:
    model, noise = padded_model(), torch.rand(2, 2, 4, dtype=torch.float64)
    for row, message in (([0, PAD, 1, PAD], "PAD stands before a token"), ([PAD] * 4, "no token but PAD")):
        x = torch.tensor([[0, 1, 2, PAD], row])
        for use in (lambda batch: model.nelbo_terms(batch, noise), model.likely_condition):
            with pytest.raises(FLDDError, match=message):
                use(x)

        class Wrong(Padded):
            def load(self, x: torch.Tensor = x) -> dict[str, Split]:
                return {name: Split(x) for name in ("train", "val", "test")}

        with pytest.raises(FLDDError, match=message):
            fit(tmp_path, padded_model(), Wrong(), max_steps=1, num_sanity_val_steps=0)
