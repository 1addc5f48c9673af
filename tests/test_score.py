"""Every row of a file gets its bound: ``model.nelbo``, ``all_rows`` and ``fldd-lightning score``."""

from __future__ import annotations

import csv
import json
from functools import partial
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import PROCESSES, exact_step_kl, randomise
from fldd_lightning import (
    ArrayDataModule,
    CharacterTokenizer,
    DigitsDataModule,
    DiscreteDataModule,
    FLDDError,
    ImageDataModule,
    ImageFLDD,
    LabelLatent,
    Split,
    TextDataModule,
    load_model,
)
from fldd_lightning.bound import Bound
from fldd_lightning.cli import main
from fldd_lightning.data import split_rows
from fldd_lightning.evaluation import Scores
from tiny import build, small_mlp, with_latent

CONFIGS = Path(__file__).parents[1] / "configs"
SMALL = ["--trainer.max_steps", "2", "--trainer.val_check_interval", "2", "--trainer.enable_progress_bar", "false"]
SMALL += ["--trainer.accelerator", "cpu", "--trainer.logger", "false", "--trainer.enable_model_summary", "false"]
SMALL += ["--trainer.callbacks", "[]", "--model.num_steps", "2"]


def fitted(config: str, data: Path, *options: str) -> str:
    """A checkpoint of two steps, which names the data."""
    args = ["fit", "--config", str(CONFIGS / f"{config}.yaml"), "--data.path", str(data), *SMALL, *options]
    assert main([*args, "--trainer.default_root_dir", str(data.parent / config)]) == 0
    return str(next((data.parent / config).rglob("final.ckpt")))


def read(path: Path) -> dict[str, list[str]]:
    """The columns of a CSV file."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: [row[name] for row in rows] for name in rows[0]}


def numbers(column: list[str]) -> list[float]:
    return [float(value) for value in column]


@pytest.fixture(scope="module")
def array(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A model of six numbers in 0..4: folder, rows and checkpoint."""
    folder = tmp_path_factory.mktemp("array")
    x = np.random.default_rng(0).integers(0, 5, (40, 6))
    np.save(folder / "my.npy", x)
    small = ["--model.denoiser.width", "8", "--model.forward_process.network.width", "8", "--model.latents.size", "3"]
    return SimpleNamespace(folder=folder, x=x, checkpoint=fitted("array", folder / "my.npy", *small))


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A model of lines of up to six letters a to d."""
    folder = tmp_path_factory.mktemp("lines")
    (folder / "my.txt").write_text("".join("abcd"[: 1 + i % 4] + "\n" for i in range(40)))
    options = ["--data.padded", "true", "--data.length", "6", "--data.batch_size", "8"]
    return SimpleNamespace(folder=folder, checkpoint=fitted("text", folder / "my.txt", *options))


# ---- from Python ---------------------------------------------------------------------------


def test_scores_are_means_over_draws() -> None:
    draws = [Bound(torch.tensor([[a, 1.0]]), {"kl_c": torch.tensor([b])}, None) for a, b in ((1.0, 0.0), (2.0, 3.0))]
    scores = Scores.of(draws)
    assert scores.nelbo.tolist() == [4.0]  # of 2 and 6
    assert scores.standard_error.tolist() == [2.0]
    assert {name: float(value) for name, value in scores.terms.items()} == {"kl_t1": 1.5, "kl_t2": 1.0, "kl_c": 1.5}
    assert Scores.of(draws[:1]).standard_error.isnan().all()


def test_many_draws_come_close_to_the_exact_bound() -> None:
    model = build(forward_process=PROCESSES["absorbing"])
    randomise(model.reverse)
    x = torch.tensor([[0, 0], [1, 2], [2, 1]])
    exact = torch.stack([exact_step_kl(model.forward_process, model.reverse, x, t) for t in (1, 2)])  # (T, N)
    scores = model.nelbo(x, draws=400)
    assert ((scores.nelbo - exact.sum(0)).abs() < 5 * scores.standard_error).all()
    assert (scores.standard_error < 0.1 * exact.sum(0)).all()
    torch.testing.assert_close(scores.terms["kl_t2"], exact[1], rtol=0.2, atol=0.05)


def test_scores_repeat_with_the_seed_whatever_the_batch() -> None:
    model = with_latent()
    randomise(model.reverse)
    model.train()
    x = torch.randint(3, (7, 2))
    first = model.nelbo(x, draws=3)
    torch.rand(5)
    assert torch.equal(model.nelbo(x, draws=3).nelbo, first.nelbo)
    torch.testing.assert_close(model.nelbo(x, draws=3, batch_size=2).nelbo, first.nelbo)
    torch.testing.assert_close(model.nelbo({"x": x[4:], "index": torch.arange(4, 7)}, draws=3).nelbo, first.nelbo[4:])
    assert not torch.equal(model.nelbo(x, draws=3, seed=1).nelbo, first.nelbo)
    torch.testing.assert_close(torch.stack([*first.terms.values()]).sum(0), first.nelbo)
    assert set(first.terms) == {"kl_t1", "kl_t2", "kl_mixture"}
    assert model.training


def test_labels_count() -> None:
    model = ImageFLDD(2, (8, 8), PROCESSES["absorbing"], small_mlp, latents=partial(LabelLatent, num_labels=10))
    randomise(model)
    split = DigitsDataModule().splits["test"]
    scores = model.nelbo({"x": split.x[:4], "label": split.labels[:4]}, batch_size=3)
    log_p = model.latents[0].logits.log_softmax(0)[split.labels[:4]]
    torch.testing.assert_close(scores.terms["kl_label"].float(), -log_p.detach())
    with pytest.raises(FLDDError, match="no 'label'"):
        model.nelbo(split.x[:4])


@pytest.mark.parametrize(
    ("x", "draws", "expected"),
    [
        (torch.zeros(2, 3, dtype=torch.long), 1, "was built for"),
        (torch.full((2, 2), 3), 1, "must lie in 0..2"),
        (torch.zeros(0, 2, dtype=torch.long), 1, "empty"),
        (torch.zeros(2, 2), 1, "needs integers"),
        (torch.zeros(2, 2, dtype=torch.long), 0, "draws of FLDD is 0"),
    ],
)
def test_what_cannot_be_scored_is_refused(x: torch.Tensor, draws: int, expected: str) -> None:
    with pytest.raises(FLDDError, match=expected):
        build().nelbo(x, draws)


# ---- all rows of data ----------------------------------------------------------------------


class Own(DiscreteDataModule):
    """A data module of a user, with the three splits that it must give and no more."""

    def load(self) -> dict[str, Split]:
        return split_rows(torch.arange(30).view(10, 3), 0.2, 0.2, self.seed)


def test_rows_of_ones_own_data_are_in_order() -> None:
    assert torch.equal(Own().all_rows().x, torch.arange(30).view(10, 3))


def test_rows_of_digits_are_those_of_the_source() -> None:
    from sklearn.datasets import load_digits

    rows = DigitsDataModule(binary=False).all_rows()
    assert np.array_equal(rows.x, load_digits().images)
    assert np.array_equal(rows.labels, load_digits().target)


def test_an_array_of_one_row_is_enough(tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", np.array([[3, 1]]))
    data = ArrayDataModule(str(tmp_path / "one.npy"))
    assert data.all_rows().x.tolist() == [[3, 1]]
    with pytest.raises(FLDDError, match="at least 3 examples"):
        _ = data.splits


def test_pictures_are_neither_held_out_nor_mirrored(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 4, 4), dtype=np.uint8)
    for i, image in enumerate(pixels):
        path = tmp_path / "pictures" / "ab"[i // 3] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    rows = ImageDataModule(str(tmp_path / "pictures"), flip=True).all_rows()
    assert np.array_equal(rows.x, pixels)
    assert rows.labels is not None
    assert rows.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert torch.equal(rows[2]["x"], rows.x[2])
    drawn = ImageDataModule(str(tmp_path / "pictures"), levels=2, stochastic=True)
    assert torch.equal(drawn.all_rows().x, drawn.all_rows().x)


def test_texts_are_rows_in_a_models_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "train.txt").write_text("ab\nc\n")
    (tmp_path / "test.txt").write_text("a\n")
    data = TextDataModule(str(tmp_path), val_path=str(tmp_path / "train.txt"), length=3, padded=True)
    data.write_in(CharacterTokenizer("abcd"))
    assert data.all_rows().x.tolist() == [[0, 1, 4], [2, 4, 4], [0, 4, 4]]
    told: list[str] = []
    monkeypatch.setattr("fldd_lightning.data.text.rank_zero_info", told.append)
    blocks = TextDataModule(str(tmp_path / "train.txt"), length=3, separator="d")
    blocks.write_in(CharacterTokenizer("abcd"))
    assert blocks.all_rows().x.tolist() == [[0, 1, 3]]
    assert "the last 1 of 4 tokens fill no block of 3" in told[0]


# ---- the command ---------------------------------------------------------------------------


def test_every_row_of_an_array_has_its_line(array: SimpleNamespace, tmp_path: Path) -> None:
    x = array.x[[5, 5, 0, 7]]
    np.save(tmp_path / "new.npy", x)
    args = ["score", "--ckpt_path", array.checkpoint, "--data.path", str(tmp_path / "new.npy"), "--draws", "3"]
    for name, more in (("a", []), ("b", ["--data.batch_size", "3"])):
        assert main([*args, "--output", str(tmp_path / "there" / f"{name}.csv"), *more]) == 0
    table = read(tmp_path / "there" / "a.csv")
    assert list(table) == ["row", "nelbo", "nelbo_se", "kl_t1", "kl_t2", "kl_mixture"]
    assert table["row"] == ["0", "1", "2", "3"]
    scores = load_model(array.checkpoint).nelbo(torch.from_numpy(x), draws=3)
    assert np.allclose([float(value) for value in table["nelbo"]], scores.nelbo, rtol=1e-5)
    assert np.allclose([float(value) for value in table["nelbo_se"]], scores.standard_error, rtol=1e-3)
    other = read(tmp_path / "there" / "b.csv")
    assert np.allclose(
        [float(value) for value in table["nelbo"]], [float(value) for value in other["nelbo"]], rtol=1e-5
    )


def test_without_a_file_all_of_the_checkpoints_data_are_scored(array: SimpleNamespace, tmp_path: Path) -> None:
    assert main(["score", "--ckpt_path", array.checkpoint, "--output", str(tmp_path / "all.csv")]) == 0
    table = read(tmp_path / "all.csv")
    assert len(table["row"]) == 40
    assert set(table["nelbo_se"]) == {""}  # of one draw


def test_every_line_of_a_text_has_its_line(lines: SimpleNamespace, tmp_path: Path) -> None:
    """Although the file has fewer characters than the model knows."""
    (tmp_path / "new.txt").write_text("ab\nb\naaaaaaaaa\n")
    args = ["score", "--ckpt_path", lines.checkpoint, "--data.path", str(tmp_path / "new.txt")]
    assert main([*args, "--output", str(tmp_path / "new.csv")]) == 0
    table = read(tmp_path / "new.csv")
    assert table["row"] == ["0", "1", "2"]
    log_p = load_model(lines.checkpoint).latents[-1].log_prior  # type: ignore[union-attr]
    assert numbers(table["kl_length"]) == pytest.approx((-log_p[[2, 1, 6]]).tolist(), rel=1e-5)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("new.csv", 'text,n\n"ab",1\n,2\nc,3\n'),
        ("new.jsonl", '{"text": "ab"}\n{"text": null}\n{"text": "c"}\n'),
        ("new.fasta", ">1\nab\n>2\n>3\nc\n"),
    ],
)
def test_a_row_without_text_is_not_left_out(
    name: str, content: str, lines: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else the numbers of the rows behind it would be those of others."""
    (tmp_path / name).write_text(content)
    args = ["score", "--ckpt_path", lines.checkpoint, "--data.path", str(tmp_path / name)]
    capsys.readouterr()
    assert main([*args, "--output", str(tmp_path / "scores.csv")]) == 1
    assert "row 1 (from 0) has no text in column 'text'" in capsys.readouterr().err
    assert not (tmp_path / "scores.csv").exists()


def test_a_pretrained_model_knows_its_length_and_names_a_separator(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "new.txt").write_text("the cat\n" * 30)
    args = ["score", "--pretrained", "text", "--data", "TextDataModule", "--data.path", str(tmp_path / "new.txt")]
    args += ["--output", str(tmp_path / "scores.csv")]
    assert main(args) == 1
    assert "documents are joined by '\\n', which 27 characters ' abcdefghijklmnopqrstuvwxyz' cannot write." in (
        capsys.readouterr().err
    )
    assert main([*args, "--data.separator", " "]) == 0
    assert len(read(tmp_path / "scores.csv")["row"]) == 30 * 8 // 64  # blocks of its length


def bad(values: object) -> bytes:
    """An array as a file holds it."""
    file = BytesIO()
    np.save(file, np.array(values))
    return file.getvalue()


@pytest.mark.parametrize(
    ("kind", "content", "expected"),
    [
        ("array", bad([[0, 1, 2, 3, 4, 5]]), "values from 0 to 5, but num_classes is 5"),
        ("array", bad([[0, 1, 2]]), "was built for (batch, 6)"),
        ("array", bad([[0.5] * 6]), "needs integers"),
        ("array", bad([[-1] * 6]), "integers start at 0"),
        ("array", bad([]), "none empty"),
        ("array", b"nonsense", "cannot read"),
        ("array", None, "no file at"),
        ("lines", b"ab\nxyz\n", "the character 'x'"),
        ("lines", b"ab\n\nc\n", "1 of 3 documents are empty"),
        ("lines", b"", "no.txt"),
        ("lines", b"\xff\xfe\n", "UTF-8"),
        ("lines", None, "does not exist"),
    ],
)
def test_bad_files_are_one_sentence_and_leave_nothing(
    kind: str,
    content: bytes | None,
    expected: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / ("no.npy" if kind == "array" else "no.txt")
    if content is not None:
        path.write_bytes(content)
    args = ["score", "--ckpt_path", request.getfixturevalue(kind).checkpoint, "--data.path", str(path)]
    capsys.readouterr()
    assert main([*args, "--output", str(tmp_path / "scores.csv")]) == 1
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("error: ")
    assert expected in message
    assert not list(tmp_path.glob("scores*"))


def test_a_file_that_is_there_is_left_alone(
    array: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "scores.csv").write_text("mine")
    args = ["score", "--ckpt_path", array.checkpoint, "--output"]
    assert main([*args, str(tmp_path / "scores.csv")]) == 1
    assert "is there already" in capsys.readouterr().err
    assert (tmp_path / "scores.csv").read_text() == "mine"
    assert main([*args, str(tmp_path / "scores.csv" / "more.csv")]) == 1
    assert "cannot write into" in capsys.readouterr().err


def test_another_file_replaces_all_of_the_checkpoint(tmp_path: Path) -> None:
    """Those of its further splits, too: of which would the numbers be?"""
    for name in ("my", "val", "test", "new"):
        (tmp_path / f"{name}.txt").write_text("".join("abcd"[: 1 + i % 4] + "\n" for i in range(40 + len(name))))
    others = ["--data.val_path", str(tmp_path / "val.txt"), "--data.test_path", str(tmp_path / "test.txt")]
    checkpoint = fitted("text", tmp_path / "my.txt", "--data.padded", "true", "--data.length", "6", *others)

    def examples(*options: str) -> int:
        folder = tmp_path / f"evaluated{len(list(tmp_path.glob('evaluated*')))}"
        args = ["evaluate", "--ckpt_path", checkpoint, "--output", str(folder), "--callbacks", "[]", *options]
        assert main(args) == 0
        return int(json.loads((folder / "evaluation.json").read_text())["examples"])

    assert examples() == 44
    assert examples("--data.path", str(tmp_path / "new.txt"), "--data.test_fraction", "0.5") == round(43 / 2)
    assert examples("--data.test_path", str(tmp_path / "new.txt")) == 43


def test_without_a_model_it_is_said_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("score", "evaluate"):
        assert main([command]) == 1
        assert "give a model: --ckpt_path FILE" in capsys.readouterr().err


def test_options_that_are_wrong_are_one_sentence(
    array: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["score", "--ckpt_path", array.checkpoint, "--output", str(tmp_path / "scores.csv")]
    with pytest.raises(SystemExit, match="2"):
        main([*args, "--data.pth", "new.npy"])
    assert "--data: Option 'pth' is not accepted" in capsys.readouterr().err.strip().splitlines()[-1]
    for more, said in (
        (["--draws", "0"], "draws is 0"),
        (["--data.length", "3"], "--data.length is what the model was trained with"),
        (["--data.bins=3"], "--data.bins is what the model was trained with"),
        (["--data.test_path", "my.txt"], "give the file as --data.path, not --data.test_path"),
        (["--seed", "-1"], "seed is -1"),
    ):
        assert main([*args, *more]) == 1
        assert said in capsys.readouterr().err
    assert main([*args, "--data.num_classes", "3"]) == 1
    assert "num_classes is 3" in capsys.readouterr().err
