"""Two latents at once, all enumerated: the bound, its draws, its gradients and what is sampled under it.

A latent is two functions here, written from the definition: its values with their prior, and q(c|x) of these. Real
numbers stand on a grid, each point with the weight of its cell.
"""

from __future__ import annotations

from functools import cache, partial
from itertools import product
from math import log
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch.nn import functional as F

from conftest import PROCESSES, all_states, exact_log_likelihood, exact_step_kl, randomise
from fldd_lightning import (
    FLDD,
    AutoencoderLatent,
    ChainLatent,
    FLDDError,
    LabelLatent,
    LengthLatent,
    MixtureLatent,
    TrainedMixtureLatent,
)
from fldd_lightning.bound import draw_latents
from fldd_lightning.data import DiscreteDataModule, Split
from fldd_lightning.estimators import RLOO, Reinforce
from fldd_lightning.forward import AbsorbingProcess, LearnedMaskProcess
from fldd_lightning.latents import Latent, TableLatent
from fldd_lightning.networks import MLPAutoencoder, StepEmbedding
from some_latents import clustered, fill, joint, prior
from tiny import build, fit, trainer, with_latent


class Second(MixtureLatent):
    """A mixture of another name."""

    name = "second"


class OtherTrained(TrainedMixtureLatent):
    """A trained mixture of another name."""

    name = "other"


LABELS = partial(LabelLatent, num_labels=2)
MIXTURE = partial(MixtureLatent, size=3)  # two of them in use
CHAIN = partial(ChainLatent, part=1, size=3)
NUMBER = partial(AutoencoderLatent, size=1, autoencoder=partial(MLPAutoencoder, width=6), components=2)
TRAINED = partial(TrainedMixtureLatent, size=3)
CASES: dict[str, Any] = {
    "labels and mixture": [LABELS, MIXTURE],
    "mixture and chain": [MIXTURE, CHAIN],
    "chain and labels": [CHAIN, LABELS],
    "mixture and length": [MIXTURE],  # the length comes of itself
    "mixture and another": [MIXTURE, partial(Second, size=3)],
    "labels and autoencoder": [LABELS, NUMBER],
    "labels and trained": [LABELS, TRAINED],
    "trained and length": [TRAINED],
    "trained and another": [TRAINED, partial(OtherTrained, size=2)],
}
# every case where coordinates are only masked, and those without a trained latent of values where there is more
PAIRS = [(case, "learned_mask") for case in CASES] + [(case, "residual_uniform") for case in list(CASES)[:5]]
every_pair = pytest.mark.parametrize(("case", "name"), PAIRS)

GRID = torch.linspace(-7, 7, 57)
CELL = float(GRID[1] - GRID[0])


@cache
def model_of(case: str, name: str) -> FLDD:
    """Two coordinates of three classes, T = 2; random networks and tables. Of padded ones a class is PAD."""
    torch.manual_seed(0)
    options = {"padded": "length" in case, "auxiliary_weight": 0.0, "latents": CASES[case]}
    model = build(forward_process=PROCESSES[name], **options)
    randomise(model, 0.3)
    for module in model.modules():
        if isinstance(module, StepEmbedding):  # so that latents count
            for embed in module.latents:
                embed.weight.data *= 5
    if isinstance(model.forward_process, LearnedMaskProcess):  # counts ten times
        model.forward_process.order.data /= 10
    for latent in model.latents:
        if isinstance(latent, TableLatent):
            fill(latent)
        if isinstance(latent, LengthLatent):
            latent.log_prior.copy_(torch.tensor([0.0, 0.3, 0.7]).log())
        if isinstance(latent, LabelLatent):
            latent.logits.data.copy_(torch.tensor([0.5, -0.5]))
        if isinstance(latent, AutoencoderLatent):
            latent.prior.mean.data.copy_(torch.tensor([[-1.0], [1.0]]))
        if isinstance(latent, TrainedMixtureLatent):
            for p in latent.parameters():  # which count ten times
                p.data /= 4
            latent.anneal(1.0)
    return model


def data_of(case: str) -> dict[str, torch.Tensor]:
    """Every example there may be."""
    x = all_states(3, 2)
    if "length" in case:
        return {"x": x[x[:, 0] != 2]}  # no PAD before a token
    if "labels" not in case:
        return {"x": x}
    return {"x": x.repeat(2, 1), "label": torch.arange(2).repeat_interleave(9)}


def values_of(latent: Latent) -> tuple[torch.Tensor, torch.Tensor]:
    """Values ``(n, m)`` and p(c), ``(n,)``."""
    if isinstance(latent, TableLatent):
        return prior(latent)
    if isinstance(latent, LabelLatent):
        return torch.arange(2)[:, None], latent.logits.double().softmax(0)
    if isinstance(latent, TrainedMixtureLatent):
        return torch.arange(latent.size)[:, None], latent.log_prior().double().exp()
    if isinstance(latent, LengthLatent):
        return torch.arange(1, 3)[:, None], latent.log_prior.double().exp()[1:]
    assert isinstance(latent, AutoencoderLatent)
    parts = torch.distributions.Normal(latent.prior.mean[:, 0].double(), (latent.prior.log_variance[:, 0] / 2).exp())
    density = (parts.log_prob(GRID[:, None].double()).exp() * latent.prior.logits.double().softmax(0)).sum(1)
    return GRID[:, None], density * CELL


def posterior_of(latent: Latent, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """q(c|x) of all values, ``(B, n)``."""
    x = batch["x"]
    if isinstance(latent, TableLatent):
        weights = joint(latent, x)[1]
        return weights / weights.sum(1, keepdim=True)
    if isinstance(latent, TrainedMixtureLatent):
        given = torch.stack([latent.log_conditional()[i, x[:, i]] for i in range(2)]).sum(0)
        return (given + latent.log_prior()).double().softmax(1)
    if isinstance(latent, LabelLatent):
        return F.one_hot(batch["label"], 2).double()
    if isinstance(latent, LengthLatent):
        return F.one_hot((x != 2).sum(1) - 1, 2).double()
    assert isinstance(latent, AutoencoderLatent)
    encoded = latent.autoencoder.encode(F.one_hot(x, 3)[..., :-1].float()).double()
    normal = torch.distributions.Normal(encoded[:, :1], (encoded[:, 1:] / 2).exp())
    return normal.log_prob(GRID.double()).exp() * CELL


def seen_at(model: FLDD, values: Any) -> tuple[torch.Tensor, ...]:
    """What networks see at one value of each latent, ``(1, m)`` each."""
    return tuple(c[None] for latent, c in zip(model.latents, values, strict=True) if latent.seen is not None)


def outcomes(model: FLDD) -> list[tuple[tuple[int, ...], tuple[torch.Tensor, ...]]]:
    """Every combination of values of all latents: their places, and they themselves."""
    all_values = [values_of(latent)[0] for latent in model.latents]
    places = list(product(*(range(len(values)) for values in all_values)))
    return [(place, tuple(all_values[i][j] for i, j in enumerate(place))) for place in places]


def enumerated(model: FLDD, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """KL of each latent ``(n, B)`` and the bound ``(B,)`` as in the docstring of bound.py; differentiable."""
    x, q = batch["x"], [posterior_of(latent, batch) for latent in model.latents]
    kl = []
    for latent, each in zip(model.latents, q, strict=True):
        log_ratio = each.clamp_min(1e-30).log() - values_of(latent)[1].log()
        kl.append((each * log_ratio).sum(1))
    bound = torch.stack(kl).sum(0)
    for place, values in outcomes(model):
        weight = torch.stack([each[:, i] for each, i in zip(q, place, strict=True)]).prod(0)
        rows = (weight > 1e-7).nonzero().flatten()
        if len(rows) > 0:
            given = tuple(c.expand(len(rows), -1) for c in seen_at(model, values))
            steps = range(1, model.spec.num_steps + 1)
            each_step = [exact_step_kl(model.forward_process, model.reverse, x[rows], t, given) for t in steps]
            bound = bound.index_add(0, rows, weight[rows] * torch.stack(each_step).sum(0))
    return torch.stack(kl), bound


@cache
def bound_of(case: str, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    return enumerated(model_of(case, name), data_of(case))


@cache
def sampled(case: str, name: str) -> torch.Tensor:
    """p(c) p(x|c) of what is sampled, ``(n_1, n_2, 9)``: of every value of both latents and all of the nine x."""
    model = model_of(case, name)
    process, reverse = model.forward_process, model.reverse
    p = [values_of(latent)[1].detach() for latent in model.latents]
    table = torch.zeros(*map(len, p), 9, dtype=torch.float64)
    is_data = (all_states(process.num_states, 2) < 3).all(1)
    for place, values in outcomes(model):
        pads = [each.padding(c[None]) for each, c in zip(model.latents, values, strict=True)]
        padding = next((each[0] for each in pads if each is not None), None)
        log_p = exact_log_likelihood(process, reverse, 2, seen_at(model, values), padding).detach()
        table[place] = log_p[is_data].exp() * torch.stack([each[i] for each, i in zip(p, place, strict=True)]).prod()
    return table


def place_of(x: torch.Tensor) -> torch.Tensor:
    """The place of examples ``(B, 2)`` among all nine."""
    return x @ torch.tensor([3, 1])


def many(batch: dict[str, torch.Tensor], n: int) -> dict[str, torch.Tensor]:
    return {key: value.repeat(n, *[1] * (value.dim() - 1)) for key, value in batch.items()}


@every_pair
def test_the_bound_lies_above_what_is_sampled(case: str, name: str) -> None:
    """Above -log p(x, y) where a label y is observed, else above -log p(x)."""
    batch, table, model = data_of(case), sampled(case, name), model_of(case, name)
    assert float(table.sum()) == pytest.approx(1.0, abs=1e-5)
    axes = [i for i, latent in enumerate(model.latents) if not isinstance(latent, LabelLatent)]
    p = table.sum(axes)  # (2, 9), or (9,) without a label
    at_batch = p[batch["label"], place_of(batch["x"])] if "label" in batch else p[place_of(batch["x"])]
    gap = bound_of(case, name)[1].detach() + at_batch.log()
    assert (gap >= -1e-5).all()
    assert float(gap.max()) > 0.01


@every_pair
def test_terms_of_the_bound_are_unbiased(case: str, name: str) -> None:
    n, model, batch = 3_000, model_of(case, name), data_of(case)
    size = sum(latent.num_uniforms for latent in model.latents)
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(n * len(batch["x"]), 2, 2 + size, dtype=torch.float64, generator=generator)
    terms = model.nelbo_terms(many(batch, n), noise)
    kl, bound = (each.detach() for each in bound_of(case, name))
    drawn = terms.nelbo.double().view(n, -1)
    error = drawn.std(0) / n**0.5
    assert ((drawn.mean(0) - bound).abs() <= 4 * error + 1e-5).all()
    assert (error < 0.03 * bound).all()
    assert list(terms.further) == [f"kl_{latent.name}" for latent in model.latents]
    for latent, exact in zip(model.latents, kl, strict=True):
        if not isinstance(latent, AutoencoderLatent):  # whose KL is of a draw
            of_latent = terms.further[f"kl_{latent.name}"].double().view(n, -1)
            torch.testing.assert_close(of_latent, exact.expand(n, -1), atol=1e-5, rtol=1e-4)


def test_latents_are_drawn_independently_given_the_example() -> None:
    """Each from uniform numbers of its own: joint frequencies are products."""
    model, n = model_of("mixture and chain", "learned_mask"), 20_000
    first, second = model.latents
    uniform = torch.rand(n, first.num_uniforms + second.num_uniforms, dtype=torch.float64)
    for x in (torch.tensor([[0, 1]]), torch.tensor([[2, 2]])):
        posteriors = [latent.posterior(x.expand(n, -1)) for latent in model.latents]
        condition = draw_latents(model.latents, posteriors, uniform).condition
        q = [posterior_of(latent, {"x": x})[0] for latent in model.latents]
        places = [(c[:, None] == values_of(latent)[0]).all(-1).double() for c, latent in zip(condition, model.latents)]
        joint_ = torch.einsum("na,nb->ab", *places) / n
        expected = torch.outer(*q)
        error = (expected * (1 - expected) / n).sqrt()
        assert ((joint_ - expected).abs() <= 4 * error).all()


@every_pair
def test_samples_follow_the_enumerated_distribution(case: str, name: str) -> None:
    """Jointly with the latents that they were drawn under; real numbers are left out."""
    n, model, drawn = 20_000, model_of(case, name), dict[str, torch.Tensor]()

    def recorded(latent: Latent) -> Any:
        sample = latent.sample

        def record(num_samples: int, generator: torch.Generator) -> torch.Tensor:
            drawn[latent.name] = sample(num_samples, generator)
            return drawn[latent.name]

        return patch.object(latent, "sample", record)

    first, second = model.latents
    with recorded(first), recorded(second):
        x = model.sample(n, seed=0, batch_size=n)
    table, index = sampled(case, name), torch.zeros(n, dtype=torch.long)
    for axis, latent in enumerate(model.latents):
        if isinstance(latent, AutoencoderLatent):
            table = table.sum(axis)
        else:
            same = (drawn[latent.name].unsqueeze(1) == values_of(latent)[0]).all(-1)  # (n, values)
            assert same.any(1).all()
            index = index * same.shape[1] + same.int().argmax(1)
    counts = (index * 9 + place_of(x)).bincount(minlength=table.numel()).double()
    expected = n * table.flatten()
    assert counts[expected == 0].sum() == 0
    rare = expected < 5  # counted together
    pooled = [torch.cat([each[~rare], each[rare].sum()[None]]) for each in (counts, expected)]
    terms = (pooled[0] - pooled[1]) ** 2 / pooled[1].clamp_min(1)
    freedom = len(terms) - 1
    assert freedom >= 8
    # the quantile of chi-square at 4 standard deviations, by Wilson and Hilferty (1931)
    assert float(terms.sum()) < freedom * (1 - 2 / (9 * freedom) + 4 * (2 / (9 * freedom)) ** 0.5) ** 3


@pytest.mark.parametrize(
    ("case", "name", "estimator"),
    [*((*pair, RLOO) for pair in PAIRS), ("labels and mixture", "learned_mask", Reinforce)],
)
def test_gradients_of_the_loss_are_those_of_the_bound(case: str, name: str, estimator: Any) -> None:
    """On average over draws of z_t and of the latents, for all that is trained."""
    model, batch = model_of(case, name), data_of(case)
    sets = {"process": list(model.forward_process.parameters()), "denoiser": list(model.reverse.parameters())}
    sets.update({latent.name: list(latent.parameters()) for latent in model.latents if list(latent.parameters())})
    flat = [p for each in sets.values() for p in each]
    exact = torch.autograd.grad(bound_of(case, name)[1].mean() / 2, flat, retain_graph=True)  # a loss is a coordinate's
    rounds, drawn, repeated = 30, [], many(batch, 2_400 // len(batch["x"]))
    with patch.dict(model._modules, estimator=estimator(model.spec)):
        for i in range(rounds + 1):  # the first only sets running means
            drawn.append(torch.autograd.grad(model.training_step(repeated, i), flat))
    first = 0
    for key, each in sets.items():
        places = range(first, first + len(each))
        first += len(each)
        target = torch.cat([exact[j].flatten().double() for j in places])
        stacked = torch.stack([torch.cat([g[j].flatten().double() for j in places]) for g in drawn[1:]])
        error = stacked.std(0) / rounds**0.5
        # the tolerances of test_estimators.py, and along the gradient those of test_autoencoder.py
        assert ((stacked.mean(0) - target).abs() <= 5 * error + 1e-5).all(), key
        assert (stacked.mean(0) - target).norm() <= 0.15 * target.norm() + 3 * error.norm(), key
        along = stacked @ target / target.norm()  # (rounds,)
        error = float(along.std()) / rounds**0.5
        assert float(along.mean()) == pytest.approx(float(target.norm()), abs=4 * error + 1e-5), key
        assert error < 0.1 * float(target.norm()), key


def test_each_latent_needs_a_name_of_its_own() -> None:
    for latents in ([MIXTURE, MIXTURE], [LABELS, partial(LabelLatent, num_labels=3)]):
        with pytest.raises(FLDDError, match="each needs a name of its own"):
            with_latent(latents=latents)
    with pytest.raises(FLDDError, match="are called length, length"):
        with_latent(latents=[LengthLatent, LengthLatent], padded=True)
    model = with_latent(latents=[MIXTURE, partial(Second, size=3)])
    assert [each.name for each in model.spec.seen] == ["mixture", "second"]


def test_networks_see_what_the_most_likely_latents_say() -> None:
    model, batch = model_of("chain and labels", "learned_mask"), data_of("chain and labels")
    chain, label = model.likely_condition(batch)
    assert torch.equal(chain, model.latents[0].posterior(batch["x"]).likely())
    assert torch.equal(label[:, 0], batch["label"])
    assert [(each.name, each.size) for each in model.spec.seen] == [("chain", 2), ("label", 1)]


def test_one_step_and_an_untrained_denoiser_are_the_latents_alone() -> None:
    """T = 1: an equality, -log p(x, y) = -log p(y) - log sum_c p(c) p(x|c)."""
    torch.manual_seed(0)
    model = build(num_steps=1, forward_process=AbsorbingProcess, latents=[LABELS, MIXTURE])
    label, mixture = model.latents
    assert isinstance(mixture, MixtureLatent)
    fill(mixture)
    label.logits.data.copy_(torch.tensor([0.5, -0.5]))
    batch = data_of("labels and mixture")
    exact = -joint(mixture, batch["x"])[1].sum(1).log() - label.logits.detach().double().log_softmax(0)[batch["label"]]
    torch.testing.assert_close(enumerated(model, batch)[1].detach(), exact, atol=1e-5, rtol=1e-5)
    terms = model.nelbo_terms(batch, torch.rand(18, 1, 3, dtype=torch.float64))
    assert terms.nll_latent is not None
    torch.testing.assert_close(terms.nll_latent.double(), exact, atol=1e-5, rtol=1e-5)


def test_the_bound_of_two_latents_alone_is_of_a_distribution() -> None:
    """At the worst log 2 above that of the better one; probabilities sum to one, over the best of each x to more."""
    model, batch = model_of("mixture and chain", "learned_mask"), data_of("mixture and chain")
    nll = model.nelbo_terms(batch, torch.rand(9, 2, 5, dtype=torch.float64)).nll_latent
    assert nll is not None
    each = torch.stack([latent.posterior(batch["x"]).nll(None) for latent in model.latents])
    assert float((-each.amin(0)).exp().sum()) > 1.05
    assert float((-nll).exp().sum()) == pytest.approx(1.0, abs=1e-4)
    assert (nll <= each.amin(0) + log(2) + 1e-5).all()


class LabelledClusters(DiscreteDataModule):
    """The label says half of the cluster."""

    def load(self) -> dict[str, Split]:
        x = clustered(600)
        labels = (x[:, 0] > 1).long()
        parts = {"train": slice(400), "val": slice(400, 500), "test": slice(500, 600)}
        return {name: Split(x[part], labels[part]) for name, part in parts.items()}


def test_two_latents_train_and_come_back(tmp_path: Path) -> None:
    latents = [partial(MixtureLatent, size=4), partial(ChainLatent, part=3, size=4), LABELS]
    model = with_latent(num_classes=4, shape=(12,), latents=latents)
    run = fit(tmp_path, model, LabelledClusters(batch_size=50), max_steps=8)
    assert [bool(latent.is_fitted) for latent in model.latents] == [True, True, False]
    logged = run.callback_metrics
    names = ("mixture", "chain", "label")
    assert {f"train/kl_{name}" for name in names} <= logged.keys()
    assert float(logged["val/kl_mixture"]) > 0.5
    assert float(logged["val/kl_chain"]) > 0.5
    terms = sum(logged[f"val/kl_{name}"] for name in names)
    torch.testing.assert_close(logged["val/nelbo"], logged["val/kl_t1"] + logged["val/kl_t2"] + terms)
    run.save_checkpoint(tmp_path / "model.ckpt")
    loaded = FLDD.load_from_checkpoint(tmp_path / "model.ckpt")
    assert torch.equal(loaded.sample(20, seed=1), model.sample(20, seed=1))
    tested = [trainer(tmp_path).test(each, LabelledClusters(), verbose=False)[0] for each in (model, loaded)]
    assert tested[0] == tested[1]
    for other in (latents[:2], latents[::-1]):
        with pytest.raises(FLDDError, match=r"latents: \['MixtureLatent.* there, \[.* here"):
            trainer(tmp_path).test(
                with_latent(num_classes=4, shape=(12,), latents=other),
                LabelledClusters(),
                ckpt_path=str(tmp_path / "model.ckpt"),
            )
    half = tmp_path / "model.ckpt"
    resumed = with_latent(num_classes=4, shape=(12,), latents=latents)
    with patch.object(MixtureLatent, "fit") as first, patch.object(ChainLatent, "fit") as second:
        fit(tmp_path, resumed, LabelledClusters(batch_size=50), str(half), max_steps=10)
    assert not first.called
    assert not second.called
