"""Labels and vectors that samples are asked for: dropping and its bound, vectors, and what comes from the data."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
import yaml

from conftest import all_states, exact_log_likelihood, exact_step_kl, make, randomise
from fldd_lightning import (
    FLDD,
    AbsorbingProcess,
    ArrayDataModule,
    DigitsDataModule,
    FLDDError,
    GreedyEnd,
    Guided,
    LabelLatent,
    MixtureLatent,
    VectorLatent,
)
from fldd_lightning.bound import Drawn, draw_latents
from fldd_lightning.cli import main
from fldd_lightning.data import DiscreteDataModule, Split
from fldd_lightning.spec import Seen, Spec
from tiny import build, clear, fit

STYLE = partial(LabelLatent, num_labels=3, key="style", dropped=0.3)
VECTOR = partial(VectorLatent, size=2, dropped=0.3)


def drawn_of(latents: list[Any], batch: dict[str, torch.Tensor]) -> Drawn:
    made = [latent(Spec(3, (2,), 2)) for latent in latents]
    return draw_latents(made, [each.posterior(batch["x"], batch) for each in made], torch.zeros(len(batch["x"]), 0))


def test_a_share_of_the_examples_is_dropped_and_costs_the_same() -> None:
    n = 1_000
    number = (torch.arange(n) + 0.5) / n
    uniform = torch.ones(n, 5)
    uniform[:, 0], uniform[:, 1] = 0.0, number  # all together
    batch = {"x": torch.zeros(n, 2).long(), "label": torch.arange(n) % 4, "style": torch.arange(n) % 3}
    batch["vector"] = torch.randn(n, 2)
    fixed = partial(LabelLatent, num_labels=4)
    drawn = drawn_of([fixed, STYLE, VECTOR], batch)
    dropped = drawn.with_dropped(uniform)
    label, style, vector = dropped.condition
    assert torch.equal(label[:, 0], batch["label"])
    is_dropped = number < 0.3
    assert torch.equal(style[:, 0], batch["style"].masked_fill(is_dropped, 3))
    assert (vector[is_dropped] == 0).all()
    assert torch.equal(vector[~is_dropped], torch.cat([batch["vector"], torch.ones(n, 1)], 1)[~is_dropped])
    for name, kl in drawn.kl().items():
        assert torch.equal(kl, dropped.kl()[name])
    assert (drawn.kl()["kl_vector"] == 0).all()
    assert [latent.seen for latent in drawn.latents[1:]] == [
        Seen("style", num_values=4, may_be_absent=True),
        Seen("vector", num_reals=3, may_be_absent=True),
    ]


def test_of_several_conditions_each_is_dropped_alone_and_all_together() -> None:
    """So that samples may be given some of them, all, or none; with the share that was asked for."""
    n = 40_000
    batch = {"x": torch.zeros(n, 2).long(), "style": torch.zeros(n).long(), "vector": torch.ones(n, 2)}
    drawn = drawn_of([STYLE, VECTOR], batch)
    uniform = torch.rand(n, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    style, vector = (c[:, -1] for c in drawn.with_dropped(uniform).condition)
    no_style, no_vector = style == 3, vector == 0
    share = {name: float(which.float().mean()) for name, which in (("style", no_style), ("vector", no_vector))}
    assert share == {"style": pytest.approx(0.3, abs=0.01), "vector": pytest.approx(0.3, abs=0.01)}
    both = float((no_style & no_vector).float().mean())
    assert both == pytest.approx(0.5 * 0.3 + 0.5 * 0.09, abs=0.01)
    assert float((no_style & ~no_vector).float().mean()) == pytest.approx(0.3 - both, abs=0.015)


@torch.no_grad()
@pytest.mark.parametrize("name", ["absorbing", "learned_mask", "residual_uniform"])
def test_the_bound_of_both_models_is_one(name: str) -> None:
    """(1 - d) NELBO(x|y) + d NELBO(x) is no less than -log of the mixture, and each bound no less than its own."""
    spec, x, share = Spec(3, (2,), 2, seen=(Seen("label", num_values=3, may_be_absent=True),)), all_states(3, 2), 0.3
    process, reverse = make(name, spec)
    bounds, logs = [], []
    states = all_states(process.num_states, 2)
    place = [states.tolist().index(row) for row in x.tolist()]
    for label in (1, 2):  # 2 is none
        c = (torch.full((1, 1), label),)
        condition = (torch.full((len(x), 1), label),)
        bounds.append(sum(exact_step_kl(process, reverse, x, t, condition) for t in (1, 2)))
        logs.append(exact_log_likelihood(process, reverse, 2, c)[place])
        assert (bounds[-1] >= -logs[-1] - 1e-6).all()
    mixed = (1 - share) * logs[0].exp() + share * logs[1].exp()
    assert ((1 - share) * bounds[0] + share * bounds[1] >= -mixed.log() - 1e-6).all()
    assert float((bounds[0] - bounds[1]).abs().max()) > 0.01


def test_evaluation_drops_nothing() -> None:
    model = build(forward_process=AbsorbingProcess, latents=[STYLE, VECTOR])
    randomise(model)
    batch = {"x": all_states(3, 2), "style": torch.arange(9) % 3, "vector": torch.randn(9, 2)}
    model.train()
    noise = model._noise(torch.arange(9))
    with patch.object(Seen, "absent", side_effect=AssertionError("dropped")):
        first = model.nelbo_terms(batch, noise)
        model.nelbo(batch)
        with pytest.raises(AssertionError, match="dropped"):
            model.training_step(batch, 0)
    assert not torch.equal(first.kl, model.nelbo_terms({**batch, "vector": batch["vector"] + 1}, noise).kl)
    assert not torch.equal(first.kl, model.nelbo_terms({**batch, "style": (batch["style"] + 1) % 3}, noise).kl)


class Told(DiscreteDataModule):
    """Two equal ternary coordinates; a label says whether they are 2, and a vector's sign as well."""

    def load(self) -> dict[str, Split]:
        x = (torch.arange(96) % 3)[:, None].expand(-1, 2)
        label = (x[:, 0] == 2).long()
        vector = torch.stack([2.0 * label - 1, torch.ones(96)], 1)
        return {name: Split(x, label, conditions={"vector": vector}) for name in ("train", "val", "test")}


@pytest.mark.parametrize(
    ("latent", "yes", "no"),
    [
        (partial(LabelLatent, dropped=0.3), {"label": 1}, {"label": [0]}),
        (partial(VectorLatent, dropped=0.3), {"vector": [1.0, 1.0]}, {"vector": np.array([[-1.0, 1.0]])}),
    ],
)
def test_a_model_learns_to_be_asked_and_not_to_be(latent: Any, yes: Any, no: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    data = Told(batch_size=96)
    assert data.condition_sizes == {"label": 2, "vector": 2}
    model = build(forward_process=AbsorbingProcess, latents=latent, condition_sizes=data.condition_sizes, lr=0.03)
    run = fit(tmp_path, model, data, max_epochs=90, limit_val_batches=0)
    told, untold = (model.sample(600, condition=each)[:, 0] for each in (yes, no))
    assert (told == 2).float().mean() > 0.95
    assert (untold != 2).float().mean() > 0.95
    absent = model.spec.seen[0].absent(model.latents[0].sample(1, torch.Generator()))
    z = torch.full((1, 2), 3)  # all masked
    p = model.reverse.log_prob(z, torch.ones(1).long(), (absent,))[0, 0, :3].exp().detach()
    torch.testing.assert_close(p, torch.full((3,), 1 / 3), atol=0.1, rtol=0)
    if "vector" in yes:
        p = model.sample(900)[:, 0].bincount(minlength=3) / 900  # of the model that is told nothing
        torch.testing.assert_close(p, torch.full((3,), 1 / 3), atol=0.12, rtol=0)
    run.save_checkpoint(tmp_path / "model.ckpt")
    loaded = FLDD.load_from_checkpoint(tmp_path / "model.ckpt")  # knows its sizes without the data
    assert torch.equal(loaded.sample(20, condition=yes), model.sample(20, condition=yes))


def test_samples_take_what_they_are_asked_for_in_turn() -> None:
    model = build(forward_process=AbsorbingProcess, latents=[STYLE, VECTOR, partial(MixtureLatent, size=2)])
    randomise(model)
    seen: list[tuple[torch.Tensor, ...]] = []
    log_prob = type(model.reverse)._logits_odds

    def watched(self: Any, state: Any, t: Any, condition: Any) -> Any:
        seen.append(condition)
        return log_prob(self, state, t, condition)

    vectors = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    with patch.object(type(model.reverse), "_logits_odds", watched):
        model.sample(6, batch_size=4, condition={"style": torch.tensor([2, 0, 1]), "vector": vectors})
    styles = torch.cat([seen[0][0], seen[2][0]])[:, 0]  # two batches of two steps
    assert styles.tolist() == [2, 0, 1, 2, 0, 1]
    assert torch.cat([seen[0][1], seen[2][1]])[:, 0].tolist() == [1, 3, 1, 3, 1, 3]


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ({"style": 3}, r"style has values from 3 to 3, but the model has 3 labels"),
        ({"style": -1}, "style has values from -1"),
        ({"style": 0.5}, "style has dtype torch.float32, but a label is a whole number from 0 to 2"),
        ({"style": []}, "style is empty, but a label is a whole number from 0 to 2"),
        ({"style": torch.zeros(2, 2).long()}, "style has shape"),
        ({"style": [0, 1, 2, 0]}, "4 values of 'style' are given, and 6 samples asked for"),
        ({"vector": [1.0]}, r"vector has shape \(1, 1\), but the model takes vectors \(number, 2\)"),
        ({"vector": [1.0, float("nan")]}, "vector has numbers that are not finite"),
        ({"mixture": 0}, "cannot be asked for 'mixture': this model can be asked for style, vector"),
    ],
)
def test_what_cannot_be_asked_for_is_named(condition: dict[str, Any], message: str) -> None:
    model = build(forward_process=AbsorbingProcess, latents=[STYLE, VECTOR, partial(MixtureLatent, size=2)])
    with pytest.raises(FLDDError, match=message):
        model.sample(6, condition=condition)
    with pytest.raises(FLDDError, match="this model has no labels and no vectors"):
        build().sample(6, condition={"style": 0})


def test_the_best_of_several_has_the_same_label() -> None:
    label = partial(LabelLatent, num_labels=3)
    model = build(forward_process=AbsorbingProcess, latents=label, shape=(4,))
    randomise(model, 1.0)
    for condition in ({"label": [0, 2]}, None):
        with patch.object(FLDD, "nelbo", autospec=True, side_effect=FLDD.nelbo) as bound:
            best = model.sample(20, best_of=4, condition=condition)
        batches = [call.args[1] for call in bound.call_args_list]
        values = torch.stack([model.nelbo(each, 4).nelbo for each in batches])  # (4, 20)
        assert torch.equal(best, torch.stack([each["x"] for each in batches])[values.argmin(0), torch.arange(20)])
        labels = batches[0]["label"]
        assert all(torch.equal(each["label"], labels) for each in batches)
        if condition:
            assert labels.tolist() == [0, 2] * 10
    model = build(forward_process=AbsorbingProcess, latents=VECTOR)
    assert model.sample(4, best_of=2, condition={"vector": [0.0, 1.0]}).shape == (4, 2)
    with pytest.raises(FLDDError, match="given its 'vector': choose it by condition"):
        model.sample(4, best_of=2)


def test_wrong_options_and_data_without_a_condition_are_refused() -> None:
    for made, message in (
        (partial(LabelLatent), "a LabelLatent of 'label' does not know its size.*give num_labels"),
        (partial(LabelLatent, num_labels=2, dropped=1.0), "dropped of LabelLatent is 1.0"),
        (partial(VectorLatent, size=2, dropped=0.0), "dropped of VectorLatent is 0.0"),
        (partial(VectorLatent, size=0), "size of VectorLatent is 0"),
    ):
        with pytest.raises(FLDDError, match=message):
            build(latents=made)
    model, x = build(latents=VECTOR), all_states(3, 2)
    with pytest.raises(FLDDError, match="the data have no 'vector': use data that have it"):
        model.nelbo(x)
    with pytest.raises(FLDDError, match=r"vector has shape \(9, 3\)"):
        model.nelbo({"x": x, "vector": torch.zeros(9, 3)})


# ---- from files and on the command line -----------------------------------------------------


def write(path: Path, number: int, styles: int, **further: Any) -> Path:
    x = np.random.default_rng(0).integers(3, size=(number, 4))
    np.savez(path, x=x, style=np.arange(number) % styles, embedding=np.ones((number, 2)) * x[:, :1], **further)
    return path


def test_conditions_of_a_file_keep_to_their_examples(tmp_path: Path) -> None:
    data = ArrayDataModule(str(write(tmp_path / "a.npz", 40, 3)), conditions=["style", "embedding"], batch_size=8)
    assert data.condition_sizes == {"style": 3, "embedding": 2}
    batch = next(iter(data.train_dataloader()))
    assert torch.equal(batch["embedding"][:, 0].long(), batch["x"][:, 0])
    rows = data.all_rows()
    assert rows.conditions["style"].tolist() == [i % 3 for i in range(40)]
    x, style = np.zeros((4, 2), int), np.arange(4)
    np.savez(tmp_path / "b.npz", x_train=x, x_test=x, style_train=style, style_test=style + 1)
    split = ArrayDataModule(str(tmp_path / "b.npz"), num_classes=2, conditions=["style"])
    assert split.condition_sizes == {"style": 5}
    assert split.splits["test"].conditions["style"].tolist() == [1, 2, 3, 4]
    np.save(tmp_path / "c.npy", x)
    np.savez(tmp_path / "d.npz", x=x, y=style, style=np.full((4, 2), np.nan))
    np.savez(tmp_path / "e.npz", x=x, style=style / 1)
    for name, conditions, message in (
        ("c.npy", ["style"], "holds one array, and no style"),
        ("b.npz", ["colour"], "holds no 'colour_train', which --data.conditions asks for"),
        ("d.npz", ["style"], "a number that is not finite in row 0"),
        ("e.npz", ["style"], r"not \(4,\). If these are labels, convert them to integers: array.astype\(int\)"),
        ("d.npz", ["label"], "which means something else"),
    ):
        with pytest.raises(FLDDError, match=message):
            _ = ArrayDataModule(str(tmp_path / name), num_classes=2, conditions=conditions).splits


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of two conditions, made on the command line by a config that names no size."""
    folder = tmp_path_factory.mktemp("conditions")
    process = {"class_path": "AbsorbingProcess"}
    mlp = {"class_path": "MLP", "init_args": {"width": 8, "depth": 1}}
    latents = [
        {"class_path": "LabelLatent", "init_args": {"key": "style"}},
        {"class_path": "VectorLatent", "init_args": {"key": "embedding"}},
    ]
    options = {"forward_process": process, "denoiser": mlp, "latents": latents, "num_steps": 2}
    data = {"path": str(write(folder / "train.npz", 60, 5)), "conditions": ["style", "embedding"]}
    config = {
        "model": {"class_path": "FLDD", "init_args": options},
        "data": {"class_path": "ArrayDataModule", "init_args": data},
        "trainer": {"max_steps": 2, "default_root_dir": str(folder), "accelerator": "cpu"},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "--config", str(folder / "config.yaml"), "--trainer.enable_progress_bar", "false"]) == 0
    path = next(folder.rglob("final.ckpt"))
    saved = torch.load(path, weights_only=True)
    generator = torch.Generator().manual_seed(0)
    for name, weight in saved["state_dict"].items():  # two steps teach nothing: samples are to differ by conditions
        if name.startswith("reverse."):
            weight.copy_(torch.randn(weight.shape, generator=generator))
    torch.save(saved, path)
    return path


def test_several_conditions_on_the_command_line(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = FLDD.load_from_checkpoint(trained).eval()
    vectors = np.array([[0.0, 1.0], [2.0, 3.0]])
    np.save(tmp_path / "vectors.npy", vectors)
    start = ["sample", "--ckpt_path", str(trained), "--output", str(tmp_path / "s")]
    for words, expected in (
        (["style=4", "0", f"embedding={tmp_path / 'vectors.npy'}"], {"style": [4, 0], "embedding": vectors}),
        (["embedding=0.5", "-0.5", "style=1", "3"], {"embedding": [0.5, -0.5], "style": [1, 3]}),
        (["embedding=0.5", "-0.5", "--condition=style=1", "3"], {"embedding": [0.5, -0.5], "style": [1, 3]}),
    ):
        assert main([*start, "--condition", *words, "--seed", "3"]) == 0
        assert np.array_equal(np.load(tmp_path / "s.npy"), model.sample(2, 3, condition=expected))
        clear(tmp_path)
    samples = [model.sample(50, condition={**expected, **other}) for other in ({}, {"style": 0}, {"embedding": [3, 3]})]
    assert not torch.equal(samples[0], samples[1])
    assert not torch.equal(samples[0], samples[2])
    words = ["--condition", "style=1", "embedding=1", "-2", "--num_samples", "40"]
    for guidance in (
        ["--guidance", "3", "--decoding", "GreedyEnd"],
        ["--decoding", "Guided", "--decoding.weight", "3", "--decoding.of", "GreedyEnd"],
    ):
        assert main([*start, *guidance, *words]) == 0
        asked = {"style": 1, "embedding": [1.0, -2.0]}
        expected = model.sample(40, condition=asked, decoding=Guided(3.0, GreedyEnd()))
        assert np.array_equal(np.load(tmp_path / "s.npy"), expected)
        clear(tmp_path)
    assert not torch.equal(expected, model.sample(40, condition=asked, decoding=GreedyEnd()))
    capsys.readouterr()
    assert main(["fit", "--config", str(next(trained.parents[3].glob("config.yaml"))), "--data.conditions", "[]"]) == 1
    assert "a LabelLatent of 'style' does not know its size" in capsys.readouterr().err
    for words, message in (
        (["3"], "several: style, embedding. Write --condition style=3, or --condition style=3 embedding=FILE.npy for"),
        (["style=one"], "the value 'one', which is no number"),
        (["style=1", "style=2"], "names 'style' twice"),
        (["style=1", "--condition", "style=2"], "names 'style' twice"),
        (["style=1", "colour=2"], "cannot be asked for 'colour'"),
        (["style=5"], "the model has 5 labels"),
        (["style=3.5"], "style has dtype torch.float32, but a label is a whole number from 0 to 4."),
        (["embedding=nowhere.npy"], "cannot read 'nowhere.npy'"),
        ([], "has no value"),
    ):
        assert main([*start, "--condition", *words]) == 1
        (error,) = capsys.readouterr().err.strip().splitlines()[-1:]
        assert message in error, words


def test_other_data_need_not_have_all_labels(trained: Path, tmp_path: Path) -> None:
    fewer = write(tmp_path / "fewer.npz", 30, 2)
    args = ["--ckpt_path", str(trained), "--data.path", str(fewer)]
    options = ["--trainer.logger", "false", "--trainer.accelerator", "cpu", "--trainer.default_root_dir", str(tmp_path)]
    assert main(["test", *args, *options]) == 0
    assert main(["score", *args, "--output", str(tmp_path / "scores.csv")]) == 0
    head, *rows = (tmp_path / "scores.csv").read_text().splitlines()
    assert head == "row,nelbo,nelbo_se,kl_t1,kl_t2,kl_style,kl_embedding"
    assert len(rows) == 30


def test_digits_say_how_many_labels_there_are() -> None:
    assert DigitsDataModule().condition_sizes == {"label": 10}
    model = build(latents=LabelLatent, condition_sizes={"label": 10}, forward_process=AbsorbingProcess)
    assert model.hparams["latents"]["init_args"] == {"num_labels": 10}
