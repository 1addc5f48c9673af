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
the lowest and the highest behind it; ``%`` as a format's last letter makes per cent. Tables have at most six rows.
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

__all__ = ["main", "rewritten"]

ROOT = Path(__file__).parents[1]
MOST_ROWS = 6
TABLE = re.compile(r"(<!-- table\n(.*?)-->\n)(.*?)(<!-- end table -->)", re.DOTALL)


def rewritten(page: str, results: Path) -> str:
    """A page with its tables made anew.

    Args:
        page: Its text.
        results: The folder of the CSVs.

    Raises:
        ValueError: If a table has more than six rows, or a row has no line in the CSV.
    """

    def table(found: re.Match[str]) -> str:
        return f"{found[1]}\n{_table(yaml.safe_load(found[2]), results)}\n\n{found[4]}"

    return TABLE.sub(table, page)


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
        wanted = {**asked.get("where", {}), **where}
        same = [line for line in lines if all(line[key] == str(value) for key, value in wanted.items())]
        if not same:
            raise ValueError(f"{asked['csv']}.csv has no line of {wanted}, for the row '{label}'.")
        rows.append([label, *(_cell(same, value) for value in values), str(len(same))])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _cell(lines: list[dict[str, str]], value: str) -> str:
    name, _, form = value.partition(" ")
    if not form:
        return ", ".join(sorted({line[name] for line in lines}))
    numbers = [float(line[name]) * (100 if form.endswith("%") else 1) for line in lines if line[name]]
    if not numbers:
        return ""
    said = [format(number, form.removesuffix("%")) for number in (mean(numbers), min(numbers), max(numbers))]
    return said[0] if len(numbers) == 1 else f"{said[0]} ({said[1]} to {said[2]})"


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
            wrong += [
                f"{path.name}: {old}\n  should be {new}"
                for old, new in zip(page.splitlines(), now.splitlines(), strict=False)
                if old != new
            ][:1] or [path.name]
        elif now != page:
            path.write_text(now, encoding="utf-8")
    print("\n".join(wrong) or "all tables agree with their CSVs", file=sys.stderr if wrong else sys.stdout)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
