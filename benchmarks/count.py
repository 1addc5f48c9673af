"""Fills in what the rows of a table cost, where these columns are empty: operations of training, and numbers they need.

    python benchmarks/count.py --table mnist --path FOLDER_WITH_IDX_FILES
    python benchmarks/count.py --table molecules --path train_smile.txt
    python benchmarks/count.py --table text --path FOLDER
    python benchmarks/count.py --table any_steps --path FOLDER --where kind mnist16
    python benchmarks/count.py --table collapse

It is for rows that were measured before operations were counted (``work.py``). The model of a row is made as its script
makes it, and two steps of training are counted. Nothing else in the row changes. Rows that say it are not counted
again. ``--where`` counts some alone: the fit of a latent has to be run, and can take long. One thread a run.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import any_steps
import collapse
import completion
import digits
import guidance
import mnist
import molecules
import text
from common import one_thread, read_rows
from work import COSTS, costs_untrained

from fldd_lightning import FLDD, DiscreteDataModule
from fldd_lightning.files import replacing

__all__ = ["TABLES", "fill", "main"]

# how the model of a row is made, and the columns that it depends on
TABLES: dict[str, tuple[Callable[..., tuple[FLDD, DiscreteDataModule]], tuple[str, ...]]] = {
    "mnist": (mnist.made, ("network", "size", "process", "num_steps", "seed")),
    "molecules": (molecules.made, ("network", "process", "num_steps", "seed")),
    "text": (text.made, ("network", "length", "process", "num_steps", "seed")),
    "any_steps": (any_steps.made, ("kind", "process", "trained", "num_steps", "seed")),
    "digits": (digits.made, ("process", "num_steps", "seed")),
    "collapse": (collapse.made, ("problem", "recipe", "num_steps", "seed")),
    "collapse_ablations": (collapse.made, ("problem", "recipe", "num_steps", "seed")),
    "completion": (completion.made, ("source", "process", "way", "seed")),
    "guidance": (guidance.made, ("size", "seed")),
}
WITHOUT_FILES = ("digits", "collapse", "collapse_ablations", "completion")  # which need no --path
_NUMBERS = ("size", "length", "num_steps", "seed")


def fill(table: str, path: str | None, output: Path, where: Sequence[tuple[str, str]] = ()) -> None:
    """Count what rows of a CSV do not say, and write it after each model.

    Args:
        table: Which of ``TABLES``.
        path: Its data; None for ``WITHOUT_FILES``.
        output: The CSV.
        where: Columns and what must stand there; all rows if there are none.
    """
    make, names = TABLES[table]
    make = make if path is None else partial(make, path)
    known: dict[tuple[str, ...], dict[str, int]] = {}

    def key(row: Mapping[str, str]) -> tuple[str, ...]:
        return tuple(row[name] for name in (*names, "steps") if name != "seed")

    def is_trained(row: Mapping[str, str]) -> bool:
        return "data" not in (row.get("process"), row.get("weight"))  # a row of data has no model

    def lacks(row: Mapping[str, str]) -> bool:
        return is_trained(row) and not row.get(COSTS[0]) and all(row[name] == value for name, value in where)

    while rows := [row for row in read_rows(output) if lacks(row)]:
        row = rows[0]
        options = {name: int(row[name]) if name in _NUMBERS else row[name] for name in names}
        known[key(row)] = costs_untrained(partial(make, **options), int(row["steps"]))
        print(*key(row), known[key(row)], flush=True)
        found = ((row, known.get(key(row), {}) if is_trained(row) else {}) for row in read_rows(output))
        _write(output, [{**_costs_last(row), **said} for row, said in found])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", choices=TABLES, required=True)
    parser.add_argument("--path", help="the table's data, if they are in files: a folder or a file")
    parser.add_argument("--where", nargs=2, action="append", default=[], help="a column and what must stand there")
    parser.add_argument("--output", type=Path, help="the CSV, if not that of the table")
    arguments = parser.parse_args()
    if (arguments.path is None) != (arguments.table in WITHOUT_FILES):
        parser.error(f"give --path, but not for {', '.join(WITHOUT_FILES)}")
    one_thread()
    output = arguments.output or Path(f"benchmarks/results/{arguments.table}.csv")
    fill(arguments.table, arguments.path, output, arguments.where)


def _costs_last(row: Mapping[str, str]) -> dict[str, Any]:
    """A row whose last columns are those of its costs."""
    return {**{name: value for name, value in row.items() if name not in COSTS}, **{n: row.get(n, "") for n in COSTS}}


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    text = StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    with replacing(path) as file:
        file.write(text.getvalue().encode())


if __name__ == "__main__":
    main()
