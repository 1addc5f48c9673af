"""Tables through the command line: fit, test, score and sample, with a table made here."""

from __future__ import annotations

import csv
import gzip
import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
import torch
from lightning import Trainer

from fldd_lightning import FLDD, AbsorbingProcess, FLDDError, TableDataModule, TableFLDD, load_model
from fldd_lightning.cli import main
from fldd_lightning.data.columns import Columns
from tiny import small_mlp

CONFIG = Path(__file__).parents[1] / "configs" / "table.yaml"
SMALL = ["--model.denoiser.width", "8", "--model.forward_process.network.width", "8", "--model.latents.size", "3"]
SMALL += ["--trainer.max_steps", "2", "--trainer.val_check_interval", "1", "--trainer.enable_progress_bar", "false"]
SMALL += ["--trainer.accelerator", "cpu", "--trainer.logger", "false", "--trainer.enable_model_summary", "false"]
SMALL += ["--model.num_steps", "2", "--data.bins", "5"]
QUIET = ["--trainer.accelerator", "cpu", "--trainer.logger", "false", "--trainer.enable_progress_bar", "false"]
JOBS = [' Self, "inc"', " Private", " State", " ?"]


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write(path: Path, rows: list[list[object]]) -> str:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["age", "job", "sex", "gain"], *rows])
    return str(path)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A model of a table like UCI's adult: its folder, table and checkpoint."""
    folder = tmp_path_factory.mktemp("table")
    with pytest.MonkeyPatch.context() as patch:
        import datasets.config

        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
        random = np.random.default_rng(0)
        ages = random.integers(17, 91, 60).tolist()
        rows = [[ages[i] if i % 9 else "", JOBS[i % 4], ["F", "M"][i % 2], 0 if i % 5 else i * 100] for i in range(60)]
        path = write(folder / "adult.csv", rows)
        args = ["fit", "--config", str(CONFIG), "--data.path", path, *SMALL]
        assert main([*args, "--trainer.default_root_dir", str(folder)]) == 0
    return SimpleNamespace(folder=folder, path=path, checkpoint=str(next(folder.rglob("final.ckpt"))))


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def test_samples_come_back_as_csv(run: SimpleNamespace, tmp_path: Path) -> None:
    args = ["sample", "--ckpt_path", run.checkpoint, "--num_samples", "200", "--trajectory", "true"]
    assert main([*args, "--output", str(tmp_path / "x.csv")]) == 0
    assert {file.name for file in tmp_path.glob("x*")} == {"x.csv", "x.npy", "x_trajectory.npy", "x_trajectory.txt"}
    samples = read(tmp_path / "x.csv")
    assert len(samples) == 200
    assert list(samples[0]) == ["age", "job", "sex", "gain"]
    assert {row["job"] for row in samples} == {job.strip() for job in JOBS}
    assert {row["sex"] for row in samples} == {"F", "M"}
    ages = {row["age"] for row in samples}
    assert len(ages) == 6  # five bins, and none
    assert all(17 <= int(age) <= 90 for age in ages - {""})
    model = load_model(run.checkpoint)
    assert model.spec.num_values == (6, 4, 2, 5)
    assert (np.load(tmp_path / "x.npy") < np.array(model.spec.num_values)).all()
    assert "·,·,·,·" in (tmp_path / "x_trajectory.txt").read_text()
    # they are a table of the same columns, with the integers that were drawn
    data = TableDataModule(str(tmp_path / "x.csv"), columns=model.columns.state())  # type: ignore[union-attr]
    assert data.all_rows().x.tolist() == np.load(tmp_path / "x.npy").tolist()


def test_rows_are_completed(run: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    known, args = (
        tmp_path / "known.csv",
        ["sample", "--ckpt_path", run.checkpoint, "--given", str(tmp_path / "known.csv")],
    )
    known.write_text("sex,job,age\nF,Private,\n___,State,500\n")
    assert main([*args, "--output", str(tmp_path / "x")]) == 0
    first, second = read(tmp_path / "x.csv")
    assert (first["sex"], first["job"], first["age"], second["job"]) == ("F", "Private", "", "State")
    assert int(second["age"]) > 70
    known.write_text("sex\nM\n")
    assert main([*args, "--output", str(tmp_path / "y")]) == 0
    assert [row["sex"] for row in read(tmp_path / "y.csv")] == ["M"] * 64
    with gzip.open(tmp_path / "blank.CSV.gz", "wt") as file:  # a blank line is a missing entry of the one column
        file.write("\ufeff age \n20\n\n_____\n\n")
    args[-1] = str(tmp_path / "blank.CSV.gz")
    assert main([*args, "--output", str(tmp_path / "w")]) == 0
    ages = [row["age"] for row in read(tmp_path / "w.csv")]
    assert len(ages) == 4
    assert (ages[0] != "", ages[1], ages[3]) == (True, "", "")
    args[-1] = str(known)
    for text, said in (
        ("sex,job\nF\n", "known.csv': row 0 (from 0) has 1 fields, and the header 2. Correct it."),
        ("sex\nF,State\n", "row 0 (from 0) has 2 fields, and the header 1"),
        (
            "sex\nF\nX\n",
            "row 1 (from 0): column 'sex' holds 'X', which was not there in training: it had 'F', 'M'. Write",
        ),
        ("sex,sex\nF,M\n", "has a column twice: sex, sex"),
        ("sex\n\n", "row 0 (from 0): column 'sex' lacks an entry, but in training none was missing. Write ___ for"),
        ("sexes\nF\n", "'sexes' is no column of the model's: it has age, job, sex, gain"),
        ("sex\n", "no row is given"),
    ):
        known.write_text(text)
        assert main([*args, "--output", str(tmp_path / "z")]) == 1
        assert said in capsys.readouterr().err
    assert not list(tmp_path.glob("z*"))
    given = ["sample", "--pretrained", "digits", "--given", str(known), "--output", str(tmp_path / "z")]
    assert main(given) == 1
    assert "takes a .csv for models of tables, not ImageFLDD" in capsys.readouterr().err


def test_names_of_columns_have_no_white_space(tmp_path: Path) -> None:
    """UCI's files have a space behind every comma."""
    (tmp_path / "a.csv").write_text("age, job, number\n" + "".join(f"{i % 5}, {'ab'[i % 2]}, {i}\n" for i in range(20)))
    data = TableDataModule(str(tmp_path / "a.csv"), leave_out=["number"], as_text=["age"])
    assert data.columns.names == ["age", "job"]
    assert data.num_values == [5, 2]
    (tmp_path / "b.csv").write_text("age, age\n1,2\n2,1\n3,3\n4,4\n")
    with pytest.raises(FLDDError, match="two columns are called 'age'"):
        _ = TableDataModule(str(tmp_path / "b.csv")).splits


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_files_of_a_folder_have_the_same_columns(ending: str, tmp_path: Path) -> None:
    for name, other in (("a", "y"), ("b", "z")):
        table = pa.table({"x": ["1", "2", "3"], other: ["1", "2", "3"]})
        path = tmp_path / f"{name}.{ending}"
        pa_csv.write_csv(table, path) if ending == "csv" else pq.write_table(table, path)
    said = r"b.csv' has the columns \['x', 'z'\]" if ending == "csv" else "must have the same columns"
    with pytest.raises(FLDDError, match=said):
        _ = TableDataModule(str(tmp_path)).splits


def test_samples_are_written_over_training(run: SimpleNamespace) -> None:
    (file,) = run.folder.rglob("samples_step2.csv")
    assert list(read(file)[0]) == ["age", "job", "sex", "gain"]


def test_other_rows_are_scored_and_tested_with_the_same_bins(
    run: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [[20, "Private", "F", 0], ["", "?", "M", 0], [500, "Private", "F", 99999], [20, " Private ", "F", 0]]
    path = write(tmp_path / "new.csv", rows)
    args = ["score", "--ckpt_path", run.checkpoint, "--data.path", path, "--output", str(tmp_path / "s.csv")]
    assert main(args) == 0
    scores = read(tmp_path / "s.csv")
    assert len(scores) == 4
    assert all(np.isfinite(float(row["nelbo"])) for row in scores)
    assert main(["test", "--ckpt_path", run.checkpoint, "--data.path", path, *QUIET]) == 0
    assert "test/nelbo" in capsys.readouterr().out


def test_evaluation_names_the_columns_in_full_in_its_json_alone(run: SimpleNamespace, tmp_path: Path) -> None:
    assert main(["evaluate", "--ckpt_path", run.checkpoint, "--output", str(tmp_path / "e")]) == 0
    facts = json.loads((tmp_path / "e" / "evaluation.json").read_text())
    assert len(Columns.of_state(facts["data"]["columns"]).columns) == 4
    page = (tmp_path / "e" / "evaluation.md").read_text()
    (line,) = [line for line in page.splitlines() if line.startswith("- data: ")]
    assert 'columns [{"name": "age"' in line
    assert '"gain"' not in line


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([20, "Clerk", "F", 0], "column 'job' holds 'Clerk', which was not there in training"),
        ([20, "Private", "", 0], "column 'sex' lacks an entry"),
        (["old", "Private", "F", 0], "column 'age' holds 'old'"),
    ],
)
@pytest.mark.parametrize("command", ["score", "test"])
def test_entries_that_were_not_there_in_training_are_refused(
    run: SimpleNamespace,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    row: list[object],
    message: str,
    command: str,
) -> None:
    path = write(tmp_path / "new.csv", [[20, "Private", "F", 0]] * 4 + [row])
    options = ["--output", str(tmp_path / "s.csv")] if command == "score" else QUIET
    assert main([command, "--ckpt_path", run.checkpoint, "--data.path", path, *options]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "s.csv").exists()


def test_checkpoint_holds_plain_data(run: SimpleNamespace) -> None:
    checkpoint = torch.load(run.checkpoint, weights_only=True)
    assert checkpoint["fldd_columns"] == checkpoint["datamodule_hyper_parameters"]["columns"]
    assert "Private" in checkpoint["fldd_columns"]
    checkpoint["fldd_columns"] = '[{"name": "a", "missing": false, "categories": ["x"], "are_numbers": false}]'
    damaged = Path(run.checkpoint).with_name("damaged.ckpt")
    torch.save(checkpoint, damaged)
    with pytest.raises(FLDDError, match="other numbers of values"):
        load_model(damaged)


def test_models_from_python(run: SimpleNamespace, tmp_path: Path) -> None:
    data = TableDataModule(run.path, bins=5)
    make = partial(TableFLDD, data.num_classes, data.shape, AbsorbingProcess, small_mlp, num_steps=2)
    options = {"accelerator": "cpu", "max_steps": 1, "logger": False, "enable_progress_bar": False}
    trainer = Trainer(default_root_dir=tmp_path, enable_model_summary=False, **options)
    with pytest.raises(FLDDError, match=r"num_values=data\.num_values"):
        trainer.fit(make(), data)
    model = make(num_values=data.num_values)
    assert model.to_text(torch.zeros(1, 4, dtype=torch.long)) is None  # before it knows the columns
    trainer.fit(model, data)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    args = ["score", "--ckpt_path", str(tmp_path / "a.ckpt"), "--data", "TableDataModule"]
    path = write(tmp_path / "new.csv", [[20, "Private", "F", 0]])
    assert main([*args, "--data.path", path, "--output", str(tmp_path / "s.csv")]) == 0
    assert len(read(tmp_path / "s.csv")) == 1
    other = [[20 + i, JOBS[i % 4], "FM"[i % 2], i] if i else ["", JOBS[0], "F", 0] for i in range(40)]
    again = TableDataModule(write(tmp_path / "other.csv", other), bins=5)
    with pytest.raises(FLDDError, match="column 'age' of the table has other categories or bins"):
        trainer.test(model, again)


def test_other_models_keep_to_the_values_too(run: SimpleNamespace, tmp_path: Path) -> None:
    data = TableDataModule(run.path, bins=5)
    model = FLDD(data.num_classes, data.shape, AbsorbingProcess, small_mlp, num_steps=2, num_values=data.num_values)
    samples = model.sample(200)
    assert (samples.max(0).values == torch.tensor(data.num_values) - 1).all()
