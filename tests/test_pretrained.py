"""Trained models as folders: written, read back, refused, pushed, and those that come with the package."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from lightning.pytorch.callbacks import Callback

import fldd_lightning.pretrained
from conftest import small_mlp
from fldd_lightning import (
    FLDD,
    MLP,
    AbsorbingProcess,
    DigitsDataModule,
    FLDDError,
    ImageFLDD,
    TableDataModule,
    TableFLDD,
    TextDataModule,
    TextFLDD,
)
from fldd_lightning.cli import main
from fldd_lightning.pretrained import shipped
from fldd_lightning.training import averages_of
from tiny import Pairs, build, fit, with_latent

HERE = Path(fldd_lightning.pretrained.__file__).parent


class OwnNet(MLP):
    """A class that is not the package's."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained model with a latent, saved."""
    made = tmp_path_factory.mktemp("pairs") / "model"
    model = with_latent()
    fit(made.parent, model, Pairs(), max_steps=3)
    model.save_pretrained(made)
    return made


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    """One that a test may damage."""
    return Path(shutil.copytree(folder, tmp_path / "copied"))


def same(one: FLDD, other: FLDD) -> bool:
    mine, its = one.state_dict(), other.state_dict()
    return mine.keys() == its.keys() and all(
        torch.equal(mine[name].nan_to_num(), its[name].nan_to_num()) for name in mine
    )


def test_a_model_comes_back(tmp_path: Path) -> None:
    model = with_latent()
    fit(tmp_path, model, Pairs(), max_steps=3)
    model.vocabulary = ["a", "b", "c"]
    model.save_pretrained(tmp_path / "model")
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    for cls, name in ((FLDD, str(tmp_path / "model")), (type(model), tmp_path / "model")):
        loaded = cls.from_pretrained(name)
        assert type(loaded) is type(model)
        assert not loaded.training
        assert same(loaded, model)
        assert (loaded.trained_steps, loaded.vocabulary) == (3, ["a", "b", "c"])
        assert torch.equal(loaded.sample(5, seed=3), model.sample(5, seed=3))
    loaded.save_pretrained(tmp_path / "again")
    config = (tmp_path / "again" / "config.json").read_text()
    assert config == (tmp_path / "model" / "config.json").read_text()


def test_options_are_replaced(folder: Path) -> None:
    assert FLDD.from_pretrained(folder, lr=0.5).lr == 0.5


def test_weights_in_64_and_16_bits(tmp_path: Path) -> None:
    model = build()
    for cast, wanted in ((model.double, torch.float64), (model.half, torch.float32)):
        cast().save_pretrained(tmp_path)
        assert FLDD.from_pretrained(tmp_path).dtype == wanted


def test_the_tokenizer_travels_along(tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text("abcab" * 60)
    data = TextDataModule(str(tmp_path / "corpus.txt"), length=4, cache_dir=str(tmp_path / "cache"))
    model = TextFLDD(data.num_classes, data.shape, AbsorbingProcess, small_mlp)
    model.adopt(data)
    model.save_pretrained(tmp_path / "model")
    loaded = FLDD.from_pretrained(tmp_path / "model")
    assert loaded.texts(torch.tensor([[0, 1, 2, 0]])) == ["abca"]


def test_the_columns_travel_along(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("name,age\n" + "".join(f"{'xyz'[i % 3]},{i % 7}\n" for i in range(40)))
    data = TableDataModule(str(tmp_path / "t.csv"))
    model = TableFLDD(data.num_classes, data.shape, AbsorbingProcess, small_mlp, num_values=data.num_values)
    model.adopt(data)
    model.save_pretrained(tmp_path / "model")
    assert FLDD.from_pretrained(tmp_path / "model").text_head() == ["name,age"]


class Saves(Callback):
    """Saves the model when training stands at step 4."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        if trainer.global_step == 4:
            pl_module.save_pretrained(self.folder)
            (average,) = averages_of(trainer)
            self.average = {name: p.detach().clone() for name, p in average.named_parameters()}
            self.current = {name: p.detach().clone() for name, p in pl_module.named_parameters()}


def test_the_average_is_saved_while_training(tmp_path: Path) -> None:
    saves = Saves(tmp_path / "model")
    fit(tmp_path, build(), Pairs(), max_steps=5, callbacks=[saves])
    loaded = FLDD.from_pretrained(tmp_path / "model")
    assert loaded.trained_steps == 4
    assert all(torch.equal(p, saves.average[name]) for name, p in loaded.named_parameters())
    assert any(not torch.equal(p, saves.current[name]) for name, p in loaded.named_parameters())


def test_the_card_says_what_it_knows(tmp_path: Path) -> None:
    model = ImageFLDD(2, (4, 4), AbsorbingProcess, OwnNet, num_steps=3)
    facts = {"data": "stripes | noise", "bound": "1 nat", "license": "mit", "notes": "## More\n\nNothing."}
    model.save_pretrained(tmp_path, model_card_kwargs=facts)
    card = ModelCard.load(tmp_path / "README.md")
    assert (card.data.license, card.data.library_name) == ("mit", "fldd-lightning")
    for said in ("stripes \\| noise |", "| 1 nat |", "3 passes of the denoiser", "4×4 integers from 0 to 1", "## More"):
        assert said in card.text
    assert "| budget of training | not stated |" in card.text
    assert re.search(r"fldd-lightning \d", card.text)
    assert "trusted=['test_pretrained.OwnNet']" in card.text
    (tmp_path / "README.md").write_text("mine")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match=r"README.md' is of the model before, and is kept. Delete it"):
        ImageFLDD(2, (4, 4), AbsorbingProcess, OwnNet, num_steps=3).save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    model = ImageFLDD(2, (4, 4), AbsorbingProcess, OwnNet)
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    with pytest.raises(FLDDError, match="not finite"):
        model.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new" / "model.safetensors").exists()


def test_the_card_takes_data_and_bound_from_the_trainer(tmp_path: Path) -> None:
    model = build()
    run = fit(tmp_path, model, Pairs(), max_steps=2)
    run.test(model, Pairs(), verbose=False)
    text = str(model.generate_model_card())
    assert "| data | tiny.Pairs |" in text
    assert f"{float(run.callback_metrics['test/nelbo']):.3f} nats per example (test)" in text


def test_own_classes_are_named(tmp_path: Path) -> None:
    ImageFLDD(2, (4, 4), AbsorbingProcess, OwnNet).save_pretrained(tmp_path)
    with pytest.raises(FLDDError, match=r"test_pretrained\.OwnNet.*--trust"):
        FLDD.from_pretrained(tmp_path)
    for trusted in ([OwnNet], ["test_pretrained"]):
        assert isinstance(FLDD.from_pretrained(tmp_path, trusted=trusted).reverse.network, OwnNet)


def test_own_classes_are_trusted_on_the_command_line(tmp_path: Path) -> None:
    ImageFLDD(2, (4, 4), AbsorbingProcess, OwnNet).save_pretrained(tmp_path / "model")
    args = ["sample", "--pretrained", str(tmp_path / "model"), "--num_samples", "2", "--output", str(tmp_path / "x")]
    assert main(args) == 1
    assert main([*args, "--trust", "test_pretrained.OwnNet"]) == 0


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def others_weights(folder: Path) -> None:
    with_latent(denoiser=MLP).save_pretrained(folder.parent / "other")
    shutil.copy(folder.parent / "other" / "model.safetensors", folder)


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "has no model.safetensors"),
    "no configuration": (lambda f: (f / "config.json").unlink(), "has no config.json"),
    "weights cut short": (lambda f: cut(f / "model.safetensors"), "model.safetensors' cannot be read"),
    "weights that are text": (lambda f: (f / "model.safetensors").write_text("hello"), "cannot be read"),
    "configuration cut short": (lambda f: cut(f / "config.json"), "config.json' cannot be read"),
    "deep configuration": (lambda f: (f / "config.json").write_text("[" * 99_999), "config.json' cannot be read"),
    "another library": (
        lambda f: (f / "config.json").write_text('{"model_type": "bert"}'),
        "written by fldd-lightning",
    ),
    "a list": (lambda f: (f / "config.json").write_text("[]"), "written by fldd-lightning"),
    "another version": (lambda f: (f / "config.json").write_text('{"fldd": {"version": 9}}'), "of another version"),
    "another model's weights": (others_weights, "of other networks"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_no_model_is_refused(damage: str, copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change, said = DAMAGES[damage]
    change(copied)
    with pytest.raises(FLDDError, match=re.escape(said)):
        FLDD.from_pretrained(copied)
    assert main(["sample", "--pretrained", str(copied)]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nothing", "there is no folder 'nothing'. Give a folder, OWNER/NAME on the hub, or one of digits, text"),
        ("./nobody/nothing", "there is no folder"),
        ("nobody/nothing", "cannot load 'nobody/nothing' from the hub"),
        (Path("nobody/nothing"), "there is no folder"),
        (__file__, "is a file, no folder"),
    ],
)
def test_names_of_nothing(name: Any, said: str) -> None:
    with pytest.raises(FLDDError, match=re.escape(said)):
        FLDD.from_pretrained(name)


def test_a_name_of_the_hub_is_downloaded(folder: Path) -> None:
    with patch("fldd_lightning.pretrained.folder.snapshot_download", return_value=str(folder)) as download:
        assert same(FLDD.from_pretrained("me/model", revision="v1"), FLDD.from_pretrained(folder))
    assert download.call_args.args == ("me/model",)
    assert download.call_args.kwargs["revision"] == "v1"
    assert "model.safetensors" in download.call_args.kwargs["allow_patterns"]


def test_a_class_of_another_kind_is_refused(folder: Path) -> None:
    with pytest.raises(FLDDError, match="holds a FLDD, no ImageFLDD"):
        ImageFLDD.from_pretrained(folder)


def test_nothing_of_others_is_written_over(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text('{"model_type": "bert"}')
    with pytest.raises(FLDDError, match="would be lost"):
        build().save_pretrained(tmp_path)
    assert config.read_text() == '{"model_type": "bert"}'
    with pytest.raises(FLDDError, match="is a file"):
        build().save_pretrained(config)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    with (
        patch("fldd_lightning.pretrained.folder.replacing", side_effect=OSError(28, "No space left on device")),
        pytest.raises(FLDDError, match=r"cannot write to .*No space left"),
    ):
        build().save_pretrained(tmp_path / "model")


def test_what_json_does_not_have_is_not_saved(tmp_path: Path) -> None:
    model = build()
    for value, said in (({1: 2}, "keys are no texts"), (torch.zeros(1), "cannot be described")):
        model.hparams["its_option"] = value
        with pytest.raises(FLDDError, match=said):
            model.save_pretrained(tmp_path)


def test_push_to_the_hub(folder: Path) -> None:
    model = FLDD.from_pretrained(folder)
    pushed: dict[str, Any] = {}

    def upload(**options: Any) -> str:
        pushed.update(options, loaded=FLDD.from_pretrained(options["folder_path"]))
        return "https://huggingface.co/me/model/commit/1"

    with patch("huggingface_hub.hub_mixin.HfApi") as api:
        api.return_value.create_repo.return_value = SimpleNamespace(repo_id="me/model")
        api.return_value.upload_folder.side_effect = upload
        assert model.push_to_hub("me/model", private=True, model_card_kwargs={"data": "pairs"}).endswith("commit/1")
    assert api.return_value.create_repo.call_args.kwargs["private"] is True
    assert pushed["repo_id"] == "me/model"
    assert same(pushed["loaded"], model)


@pytest.mark.parametrize("name", ["me/model", "my model"])
def test_what_the_hub_does_not_take_is_one_sentence(folder: Path, name: str) -> None:
    """Offline; and a name that none can have."""
    with pytest.raises(FLDDError, match=f"cannot write '{name}' to the hub: .*'hf auth login'"):
        FLDD.from_pretrained(folder).push_to_hub(name)


# ---- those that come with the package -------------------------------------------------------


@pytest.mark.parametrize("name", ["digits", "text"])
def test_shipped_models(name: str) -> None:
    assert name in shipped()
    files = [HERE / name / file for file in ("config.json", "model.safetensors", "README.md")]
    assert sum(file.stat().st_size for file in files) < 2_000_000
    card = files[2].read_text()
    for row in ("data", "bound on -log p(x)", "budget of training", "licence", "NFE", "made by"):
        assert re.search(rf"^\| {re.escape(row)} \| (?!not stated)\S", card, re.MULTILINE), row
    model = FLDD.from_pretrained(name)
    assert f"| NFE | {model.spec.num_steps} passes" in card
    assert model.sample(3).shape == (3, *model.spec.shape)
    if name == "text":
        assert set("".join(model.to_text(model.sample(2)))) <= set("abcdefghijklmnopqrstuvwxyz ")


def test_the_digits_have_the_bound_of_their_card() -> None:
    said = re.search(r"\| (\d+\.\d+) nats per example, standard error", (HERE / "digits" / "README.md").read_text())
    scores = FLDD.from_pretrained("digits").nelbo(DigitsDataModule().splits["test"].x, seed=1)
    error = float(scores.nelbo.std()) / len(scores.nelbo) ** 0.5
    assert float(scores.nelbo.mean()) == pytest.approx(
        float(said[1]), abs=0.5 * error
    )  # the same examples, other noise


def test_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    Path("digits").mkdir()  # a folder of that name changes nothing
    assert main(["sample", "--pretrained", "digits", "--num_samples", "4"]) == 0
    assert np.load("samples.npy").shape == (4, 8, 8)
    assert Path("samples.png").exists()
    assert main(["sample", "--pretrained", "text", "--num_samples", "4", "--output", "lines"]) == 0
    assert len(Path("lines.txt").read_text().splitlines()) == 4
    data = ["--pretrained", "digits", "--data", "DigitsDataModule"]
    assert main(["score", *data]) == 0
    assert len(Path("scores.csv").read_text().splitlines()) == 1 + 1797
    assert main(["evaluate", *data, "--callbacks", "[]", "--output", "judged"]) == 0
    assert json.loads(Path("judged/evaluation.json").read_text())["checkpoint"] == "digits"
    capsys.readouterr()
    for args, said in (
        (["sample"], "'samples.npy' is there already"),
        (["sample", "--output", "new"], "give a model: --ckpt_path FILE"),
        (["sample", "--output", "new", "--pretrained", "digits", "--ckpt_path", "a.ckpt"], "one of both"),
        (["score", "--pretrained", "digits", "--output", "b.csv"], "does not name its data: add --data CLASS"),
    ):
        assert main(args) == 1
        assert said in capsys.readouterr().err
