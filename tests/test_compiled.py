"""A compiled step has the loss, gradients, logs and noise of the plain one, in one graph, and resumes exactly.

A compiled step of sampling has the samples of the plain one. Most tests trace the graph and run it as it stands, which
takes seconds. Others compile it for the machine.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.utils.data import DataLoader

from conftest import randomise, small_mlp
from fldd_lightning import (
    FLDD,
    MLP,
    RLOO,
    AbsorbingProcess,
    Ancestral,
    AutoencoderLatent,
    ChainLatent,
    Concrete,
    ConfidentFirst,
    D3PMProcess,
    EitherLatent,
    ExactlyN,
    ExactMasks,
    FLDDError,
    GradientEstimator,
    GreedyEnd,
    Guided,
    LabelLatent,
    LearnedMaskProcess,
    LengthLatent,
    MaskedReverse,
    MixtureLatent,
    PredictingReverse,
    ResidualAbsorbingProcess,
    StaggeredProcess,
    StepLoss,
    TrainedChainLatent,
    TrainedMixtureLatent,
    Transformer,
    UniformProcess,
    WarmUp,
)
from fldd_lightning.compiled import Compiled
from tiny import Pairs, build, trainer

MASKS = partial(LearnedMaskProcess, network=small_mlp)
CASES: dict[str, dict[str, Any]] = {
    "masks": {"forward_process": MASKS, "auxiliary_weight": 2.0},
    "trained mixture": {"forward_process": MASKS, "latents": partial(TrainedMixtureLatent, size=3)},
    "warm-up": {"estimator": partial(WarmUp, first=Concrete, then=RLOO, steps=2)},
    "mixture": {"forward_process": MASKS, "latents": partial(MixtureLatent, size=3)},
    "label": {"forward_process": MASKS, "latents": partial(LabelLatent, num_labels=4)},
    "chain": {"forward_process": MASKS, "latents": partial(ChainLatent, size=3), "shape": (6,)},
    "trained chain": {"forward_process": MASKS, "latents": partial(TrainedChainLatent, size=3), "shape": (6,)},
    "either": {"forward_process": MASKS, "latents": EitherLatent, "shape": (6,)},
    "autoencoder": {"forward_process": MASKS, "latents": partial(AutoencoderLatent, size=2, fit_steps=0)},
    "padded": {"forward_process": MASKS, "padded": True, "shape": (6,)},
    "budgets": {"forward_process": MASKS, "budgets": [1, 2, 4]},
    "observed": {"forward_process": MASKS, "observed": 0.5},
    "staggered": {"forward_process": partial(MASKS, base=StaggeredProcess)},
    "residual": {"forward_process": partial(ResidualAbsorbingProcess, network=small_mlp)},
    "D3PM": {"forward_process": D3PMProcess},
    "uniform": {"forward_process": UniformProcess, "reverse": PredictingReverse},
    "Transformer": {"forward_process": MASKS, "denoiser": partial(Transformer, width=16, depth=1, heads=2)},
    "exact masks": {
        "forward_process": AbsorbingProcess, "estimator": ExactMasks,
        "reverse": partial(MaskedReverse, time_independent=True),
    },
}  # fmt: skip
QUICK = ("masks",)
COMPILE = torch.compile


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Runs graphs as they stand; has one entry for every graph."""
    graphs: list[Any] = []

    def as_it_stands(graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(COMPILE, backend=as_it_stands))
    torch._dynamo.reset()
    return graphs


def alike(options: dict[str, Any]) -> tuple[FLDD, FLDD]:
    """The same model twice, the second to be compiled."""
    models = []
    for compiled in (False, True):
        torch.manual_seed(0)
        models.append(build(**{"estimator": partial(RLOO, samples=2), **options}, compile=compiled).train())
    return models[0], models[1]


def batch_for(model: FLDD) -> dict[str, Tensor]:
    x = torch.randint(3, (8, *model.spec.shape), generator=torch.Generator().manual_seed(1))
    x = x.sort(1).values if model.spec.padded else x  # PAD comes last
    x[:, 0] = 0 if model.spec.padded else x[:, 0]
    return {"x": x, "label": x[:, 0], "index": torch.arange(8)}


def compare(options: dict[str, Any], steps: int = 5) -> None:
    """Take steps of both, at numbers that change along the run, and compare all that they give."""
    models = alike(options)
    batch = batch_for(models[0])
    for i in range(steps):
        results = []
        for model in models:
            model.own_steps, model._progress = i, i / steps
            for latent in model.latents:
                latent.anneal(i / steps)
            model.zero_grad()
            loss = model.training_step(batch, i)
            loss.backward()
            gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
            results.append((loss, model.logged, gradients, dict(model.named_buffers())))
        torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize(
    "case", [each if each in QUICK else pytest.param(each, marks=pytest.mark.slow) for each in CASES]
)
def test_a_compiled_step_is_the_plain_one(case: str, traced: list[Any]) -> None:
    compare(CASES[case])
    assert 1 <= len(traced) <= 5  # once for each number that changes, and not at every step


@pytest.mark.parametrize("latent", [partial(TrainedMixtureLatent, size=4), partial(AutoencoderLatent, fit_steps=0)])
def test_weights_that_change_along_the_run_need_no_graph_at_each_step(latent: Any, traced: list[Any]) -> None:
    options = {**CASES["masks"], "latents": latent}
    compare(options, steps=20)
    assert len(traced) <= 3
    assert all(isinstance(each.weight, float) for each in alike(options)[1].latents)


@pytest.mark.slow
def test_the_machine_compiles_it() -> None:
    torch._dynamo.reset()
    compare(CASES["masks"], steps=3)


def test_a_compiled_run_resumes_exactly(tmp_path: Path, traced: list[Any]) -> None:
    options = {**CASES["masks"], "denoiser": partial(MLP, width=8, depth=1, dropout=0.3), "compile": True}

    def run(folder: Path, ckpt: Path | None = None) -> FLDD:
        torch.manual_seed(0)
        model = build(**options)
        saved = ModelCheckpoint(folder, "{step}", every_n_train_steps=3, save_top_k=-1)
        trainer(folder, max_steps=7, limit_val_batches=0, enable_checkpointing=True, callbacks=[saved]).fit(
            model, Pairs(batch_size=16), ckpt_path=ckpt
        )
        return model

    middle = tmp_path / "whole" / "step=3.ckpt"
    whole, again = run(tmp_path / "whole"), run(tmp_path / "again", middle)
    assert traced
    torch.testing.assert_close(dict(again.state_dict()), dict(whole.state_dict()), rtol=0, atol=0, equal_nan=True)
    plain = FLDD.load_from_checkpoint(middle, compile=False)
    assert not plain.compiled


class OwnNoise(GradientEstimator):
    """Draws from the generator itself."""

    def loss(self, step: Any, terms: Any, generator: Any, global_step: int) -> StepLoss:
        z_t = step.draw_from_uniform(torch.rand(step.x.shape, dtype=torch.float64, generator=generator))
        kl = terms(z_t.unsqueeze(0)).kl[0]
        return StepLoss(kl, kl.detach())


def test_what_cannot_be_compiled_is_told(traced: list[Any]) -> None:
    plain, compiled = alike({"estimator": OwnNoise})
    plain.training_step(batch_for(plain), 0)
    with pytest.raises(FLDDError, match=r"this model cannot be compiled: .* Set model.compile to false"):
        compiled.training_step(batch_for(compiled), 0)


def test_too_many_sizes_of_batches_are_told(traced: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fldd_lightning.compiled._GRAPHS", 1)
    _, model = alike({})
    batches = [{"x": batch_for(model)["x"][:size]} for size in (8, 7, 6, 5, 4)]
    with pytest.raises(FLDDError, match=r"more than 1 graphs .* sizes of batches need their own"):
        _ = [model.training_step(batch, 0) for batch in batches]


def test_a_compiled_model_can_be_copied_and_saved(traced: list[Any]) -> None:
    _, model = alike(CASES["masks"])
    model.training_step(batch_for(model), 0)
    copied = copy.deepcopy(model)
    assert copied._compiled_loss is None
    assert list(copied.state_dict()) == list(model.state_dict())
    copied.training_step(batch_for(copied), 0)


DECODINGS: dict[str, Any] = {
    "Ancestral": Ancestral,
    "tempered": partial(Ancestral, temperature=0.7, top_p=0.9),
    "GreedyEnd": GreedyEnd,
    "ExactlyN": ExactlyN,
    "ConfidentFirst": ConfidentFirst,
}


def samples_are_those_of_the_plain_one(model: FLDD, decoding: Any, **options: Any) -> None:
    """Two batches of samples, and states on the way."""
    options |= {"trajectory": True, "batch_size": 32}
    plain, compiled = (model.sample(64, decoding=decoding(compile=each), **options) for each in (False, True))
    assert torch.equal(compiled, plain)


@pytest.mark.parametrize(
    "case", [each if each in QUICK else pytest.param(each, marks=pytest.mark.slow) for each in CASES]
)
def test_compiled_samples_are_the_plain_ones(case: str, traced: list[Any]) -> None:
    options = {"estimator": partial(RLOO, samples=2), **CASES[case]}
    model = build(**options, **({"latents": LengthLatent} if case == "padded" else {}))  # samples have to have one
    batch = batch_for(model)
    model.fit_latents(DataLoader([{name: value[i] for name, value in batch.items()} for i in range(8)], 8))
    samples_are_those_of_the_plain_one(model, Ancestral)
    assert 1 <= len(traced) <= 2  # the last step may be another
    made = len(traced)
    samples_are_those_of_the_plain_one(model, Ancestral)
    assert len(traced) == made  # the graphs that there are serve again


@pytest.mark.parametrize("name", DECODINGS)
def test_every_decoding_can_be_compiled(name: str, traced: list[Any]) -> None:
    model = build(forward_process=AbsorbingProcess, reverse=partial(MaskedReverse, time_independent=True), shape=(6,))
    samples_are_those_of_the_plain_one(model, DECODINGS[name])
    assert len(traced) <= 2
    decoding = DECODINGS[name](compile=True)
    model.sample(4, decoding=decoding)
    assert "compile" not in decoding.configuration()  # samples are the same
    for other in (copy.deepcopy(decoding), decoding.at(0.5)):
        assert other.compile
        assert other._compiled is None
        assert len(model.sample(4, decoding=other)) == 4


def test_what_latents_say_is_computed_outside_of_the_graph(traced: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Once for all steps: the decoder of a latent may take as long as the denoiser."""
    model = build(**CASES["autoencoder"])
    plain = model.reverse._said

    def said(condition: tuple[Tensor, ...]) -> Tensor | None:
        assert not torch.compiler.is_compiling()
        return plain(condition)

    monkeypatch.setattr(model.reverse, "_said", said)
    samples_are_those_of_the_plain_one(model, Ancestral)


def test_a_decoding_may_be_changed(traced: list[Any]) -> None:
    """After it was used: its weight, and whether it is compiled."""
    model = build(forward_process=MASKS, latents=partial(LabelLatent, num_labels=3, dropped=0.1))
    randomise(model.reverse)
    guided = Guided(0.5, Ancestral(compile=True))
    first = model.sample(64, decoding=guided)
    guided.weight = 8.0
    assert torch.equal(model.sample(64, decoding=guided), model.sample(64, decoding=Guided(8.0)))
    assert not torch.equal(model.sample(64, decoding=guided), first)
    decoding = guided.of
    assert decoding._compiled is not None
    decoding.compile, decoding._compiled = False, Refuses()
    assert len(model.sample(4, decoding=guided)) == 4
    assert guided._followed is None  # no model is kept


class Refuses(Compiled):
    """Must not be called."""

    def __init__(self) -> None:
        pass

    def __call__(self, *args: Any) -> Any:
        raise AssertionError


def test_guided_samples_can_be_compiled(traced: list[Any]) -> None:
    label = partial(LabelLatent, num_labels=3, dropped=0.1)
    model = build(forward_process=MASKS, latents=label)
    samples_are_those_of_the_plain_one(model, lambda compile: Guided(1.5, Ancestral(compile=compile)))
    assert len(traced) == 1


@pytest.mark.slow
def test_the_machine_compiles_samples() -> None:
    torch._dynamo.reset()
    model = build(**CASES["masks"])
    plain, compiled = (model.sample(512, decoding=Ancestral(compile=each)) for each in (False, True))
    assert float((plain == compiled).float().mean()) > 0.999  # rounding may turn a draw


def test_a_reverse_process_that_cannot_be_compiled_is_told(traced: list[Any]) -> None:
    model = build(forward_process=AbsorbingProcess, reverse=Waits)
    model.sample(4)
    with pytest.raises(FLDDError, match=r"this model cannot be compiled: .* Set decoding.compile to false"):
        model.sample(4, decoding=Ancestral(compile=True))


class Waits(MaskedReverse):
    """Looks at a value."""

    def logits(self, state: Tensor, t: Tensor, condition: tuple[Tensor, ...] = ()) -> Tensor:
        return super().logits(state, t, condition) * len(str(float(state.sum())))
