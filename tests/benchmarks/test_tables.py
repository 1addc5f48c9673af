"""Tables of the pages agree with their CSVs, and a change of either is caught."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tables import main, pages, rewritten

ROOT = Path(__file__).parents[2]


def test_all_tables_agree_with_their_csvs() -> None:
    assert main(["--check"]) == 0
    assert "<!-- table" in (ROOT / "docs" / "results.md").read_text()


@pytest.mark.parametrize("what", ["page", "csv"])
def test_a_changed_number_is_caught(tmp_path: Path, what: str, capsys: pytest.CaptureFixture[str]) -> None:
    for path in pages(ROOT):
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    shutil.copytree(ROOT / "benchmarks" / "results", tmp_path / "benchmarks" / "results", dirs_exist_ok=True)
    assert main(["--check"], tmp_path) == 0
    changed = tmp_path / ("docs/results.md" if what == "page" else "benchmarks/results/mnist.csv")
    text = changed.read_text()
    old = "65.15" if what == "page" else "65.1512"
    assert old in text
    changed.write_text(text.replace(old, "61.11"))
    assert main(["--check"], tmp_path) == 1
    said = capsys.readouterr().err
    assert "docs/results.md: row 'order by hand, autoencoder', column 'bound, nats'" in said
    assert "61.11" in said
    assert "65.15" in said
    main([], tmp_path)
    assert main(["--check"], tmp_path) == 0


def test_long_tables_and_rows_without_a_line_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("name,value\nx,0.5\ny,0.25\nx,1.5\n")
    asked = "csv: a\ncolumns: [what, value .1f, per cent, 'value .0f%']\nrows: {one: {name: x}}"
    page = f"<!-- table\n{asked}\n-->\n<!-- end table -->"
    assert "| one | 1.0 (0.5 to 1.5) | 100 (50 to 150) | 2 |" in rewritten(page, tmp_path)
    with pytest.raises(ValueError, match="no line"):
        rewritten(page.replace("name: x", "name: z"), tmp_path)
    many = ", ".join(f"{i}: {{name: x}}" for i in range(7))
    with pytest.raises(ValueError, match="7 rows"):
        rewritten(page.replace("one: {name: x}", many), tmp_path)
    with pytest.raises(ValueError, match="no column colour"):
        rewritten(page.replace("name: x", "colour: x"), tmp_path)


def test_a_column_may_be_of_other_lines(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("seed,steps,value\n0,10,1\n1,10,3\n0,20,9\n")
    asked = "columns: [one, {value .0f: {steps: 20}}, all, {value .1f: {steps: 10}}]\nrows: {x: {}}"
    assert "| x | 9 | 2.0 (1.0 to 3.0) | 1 or 2 |" in rewritten(
        f"<!-- table\ncsv: a\n{asked}\n-->\n<!-- end table -->", tmp_path
    )


def test_no_average_over_more_than_seeds(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("seed,steps,value\n0,10,1\n1,10,2\n0,20,9\n")
    page = "<!-- table\ncsv: a\ncolumns: [value, value .0f]\nrows: {one: {steps: 10}}\n-->\n<!-- end table -->"
    assert "| one | 2 (1 to 2) | 2 |" in rewritten(page, tmp_path)
    with pytest.raises(ValueError, match="several lines of one seed"):
        rewritten(page.replace("{steps: 10}", "{}"), tmp_path)


def test_a_table_without_an_end_does_not_swallow_the_page(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="end table"):
        rewritten("<!-- table\ncsv: a\n-->\n\nProse.\n", tmp_path)
