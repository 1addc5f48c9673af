"""What the rows of a table cost, of those that do not say it: operations of training, and the numbers they need.

    python benchmarks/count.py --table mnist --path FOLDER_WITH_IDX_FILES
    python benchmarks/count.py --table molecules --path train_smile.txt
    python benchmarks/count.py --table text --path FOLDER

It is for rows that were measured before operations were counted (``work.py``). The model of a row is made as its script
makes it, and two steps of training are counted. Nothing else in the row changes. Rows that say it are not counted
again. ``--processes`` counts some alone: the fit of a latent has to be run, and can take long. One thread a run.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import mnist
import molecules
import text
from common import one_thread, read_rows
from work import COSTS, costs_untrained

from fldd_lightning import FLDD, DiscreteDataModule

__all__ = ["TABLES", "fill", "main"]

# how the model of a row is made, and the columns that it depends on
TABLES: dict[str, tuple[Callable[..., tuple[FLDD, DiscreteDataModule]], tuple[str, ...]]] = {
    "mnist": (mnist.made, ("network", "size", "process", "num_steps", "seed")),
    "molecules": (molecules.made, ("network", "process", "num_steps", "seed")),
    "text": (text.made, ("network", "length", "process", "num_steps", "seed")),
}


def fill(table: str, path: str, output: Path, processes: Sequence[str] = ()) -> None:
    """Count what rows of a CSV do not say, and write it after each model.

    Args:
        table: Which of ``TABLES``.
        path: Its data.
        output: The CSV.
        processes: Of which rows; all if there is none.
    """
    make, names = TABLES[table]
    rows: list[dict[str, Any]] = [{**dict.fromkeys(COSTS, ""), **row} for row in read_rows(output)]
    rows = [{**{name: value for name, value in row.items() if name not in COSTS}, **_of(row)} for row in rows]
    known: dict[tuple[str, ...], dict[str, object]] = {}
    for row in rows:
        if row["process"] == "data" or row[COSTS[0]] != "" or (processes and row["process"] not in processes):
            continue
        key = tuple(row[name] for name in (*names, "steps") if name != "seed")
        if key not in known:
            options = {name: row[name] if name in ("network", "process") else int(row[name]) for name in names}
            known[key] = costs_untrained(partial(make, path, **options), int(row["steps"]))
            print(*key, known[key], flush=True)
        row |= known[key]
        _write(output, rows)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", choices=TABLES, required=True)
    parser.add_argument("--path", required=True, help="the table's data: a folder or a file")
    parser.add_argument("--processes", nargs="+", default=[], help="count the rows of these alone")
    parser.add_argument("--output", type=Path, help="the CSV, if not that of the table")
    arguments = parser.parse_args()
    one_thread()
    output = arguments.output or Path(f"benchmarks/results/{arguments.table}.csv")
    fill(arguments.table, arguments.path, output, arguments.processes)


def _of(row: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of costs, which stand last."""
    return {name: row[name] for name in COSTS}


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
