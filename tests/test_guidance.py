"""Guidance: its probabilities are those of the formula, on every process, and its samples those of exact denoisers."""

from __future__ import annotations

from functools import partial
from itertools import permutations
from typing import Any

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from conftest import PAIRS, all_states, make, randomise, small_mlp
from fldd_lightning import (
    FLDD,
    AbsorbingProcess,
    Ancestral,
    Backbone,
    ExactlyN,
    FLDDError,
    GreedyEnd,
    Guided,
    LabelLatent,
    LearnedMaskProcess,
    MaskedReverse,
    MixtureLatent,
    Reverse,
    Seen,
    Spec,
    VectorLatent,
)
from fldd_lightning.sampling import ancestral_sample
from tiny import build

LABEL = Seen("label", num_values=3, may_be_absent=True)  # two labels, and none
TWO_LABELS = partial(LabelLatent, num_labels=2, dropped=0.2)
JOINT = torch.tensor([[9.0, 1, 1, 4, 2, 1, 3, 1], [1, 2, 1, 1, 2, 6, 1, 8]]) / 44  # of a label and three bits


class Probe(Ancestral):
    """Keeps the probabilities that it is given."""

    log_p: Tensor

    def draw_from_uniform(
        self, reverse: Reverse, z_t: Tensor, t: Tensor, uniform: Tensor, condition: tuple[Tensor, ...], is_last: bool
    ) -> Tensor:
        self.log_p = reverse.log_prob(z_t, t, condition)
        return super().draw_from_uniform(reverse, z_t, t, uniform, condition, is_last)


@torch.no_grad()
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_guided_probabilities_are_those_of_the_formula(name: str, kind: Any, padded: bool) -> None:
    other = Seen("other", num_values=2)  # is never left out
    spec = Spec(3, (2,), 2, padded, seen=(other, LABEL))
    process, reverse = make(name, spec, kind)
    states = all_states(process.num_states, 2)
    n = len(states)
    first, label, none = torch.arange(n)[:, None] % 2, torch.ones(n, 1, dtype=torch.long), torch.full((n, 1), 2)
    for step in (1, 2):
        t, generator = torch.full((n,), step), torch.Generator().manual_seed(0)
        told = reverse.log_prob(states, t, (first, label)).double().exp()
        untold = reverse.log_prob(states, t, (first, none)).double().exp()
        assert float((told - untold).abs().max()) > 0.01
        for weight in (0.5, 3.0):
            probe = Probe()
            drawn = Guided(weight, probe).draw(reverse, states, step, generator, (first, label))
            expected = torch.where(told > 0, told ** (1 + weight) / untold.clamp_min(1e-300) ** weight, 0.0)
            expected = expected / expected.sum(-1, keepdim=True)
            torch.testing.assert_close(probe.log_p.double().exp(), expected, atol=1e-5, rtol=1e-4)
            if padded:
                assert torch.equal(drawn == 2, states == 2)  # PAD stays, and none gets there
        plain, guided = (
            each.draw(reverse, states, step, torch.Generator().manual_seed(1), (first, label))
            for each in (Ancestral(), Guided(0.0))
        )
        assert torch.equal(plain, guided)


class Oracle(Backbone):
    """Log p(x_i|what is visible, the label or none), exactly, for three bits."""

    def __init__(self, spec: Spec, num_inputs: int, num_outputs: int) -> None:
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(()))

    def forward(self, state: Tensor, t: Tensor, condition: tuple[Tensor, ...] = ()) -> Tensor:
        return conditionals(state, condition[0][:, 0]).clamp_min(1e-30).log()


def conditionals(state: Tensor, label: Tensor) -> Tensor:
    """p(x_i|what is visible, the label), ``(B, 3, 2)``; label 2 stands for none."""
    x, p = all_states(2, 3), torch.cat([JOINT, JOINT.sum(0, keepdim=True)])
    fits = ((state[:, None] == x) | (state[:, None] == 2)).all(-1) * p[label]  # (B, 8)
    found = torch.stack([fits @ (x == value).float() for value in (0, 1)], -1)
    return found / found.sum(-1, keepdim=True)


def exact_samples(weight: float) -> Tensor:
    """What samples of label 1 are distributed as, ``(8,)``, if one coordinate is drawn a step, in any order."""
    x, p = all_states(2, 3), torch.zeros(8, dtype=torch.float64)
    for order in permutations(range(3)):
        each = torch.ones(8, dtype=torch.float64)
        state = torch.full((8, 3), 2)
        for place in order:
            told, untold = (conditionals(state, torch.full((8,), label))[:, place].double() for label in (1, 2))
            guided = told ** (1 + weight) / untold**weight
            each *= (guided / guided.sum(-1, keepdim=True)).gather(1, x[:, place, None])[:, 0]
            state[:, place] = x[:, place]
        p += each / 6
    return p


def oracle() -> FLDD:
    options: dict[str, Any] = {"num_classes": 2, "shape": (3,), "num_steps": 3, "forward_process": AbsorbingProcess}
    timeless = partial(MaskedReverse, time_independent=True)
    return build(**options, denoiser=Oracle, reverse=timeless, latents=TWO_LABELS)


def p_value(samples: Tensor, p: Tensor) -> float:
    counts = (samples @ torch.tensor([4, 2, 1])).bincount(minlength=8)
    return float(chisquare(counts, p / p.sum() * len(samples)).pvalue)


@pytest.mark.parametrize("weight", [0.0, 1.5])
def test_samples_of_an_exact_denoiser_are_guided(weight: float) -> None:
    decoding = Guided(weight, ExactlyN())
    samples = oracle().sample(8_000, decoding=decoding, condition={"label": 1}, batch_size=8_000)
    assert p_value(samples, exact_samples(weight)) > 1e-3
    other = JOINT[1].double() if weight else JOINT[0].double()
    assert p_value(samples, other) < 1e-6
    if not weight:
        torch.testing.assert_close(exact_samples(0.0), JOINT[1].double() / JOINT[1].sum())


def test_without_its_label_a_model_is_the_unconditional_one() -> None:
    model, n = oracle().eval(), 8_000
    absent = model.spec.seen[0].absent(torch.zeros(n, 1, dtype=torch.long))
    parts = (model.forward_process, model.reverse, n, torch.Generator().manual_seed(0), (absent,))
    samples = ancestral_sample(*parts, decoding=ExactlyN())
    assert p_value(samples, JOINT.sum(0).double()) > 1e-3


def test_guidance_goes_with_every_decoding() -> None:
    model = build(forward_process=AbsorbingProcess, latents=TWO_LABELS, shape=(6,))
    randomise(model, 1.0)
    for of in (GreedyEnd(temperature=0.5), ExactlyN(top_p=0.9), Ancestral()):
        few, many = (model.sample(200, decoding=Guided(w, of), condition={"label": 1}) for w in (0.0, 8.0))
        assert torch.equal(few, model.sample(200, decoding=of, condition={"label": 1}))
        assert len(many.unique(dim=0)) < len(few.unique(dim=0))
    hot = Guided(2.0, GreedyEnd()).at(0.5)
    assert hot.configuration() == "Guided(of=GreedyEnd(temperature=0.5, top_p=1.0), weight=2.0)"


def test_what_cannot_be_guided_is_refused() -> None:
    for weight in (-1.0, float("nan"), float("inf")):
        with pytest.raises(FLDDError, match="weight of Guided is"):
            Guided(weight)
    with pytest.raises(FLDDError, match="weights would multiply"):
        Guided(2.0, Guided(2.0))
    for latents in ((), MixtureLatent, partial(LabelLatent, num_labels=2)):
        model = build(forward_process=AbsorbingProcess, latents=latents)
        with pytest.raises(FLDDError, match="trained with its condition dropped"):
            model.sample(2, decoding=Guided(1.0))
    learned = build(forward_process=partial(LearnedMaskProcess, network=small_mlp), latents=TWO_LABELS)
    with pytest.raises(FLDDError, match="ExactlyN needs masked diffusion"):
        learned.sample(2, decoding=Guided(1.0, ExactlyN()))
    with pytest.raises(FLDDError, match="always see 'seen'"):
        Seen("seen", num_values=2).absent(torch.zeros(1, 1))


def test_vectors_guide_too() -> None:
    model = build(forward_process=AbsorbingProcess, latents=partial(VectorLatent, size=2), shape=(6,))
    randomise(model, 1.0)
    samples = [model.sample(300, decoding=Guided(w), condition={"vector": [2.0, -1.0]}) for w in (0.0, 4.0)]
    assert len(samples[1].unique(dim=0)) < len(samples[0].unique(dim=0))
