"""Columns of tables: categories, bins, missing entries, and what is refused."""

from __future__ import annotations

import gzip
import json
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from fldd_lightning import FLDDError, TableDataModule
from fldd_lightning.data.columns import Bins, Categories, Columns
from fldd_lightning.data.find_column import find_column


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def table(folder: Path, text: str, name: str = "a.csv", **options: Any) -> TableDataModule:
    (folder / name).write_text(text)
    return TableDataModule(str(folder / name), **options)


def rows(data: TableDataModule) -> list[list[str]]:
    """All rows as they come back."""
    return [line.split(",") for line in data.columns.lines(data.all_rows().x)]


def test_every_column_has_the_values_it_needs(tmp_path: Path) -> None:
    lines = "".join(f"{i},{'ab'[i % 2]},{'wxyz'[i % 4]},k\n" for i in range(40))
    data = table(tmp_path, "n,two,four,one\n" + lines, bins=8)
    assert data.columns.names == ["n", "two", "four", "one"]
    assert data.num_values == [8, 2, 4, 1]
    assert (data.num_classes, data.shape) == (8, (4,))
    x = data.all_rows().x
    assert x.dtype == torch.uint8
    assert x[:, 0].bincount().tolist() == [5] * 8
    assert sorted(torch.cat([split.x for split in data.splits.values()]).tolist()) == sorted(x.tolist())
    assert rows(data)[7] == ["7", "b", "z", "k"]  # of 5 to 9
    assert rows(data)[39] == ["37", "b", "z", "k"]


def test_missing_entries_are_a_value_of_their_own(tmp_path: Path) -> None:
    text = 'n,few,text,?\n1,?,?,x\n,1.0," ",x\n2,01,"",x\nNA,2, b ,x\n4,nan,b,x\n5.5,1,b,x\n\n\n'
    data = table(tmp_path, text, bins=3)
    n, few, words, last = data.columns.columns
    assert isinstance(n, Bins)
    assert (n.missing, n.whole, n.num_values) == (True, False, 4)
    assert few == Categories("few", True, ("1", "2"), are_numbers=True)
    assert words == Categories("text", True, ("?", "b"), are_numbers=False)  # of texts, ? is one
    assert last == Categories("?", False, ("x",), are_numbers=False)
    assert len(data.all_rows()) == 6  # the line breaks at the end are no rows
    assert [row[1:] for row in rows(data)] == [
        ["", "?", "x"],
        ["1", "", "x"],
        ["1", "", "x"],
        ["2", "b", "x"],
        ["", "b", "x"],
        ["1", "b", "x"],
    ]
    assert [row[0] == "" for row in rows(data)] == [False, True, False, True, False, False]


def test_frequent_numbers_fill_a_bin(tmp_path: Path) -> None:
    data = table(tmp_path, "gain,x\n" + "0,a\n" * 90 + "".join(f"{i},b\n" for i in range(100, 110)), bins=6)
    (gain, _) = data.columns.columns
    assert isinstance(gain, Bins)
    assert gain.low == (0, 100, 102, 104, 106, 108)
    assert gain.high == (0, 101, 103, 105, 107, 109)
    assert [gain.entry(place) for place in range(7)] == ["0", "100", "102", "104", "106", "108", "·"]
    assert [gain.place(entry) for entry in ("-5", "99.5", "100", "101.5", "1e9")] == [0, 0, 1, 1, 5]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.one_of(st.integers(-50, 50), st.floats(-1e300, 1e300, allow_subnormal=True)), min_size=1, max_size=80),
    st.integers(2, 9),
)
def test_bins_hold_every_number_once_and_their_midpoints(numbers: list[float], bins: int) -> None:
    entries = [repr(float(number)) for number in numbers]
    column = find_column("n", pd.Series(entries).value_counts().to_dict(), bins, as_text=False)
    assert 1 <= column.num_values <= bins
    assert isinstance(column, Bins) == (len({float(number) for number in numbers}) > bins)
    places = {column.place(entry) for entry in entries}
    assert places == set(range(column.num_values))  # none is empty
    for place in places:
        assert column.place(column.entry(place)) == place
    if isinstance(column, Bins):
        for entry in entries:
            place = column.place(entry)
            assert column.low[place] <= float(entry) <= column.high[place]
    assert Columns.of_state(Columns([column]).state()).columns == (column,)


def test_midpoints_are_written_as_people_write_numbers() -> None:
    column = Bins("hours", False, low=(0.1, 40.1, 1e-9), high=(0.2, 40.6, 3e-9), whole=False)
    assert [column.entry(place) for place in range(3)] == ["0.15", "40.35", "2e-09"]
    assert Bins("n", False, low=(1.0,), high=(4.0,), whole=True).entry(0) == "2"


def test_rows_that_are_known_in_part() -> None:
    columns = Columns(
        [
            Bins("age", True, low=(17.0, 30.0), high=(29.0, 90.0), whole=True),
            Categories("job", False, ("a", "b"), False),
        ]
    )
    rows = [
        {"age": 35},
        {"age": "", "job": " b "},
        {"age": None, "job": "___"},
        {"job": "a"},
        {},
        {"age": np.int64(20)},
    ]
    assert columns.given(rows).tolist() == [[1, -1], [2, 1], [2, -1], [-1, 0], [-1, -1], [0, -1]]
    for wrong, said in (
        ([{"jobs": "a"}], "'jobs' is no column of the model's: it has age, job"),
        ([{"job": "c"}], "column 'job' holds 'c'"),
        ([{"job": ""}], "column 'job' lacks an entry"),
        ([], "no row is given"),
    ):
        with pytest.raises(FLDDError, match=said):
            columns.given(wrong)


def test_parquet_is_read_by_its_types(tmp_path: Path) -> None:
    made = pa.table(
        {
            "whole": pa.array([1, 2, None, 4, 5, 6], pa.int32()),
            "real": [0.5, float("nan"), 1.0, 2.0, 3.0, 4.25],
            "flag": [True, False, None, True, True, True],
            "day": [date(2020, 1, 1), date(2020, 1, 2), None, None, None, None],
            "text": pa.array(["a", "b", "a", "a", "b", None]).dictionary_encode(),
            "empty": pa.nulls(6),
        }
    )
    parquet.write_table(made, tmp_path / "a.parquet")
    data = TableDataModule(str(tmp_path / "a.parquet"), bins=5)
    assert data.num_values == [6, 6, 3, 3, 3, 1]
    assert rows(data)[0] == ["1", "0.5", "True", "2020-01-01", "a", ""]
    assert rows(data)[2] == ["", "1", "", "", "a", ""]
    assert rows(data)[1][:2] == ["2", ""]


def test_numbers_as_text_and_columns_left_out(tmp_path: Path) -> None:
    text = "id,zip,y\n" + "".join(f"{i},0{i % 3},{i % 2}\n" for i in range(20))
    data = table(tmp_path, text, leave_out=["id"], as_text=["zip"])
    assert data.columns.names == ["zip", "y"]
    assert data.columns.columns[0] == Categories("zip", False, ("00", "01", "02"), are_numbers=False)


def test_folders_have_splits_and_order_of_columns_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("a,b\nu,1\nv,2\nu,1\n")
    (tmp_path / "test.csv.gz").write_bytes(gzip.compress(b"b,a\n2,w\n"))
    data = TableDataModule(str(tmp_path), val_fraction=0.3)
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 2, "val": 1, "test": 1}
    (line,) = data.columns.lines(data.splits["test"].x)
    assert dict(zip(data.columns.names, line.split(","), strict=True)) == {"a": "w", "b": "2"}
    assert dict(zip(data.columns.names, data.num_values, strict=True)) == {"a": 3, "b": 2}


def test_other_data_have_the_columns_they_are_given(tmp_path: Path) -> None:
    first = table(tmp_path, "n,s\n" + "".join(f"{i},{'ab'[i % 2]}\n" for i in range(40)), bins=4)
    state = first.columns.state()
    other = table(tmp_path, "s,extra,n\nb,9,1000\na,9,0\n", "b.csv", columns=state)
    assert other.num_values == [4, 2]
    assert other.all_rows().x.tolist() == [[3, 1], [0, 0]]
    assert first.hparams["columns"] == state  # which checkpoints keep


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("n,s\n3,c\n", r"column 's' holds 'c', which was not there in training: it had 'a', 'b'\. "),
        ("n,s\n3,\n", r"column 's' lacks an entry, but in training none was missing"),
        ("n,s\nx,a\n", r"column 'n' holds 'x', but in training it held numbers"),
        ("n,t\n3,a\n", r"no column 's', only n, t"),
        ("n,s\n", "is empty, or has a header alone"),
        ("n,s\n,\n\n", "has no row for train"),
    ],
)
def test_other_entries_are_named(tmp_path: Path, text: str, message: str) -> None:
    state = Columns([Bins("n", False, (0.0, 5.0), (4.0, 9.0), True), Categories("s", False, ("a", "b"), False)]).state()
    with pytest.raises(FLDDError, match=message):
        table(tmp_path, text, columns=state).all_rows()


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("a,b\nx,y\nx,y\nx,y\n", {}, "no column with two different entries"),
        ("a\nx\ny\n", {}, "cannot be split"),
        ("a,b\nx,1\ny,2\nx,1\n", {"leave_out": ["c"]}, "no column 'c' for data.leave_out"),
        ("a,b\nx,1\ny,2\nx,1\n", {"as_text": ["c"]}, "no column 'c' for data.as_text"),
        ("a,b\nx,1\ny,2\nx,1\n", {"bins": 1}, "bins of .* is 1"),
        ("39,State,Male\n38,Self,Male\n39,State,Female\n40,Self,Male\n", {}, "looks like a row"),
        ("id\n" + "".join(f"r{i}\n" for i in range(5_001)), {}, r"5001 different texts.*--data\.leave_out"),
        ("a;b\n1;2\n", {}, "separate the columns by commas"),
    ],
)
def test_tables_that_cannot_be_used_are_named(tmp_path: Path, text: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(FLDDError, match=message):
        _ = table(tmp_path, text, **options).splits


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array([[1], [2], [3]]), "column 'c' holds list<"),
        (pa.array([0.0, float("inf"), 1.0]), "column 'c' holds inf"),
        (pa.array([b"a", b"b", b"c"]), "column 'c' holds a bytes"),
    ],
)
def test_columns_of_other_kinds_are_named(tmp_path: Path, column: pa.Array, message: str) -> None:
    parquet.write_table(pa.table({"c": column}), tmp_path / "a.parquet")
    with pytest.raises(FLDDError, match=message):
        _ = TableDataModule(str(tmp_path / "a.parquet")).splits


@pytest.mark.parametrize(
    "state",
    [
        "",
        "[]",
        "{}",
        "[1]",
        "[" * 100_000,
        '[{"name": "a"}]',
        '[{"name": 1, "missing": false, "categories": ["a"], "are_numbers": false}]',
        '[{"name": "a", "missing": false, "categories": [1], "are_numbers": false}]',
        '[{"name": "a", "missing": false, "categories": [], "are_numbers": false}]',
        '[{"name": "a", "missing": false, "low": [0, 2], "high": [1], "whole": true}]',
        '[{"name": "a", "missing": false, "low": [2, 0], "high": [3, 1], "whole": true}]',
        '[{"name": "a", "missing": false, "low": [NaN], "high": [NaN], "whole": true}]',
        '[{"name": "a", "missing": false, "low": [1' + "0" * 400 + '], "high": [1], "whole": true}]',
    ],
)
def test_damaged_columns_are_refused(state: str) -> None:
    with pytest.raises(FLDDError):
        Columns.of_state(state)


def test_columns_are_plain_data() -> None:
    column = Categories("a", False, ("x", "y"), False)
    state = json.loads(Columns([column]).state())
    assert state == [{"name": "a", "missing": False, "categories": ["x", "y"], "are_numbers": False}]
