"""Makes the tables of the pages from the CSVs, so that no number is typed by hand.

    python benchmarks/tables.py          # writes them
    python benchmarks/tables.py --check  # fails where a page disagrees with its CSV

A page holds, in front of each table, a comment that says what stands in it (YAML), and another behind it:

    <!-- table
    csv: mnist                      # benchmarks/results/mnist.csv
    where: {network: mlp, size: 16} # columns that all rows share
    columns: [T, num_steps, bound, nelbo .2f, Fréchet distance, frechet .2f]
    rows:
      masked diffusion: {process: absorbing, num_steps: 64}
    -->
    ...
    <!-- end table -->

``columns`` alternates titles with columns of the CSV. A number with a format is the mean over the seeds of a row, with
the lowest and the highest behind it if they differ; ``%`` as a format's last letter makes per cent.
``{nelbo .2f: {trained: all}}`` takes a column from other lines than the row's other columns do. Tables have at most six
rows.
A row whose lines hold the same seed twice is refused: it would average over more than seeds.
"""

from __future__ import annotations

import argparse
import csv
import re
import sys
from pathlib import Path
from statistics import mean
from typing import Any

import yaml

__all__ = ["differences", "main", "pages", "rewritten"]

ROOT = Path(__file__).parents[1]
MOST_ROWS = 6
TABLE = re.compile(r"(<!-- table\n(.*?)-->\n)(.*?)(<!-- end table -->)", re.DOTALL)


def rewritten(page: str, results: Path) -> str:
    """A page with its tables made anew.

    Args:
        page: Its text.
        results: The folder of the CSVs.

    Raises:
        ValueError: If a table has more than six rows, names a column that the CSV lacks, or has no end; if a row has no
            line in the CSV, or several of one seed.
    """

    def table(found: re.Match[str]) -> str:
        return f"{found[1]}\n{_table(yaml.safe_load(found[2]), results)}\n\n{found[4]}"

    if not page.count("<!-- table") == page.count("<!-- end table -->") == len(TABLE.findall(page)):
        raise ValueError("every '<!-- table' of a page needs an '<!-- end table -->' of its own.")
    return TABLE.sub(table, page)


def differences(page: str, now: str) -> list[str]:
    """What is wrong in a page's tables, a cell a line.

    Args:
        page: Its text.
        now: What :func:`rewritten` makes of it.
    """
    wrong = []
    for old, new in zip(TABLE.findall(page), TABLE.findall(now), strict=True):
        old_rows, new_rows = _rows(old[2]), _rows(new[2])
        if [len(row) for row in old_rows] != [len(row) for row in new_rows]:
            wrong.append(f"the table of {yaml.safe_load(new[1])['csv']}.csv has other rows or columns than asked for")
            continue
        for had, wanted in zip(old_rows, new_rows, strict=True):
            for title, cell, right in zip(new_rows[0], had, wanted, strict=True):
                if cell != right:
                    wrong.append(f"row '{wanted[0]}', column '{title}': '{cell}' should be '{right}'")
    return wrong or ["blank lines around a table"]


def _rows(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.split("\n") if line]


def pages(root: Path) -> list[Path]:
    """The pages that people read."""
    return [root / "README.md", root / "benchmarks" / "README.md", *sorted((root / "docs").rglob("*.md"))]


def _table(asked: dict[str, Any], results: Path) -> str:
    if len(asked["rows"]) > MOST_ROWS:
        raise ValueError(f"a table has {len(asked['rows'])} rows, but {MOST_ROWS} are the most that people read.")
    with (results / f"{asked['csv']}.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    titles, values = asked["columns"][::2], asked["columns"][1::2]
    rows = [["", *titles, "seeds"], ["---"] * (len(titles) + 2)]
    for label, where in asked["rows"].items():
        cells, seeds = [], set()
        for value in values:
            column, further = (value, {}) if isinstance(value, str) else next(iter(value.items()))
            wanted = {**asked.get("where", {}), **where, **further}
            same = _chosen(lines, wanted, column.partition(" ")[0], f"{asked['csv']}.csv", label)
            cells.append(_cell(same, column))
            seeds.add(str(len(same)))
        rows.append([label, *cells, " or ".join(sorted(seeds))])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _chosen(
    lines: list[dict[str, str]], wanted: dict[str, Any], column: str, name: str, label: str
) -> list[dict[str, str]]:
    """The lines of one cell, a line a seed."""
    unknown = {*wanted, column} - set(lines[0])
    if unknown:
        raise ValueError(f"{name} has no column {', '.join(sorted(unknown))}.")
    same = [line for line in lines if all(line[key] == str(value) for key, value in wanted.items())]
    if not same:
        raise ValueError(f"{name} has no line of {wanted}, for the row '{label}'.")
    seeds = [line["seed"] for line in same if "seed" in line]
    if len(seeds) > len(set(seeds)):
        raise ValueError(f"{name} has several lines of one seed for the row '{label}': say which.")
    return same


def _cell(lines: list[dict[str, str]], value: str) -> str:
    name, _, form = value.partition(" ")
    if not form:
        return ", ".join(sorted({line[name] for line in lines}))
    numbers = [float(line[name]) * (100 if form.endswith("%") else 1) for line in lines if line[name]]
    if not numbers:
        return ""
    said = [format(number, form.removesuffix("%")) for number in (mean(numbers), min(numbers), max(numbers))]
    return said[0] if said[1] == said[2] else f"{said[0]} ({said[1]} to {said[2]})"


def main(args: list[str] | None = None, root: Path = ROOT) -> int:
    """The command line; returns 1 if ``--check`` finds a page that disagrees."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a page disagrees with its CSV")
    is_check = parser.parse_args(args).check
    wrong = []
    for path in pages(root):
        page = path.read_text(encoding="utf-8")
        now = rewritten(page, root / "benchmarks" / "results")
        if now != page and is_check:
            wrong += [f"{path.relative_to(root)}: {what}" for what in differences(page, now)]
        elif now != page:
            path.write_text(now, encoding="utf-8")
    print("\n".join(wrong) or "all tables agree with their CSVs", file=sys.stderr if wrong else sys.stdout)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
