"""Given coordinates: held in samples, never noised in training, and what latents make of them."""

from __future__ import annotations

from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from conftest import PROCESSES, all_states, make, randomise, small_mlp
from fldd_lightning import (
    MLP,
    AbsorbingProcess,
    Backbone,
    ChainLatent,
    EitherLatent,
    ExactlyN,
    ExactMasks,
    FLDDError,
    LearnedMaskProcess,
    LengthLatent,
    MaskedReverse,
    MixtureLatent,
    Spec,
    TrainedChainLatent,
    TrainedMixtureLatent,
    UNet,
    UniformProcess,
)
from fldd_lightning.any_order import exactly_masked
from fldd_lightning.bound import states_drawn, step_terms
from fldd_lightning.cli import main
from fldd_lightning.data import DiscreteDataModule, Split
from fldd_lightning.latents.given import random_subset
from test_text import WORDS, data_of, model_of
from test_text import trainer as text_trainer
from tiny import build, clear, fit, trainer

TIMELESS = partial(MaskedReverse, time_independent=True)
P = torch.tensor([6.0, 1, 1, 3, 1, 4, 2, 2]) / 20  # of three bits


class Oracle(Backbone):
    """Log p(x_i|what is visible), exactly, for three bits with probabilities P."""

    def __init__(self, spec: Spec, num_inputs: int, num_outputs: int) -> None:
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(()))

    def forward(self, state: Tensor, t: Tensor, condition: tuple[Tensor, ...] = ()) -> Tensor:
        x = all_states(2, 3)  # (8, 3)
        fits = ((state[:, None] == x) | (state[:, None] == 2)).all(-1) * P  # (B, 8)
        return torch.stack([fits @ (x == value).float() for value in (0, 1)], -1).clamp_min(1e-30).log()


class Bits(DiscreteDataModule):
    """Three bits with probabilities P."""

    def load(self) -> dict[str, Split]:
        drawn = torch.multinomial(P, 6_000, True, generator=torch.Generator().manual_seed(0))
        x = all_states(2, 3)[drawn]
        return {"train": Split(x[:5_000]), "val": Split(x[5_000:5_500]), "test": Split(x[5_500:])}


def p_value(samples: Tensor, given: Tensor) -> float:
    """Of the chi-square test of the samples of three bits against the exact conditional distribution."""
    fits = ((all_states(2, 3) == given) | (given < 0)).all(1)
    expected = P[fits] / P[fits].sum()
    counts = torch.bincount(samples @ torch.tensor([4, 2, 1]), minlength=8)
    assert counts[~fits].sum() == 0  # what is given is held
    return float(chisquare(counts[fits], expected.double() / expected.double().sum() * len(samples)).pvalue)


GIVEN = [torch.tensor(each) for each in ([1, -1, -1], [-1, 0, -1], [0, -1, 1], [-1, -1, -1])]


@pytest.mark.parametrize("given", GIVEN, ids=str)
def test_an_exact_denoiser_of_any_order_samples_the_conditional_when_clamped(given: Tensor) -> None:
    options: dict[str, Any] = {"num_classes": 2, "shape": (3,), "num_steps": 3, "forward_process": AbsorbingProcess}
    model = build(**options, denoiser=Oracle, reverse=TIMELESS)
    samples = model.sample(4_000, given=given, decoding=ExactlyN(), batch_size=4_000)
    assert p_value(samples, given) > 1e-3


@pytest.mark.slow
def test_a_model_learns_to_complete(tmp_path: Path) -> None:
    network = partial(MLP, width=64, depth=1, embedding=4)
    options: dict[str, Any] = {"num_classes": 2, "shape": (3,), "num_steps": 3, "forward_process": AbsorbingProcess}
    model = build(**options, denoiser=network, reverse=TIMELESS, estimator=ExactMasks, observed=0.5, lr=5e-3)
    fit(tmp_path, model, Bits(batch_size=256), max_steps=600, limit_val_batches=0)
    for seed, given in enumerate(GIVEN):
        samples = model.sample(1_000, seed, given=given, decoding=ExactlyN(), batch_size=1_000)
        assert p_value(samples, given) > 1e-3


@pytest.mark.slow
def test_a_learned_order_learns_to_complete(tmp_path: Path) -> None:
    """Few coordinates and many steps, so that hardly two are drawn at once."""
    network = partial(MLP, width=64, depth=2, embedding=8)
    forward = partial(LearnedMaskProcess, network=network)
    options: dict[str, Any] = {"num_classes": 2, "shape": (3,), "num_steps": 8, "forward_process": forward}
    model = build(**options, denoiser=network, observed=0.7, lr=3e-3, freeze_steps=100)
    fit(tmp_path, model, Bits(batch_size=512), max_steps=1_500, limit_val_batches=0)
    for seed, given in enumerate(GIVEN):
        samples = model.sample(500, seed, given=given, batch_size=500)
        assert p_value(samples, given) > 1e-3


# ---- training ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROCESSES)
def test_what_is_given_is_never_noised_and_costs_nothing(name: str) -> None:
    process, reverse = make(name, Spec(3, (4,), 3))
    x = torch.randint(3, (60, 4))
    generator = torch.Generator().manual_seed(0)
    for t in (1, 2, 3):
        step = process.step(x, torch.full((60,), t))
        none, some, all_ = (step.with_given(torch.full_like(x, n).cumsum(1) > 4 - n) for n in (0, 1, 4))
        assert some.given is not None
        assert (some.given.sum(1) == 1).all()  # the last
        z_t = states_drawn(some, generator)
        assert torch.equal(z_t[:, 3], x[:, 3])
        assert not torch.equal(z_t[:, :3], x[:, :3])
        assert torch.equal(some.draw_from_uniform(torch.full(x.shape, 0.999, dtype=torch.float64))[:, 3], x[:, 3])
        relaxed = some.draw_relaxed(torch.rand(some.noise_shape, dtype=torch.float64, generator=generator), 0.5)
        assert torch.equal(relaxed[:, 3].argmax(-1), x[:, 3])
        assert (relaxed[:, 3].amax(-1) == 1).all()
        assert torch.equal(all_.log_prob(x), torch.zeros(60))
        assert torch.equal(step_terms(all_, reverse, x[None]).kl, torch.zeros(1, 60))
        free = states_drawn(step, generator)[None]
        whole, without, alone = (
            step_terms(each, reverse, free).kl for each in (none, some, step.with_given(~some.given))
        )
        torch.testing.assert_close(without + alone, whole, atol=1e-4, rtol=1e-4)
        assert float((whole - without).detach().abs().max()) > 0.01


def numbers(x: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(len(x), 1 + x[0].numel(), dtype=torch.float64, generator=generator)


def test_masks_leave_out_what_is_given() -> None:
    process, _ = make("absorbing", Spec(3, (4,), 3))
    x = torch.randint(3, (400, 4))
    given = random_subset(x, 0.8, None, numbers(x))
    step = process.step(x, torch.ones(400, dtype=torch.long)).with_given(given)
    z, weight = exactly_masked(step, torch.rand(400, 5, dtype=torch.float64))
    is_masked = z == 3
    assert not (is_masked & given).any()
    free = (~given).sum(1)
    assert torch.equal(is_masked.sum(1) > 0, free > 0)
    assert torch.allclose(weight, (free / is_masked.sum(1).clamp_min(1)).to(weight))


def test_subsets_are_of_all_sizes() -> None:
    x = torch.zeros(30_000, 4, dtype=torch.long)
    given = random_subset(x, 0.5, None, numbers(x))
    sizes = given.sum(1).bincount(minlength=5)
    assert chisquare(sizes, 30_000 * np.array([0.6, 0.1, 0.1, 0.1, 0.1])).pvalue > 1e-3
    ones = given[given.sum(1) == 1].sum(0)
    assert chisquare(ones).pvalue > 1e-3
    x[:, 2] = 7
    assert not random_subset(x, 1.0, 7, numbers(x))[:, 2].any()


@pytest.mark.parametrize("process", [UniformProcess, partial(LearnedMaskProcess, network=small_mlp)])
def test_the_plain_bound_is_what_it_was(process: Any) -> None:
    """Networks are told that nothing is given, where they are told at all; it costs nothing."""
    x = torch.randint(3, (5, 2))
    torch.manual_seed(0)
    plain = build(forward_process=process)
    torch.manual_seed(0)
    model = build(forward_process=process, observed=0.5)
    for each in (plain, model):
        randomise(each)
    names = [seen.name for seen in model.spec.seen]
    assert names == (["given"] if process is UniformProcess else [])
    if not names:
        assert torch.equal(model.nelbo(x).nelbo, plain.nelbo(x).nelbo)
    model.train()  # whatever the mode
    scores = model.nelbo_terms(x, model._noise(torch.arange(5)))
    assert all((value == 0).all() for value in scores.further.values())
    assert torch.equal(scores.nelbo, model.eval().nelbo_terms(x, model._noise(torch.arange(5))).nelbo)


def test_networks_that_are_not_told_are_refused() -> None:
    with pytest.raises(FLDDError, match="UNet cannot see which coordinates are given"):
        build(forward_process=UniformProcess, denoiser=UNet, shape=(4, 4), observed=0.5)
    build(forward_process=AbsorbingProcess, denoiser=UNet, shape=(4, 4), observed=0.5)  # what is visible is enough
    with pytest.raises(FLDDError, match=r"observed of FLDD is 1\.5"):
        build(observed=1.5)


# ---- latents -------------------------------------------------------------------------------


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("kind", [MixtureLatent, TrainedMixtureLatent, ChainLatent, TrainedChainLatent, EitherLatent])
def test_latents_of_partial_examples_are_drawn_from_their_posterior(kind: Any, padded: bool) -> None:
    """Against the sum over all completions of p(x, c) = p(x) q(c|x)."""
    torch.manual_seed(3)
    spec = Spec(3, (4,), 2, padded=padded)
    small = [partial(TrainedMixtureLatent, size=3), partial(TrainedChainLatent, size=3)]
    latent = kind(spec, latents=small) if kind is EitherLatent else kind(spec, size=3)
    values = range(2 if padded else 3)
    common, noise = torch.randint(len(values), (400, 1)), torch.randint(len(values), (400, 4))
    latent.fit(torch.where(torch.rand(400, 4) < 0.7, common, noise))
    given = torch.tensor([1, -1, -1, 1])
    x = torch.tensor([[1, a, b, 1] for a, b in product(values, values)])
    posterior = latent.posterior(x)
    weights = (-posterior.nll(torch.zeros(0))).softmax(0).detach()
    n = 3_000
    rows = given.expand(n, -1)
    generator = torch.Generator().manual_seed(0)
    drawn = latent.sample_given(rows.clamp_min(0), rows >= 0, generator)
    which = torch.multinomial(weights, n, True, generator=generator)
    uniform = torch.rand(n, latent.num_uniforms, dtype=torch.float64, generator=generator)
    expected = latent.posterior(x[which]).draw(uniform)
    kinds, labels = torch.cat([drawn, expected]).unique(dim=0, return_inverse=True)
    counts = [labels[part].bincount(minlength=len(kinds)) for part in (slice(n), slice(n, None))]
    often = counts[0] + counts[1] >= 20
    a, b = (each[often].double() for each in counts)
    assert float(((a - b) ** 2 / (a + b)).sum()) < chi_square_limit(int(often.sum()))
    frequent = latent.sample(n, generator).unique(dim=0, return_counts=True)[1]
    assert len(frequent) > 1  # it says something
    assert drawn.unique(dim=0, return_counts=True)[1].max() != frequent.max()


def chi_square_limit(kinds: int) -> float:
    """Which a chi-square statistic of so many kinds exceeds once in a thousand times, about."""
    degrees = max(kinds - 1, 1)
    return degrees + 4 * (2 * degrees) ** 0.5 + 8


def test_lengths_fit_what_is_given() -> None:
    latent = LengthLatent(Spec(4, (5,), 2, padded=True))
    rows = torch.tensor([[-1, 1, -1, -1, -1], [-1, -1, -1, 3, -1], [0, -1, -1, 3, 3], [-1] * 5]).repeat(2_000, 1)
    n = latent.sample_given(rows.clamp_min(0), rows >= 0, torch.Generator().manual_seed(0)).view(2_000, 4)
    for column, possible in enumerate(([2, 3, 4, 5], [1, 2, 3], [1, 2, 3], [1, 2, 3, 4, 5])):
        counts = n[:, column].bincount(minlength=6)
        assert counts[possible].sum() == 2_000
        assert chisquare(counts[possible]).pvalue > 1e-3
    with pytest.raises(FLDDError, match="behind a PAD"):
        latent.sample_given(torch.tensor([[0, 3, 1, 0, 0]]), torch.ones(1, 5, dtype=torch.bool), torch.Generator())


# ---- from Python and the command line ----------------------------------------------------


@pytest.mark.parametrize("process", [partial(LearnedMaskProcess, network=small_mlp), UniformProcess])
def test_samples_hold_what_is_given(process: Any) -> None:
    model = build(forward_process=process, shape=(2, 2), observed=0.5, latents=partial(MixtureLatent, size=4))
    randomise(model)
    rows = torch.tensor([[[0, -1], [-1, 2]], [[-1, -1], [-1, 1]], [[2, 1], [0, 0]]])
    states = model.sample(9, given=rows, trajectory=True, batch_size=4, best_of=2)
    known = rows.repeat(3, 1, 1)
    assert torch.equal(states.masked_fill(known < 0, -1), known.expand(3, -1, -1, -1))  # in every state
    assert torch.equal(model.sample(9, given=rows, batch_size=4), model.sample(9, given=rows, batch_size=4))
    assert len(model.sample(50, given=rows[0])[:, 0, 1].unique()) > 1
    nothing = torch.full((2, 2), -1)
    assert model.sample(4, given=nothing).shape == (4, 2, 2)


def test_wrong_given_is_named() -> None:
    model = build(forward_process=AbsorbingProcess)
    for given, message in (
        (torch.tensor([0.5, 1]), "dtype"),
        (torch.tensor([0, 1, 2]), "given has shape"),
        (torch.tensor([0, 3]), "given has the value 3, but values must lie in 0..2, or be -1"),
        (torch.tensor([0, -2]), "given has the value -2"),
        (torch.tensor([0, 255], dtype=torch.uint8), "Unsigned integers have no -1"),
        (torch.zeros(3, 2, dtype=torch.long), "3 examples are given, and 4 samples"),
        (torch.zeros(0, 2, dtype=torch.long), "given is empty"),
    ):
        with pytest.raises(FLDDError, match=message):
            model.sample(4, given=given)
    with pytest.raises(FLDDError, match="cannot hold values that are given"):
        build().sample(4, given=torch.tensor([0, -1]))


def test_files_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = build(forward_process=AbsorbingProcess, num_steps=2)
    run = trainer(tmp_path)
    run.strategy.connect(model)
    run.save_checkpoint(tmp_path / "model.ckpt")
    start = ["sample", "--ckpt_path", str(tmp_path / "model.ckpt"), "--output", str(tmp_path / "s")]
    np.save(tmp_path / "given.npy", np.array([[0, -1], [-1, 2], [1, 1]], np.int8))
    assert main([*start, "--given", str(tmp_path / "given.npy"), "--best_of", "2"]) in (0, None)
    assert "was clamped" in capsys.readouterr().out
    samples = np.load(tmp_path / "s.npy")
    assert samples.shape == (3, 2)
    assert (samples[0, 0], samples[1, 1], *samples[2]) == (0, 2, 1, 1)
    np.save(tmp_path / "one.npy", np.array([0, -1]))
    clear(tmp_path)
    assert main([*start, "--given", str(tmp_path / "one.npy"), "--decoding", "ExactlyN"]) in (0, None)
    assert np.load(tmp_path / "s.npy").shape == (64, 2)
    clear(tmp_path)
    np.save(tmp_path / "real.npy", np.array([0.0, -1.0]))
    (tmp_path / "no.npy").write_text("no array")
    np.savez(tmp_path / "several.npz", x=np.zeros(2, int))
    for options, message in (
        (["--given", str(tmp_path / "real.npy")], "holds no array of integers"),
        (["--given", str(tmp_path / "no.npy")], "cannot read"),
        (["--given", str(tmp_path / "several.npz")], "is no .npy file with one array"),
        (["--prompt", ""], "--prompt is empty"),
        (["--given", str(tmp_path / "absent.npy")], "cannot read"),
        (["--prompt", "a"], "--prompt is for models of text"),
        (["--prompt", "a", "--infill", "a ___"], "use one of them"),
    ):
        assert main([*start, *options]) not in (0, None)
        assert message in capsys.readouterr().err


def test_prompts_and_blanks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "words.txt").write_text("\n".join(WORDS * 30))
    data = data_of(tmp_path / "words.txt", padded=True)
    model = model_of(data, observed=0.5)
    run = text_trainer(tmp_path, enable_checkpointing=False)
    run.fit(model, data)
    run.save_checkpoint(tmp_path / "model.ckpt")
    start = ["sample", "--ckpt_path", str(tmp_path / "model.ckpt"), "--output", str(tmp_path / "s")]
    assert main([*start, "--prompt", "a b", "--num_samples", "20"]) in (0, None)
    assert "trained to complete" in capsys.readouterr().out
    texts = (tmp_path / "s.txt").read_text().splitlines()
    assert len(texts) == 20
    assert all(text.startswith("a b") for text in texts)
    assert len({len(text) for text in texts}) > 2
    clear(tmp_path)
    assert main([*start, "--infill", "a ___ b", "--num_samples", "20"]) in (0, None)
    texts = (tmp_path / "s.txt").read_text().splitlines()
    assert all(text[:2] == "a " and text[5:7] == " b" and len(text) >= 7 for text in texts)
    clear(tmp_path)
    assert model.given_text("____").tolist() == [-1] * 8
    assert model.given_text("____a").tolist() == [-1, -1, -1, -1, 1, -1, -1, -1]
    for options, message in (
        (["--infill", "a b"], "three underscores or more"),
        (["--infill", "a __ ___"], "has a shorter one"),
        (["--prompt", "a ___"], "three underscores or more"),
        (["--prompt", "a bee a bee"], "has 11 tokens, but the model's have 8"),
        (["--prompt", "xyz"], "is not among the"),
    ):
        assert main([*start, *options]) not in (0, None)
        assert message in capsys.readouterr().err
