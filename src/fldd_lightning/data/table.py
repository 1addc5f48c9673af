"""Tables: rows of categories and of numbers in bins."""

from __future__ import annotations

from collections import Counter
from os import PathLike
from pathlib import Path
from typing import Any

import pyarrow as pa
from lightning.pytorch.utilities import rank_zero_info

from ..errors import FLDDError
from ..memory import check_memory
from ..ranges import AT_LEAST_TWO, check_kinds, check_numbers
from .base import DiscreteDataModule, Split, check_shares, split_rows
from .columns import Columns
from .entries import count_entries
from .find_column import find_column
from .hub import load_local, split_names

__all__ = ["TableDataModule"]


class TableDataModule(DiscreteDataModule):
    """A ``.csv`` or ``.parquet`` table as integers ``(columns,)``; each column has as many values as it needs.

    Texts are categories. Numbers are binned: each bin has about equally many rows, and a number is never in two.
    A column with no more different numbers than bins has each as a category. Missing entries (an empty field, null,
    NaN; in a column of numbers also ``?``, ``-``, ``NA``, ``N/A``, ``null`` and ``None``) are a value of their own.
    White space around an entry or a name does not count. Rows at the end of a file that have no entry at all are left
    out.

    Categories and bins are found in all rows, those held out included, and kept in checkpoints: other data then
    have the same ones. An entry that was not there in training is refused. A number beyond those of training is
    in the first or the last bin.

    Splits named ``train``, ``validation`` and ``test`` (in the names of a folder's files) are used as they are.
    Missing ones are drawn from the training rows by ``seed``.

    Args:
        path: A ``.csv`` file with a header, a ``.parquet`` file, gzipped or not, or a folder of them.
        bins: Into how many bins numbers go, at most.
        leave_out: Columns that are not modelled, such as the number of a row.
        as_text: Columns whose numbers are categories as they stand there, such as postal codes.
        columns: Categories and bins as a checkpoint keeps them, in JSON; None to find them.
        val_fraction: Share of the rows for validation, where there is no such split.
        test_fraction: Share of the rows for testing, where there is no such split.
        batch_size: Rows per batch and process.
        num_workers: Worker processes of the loaders.
        seed: Seed of the splits and of the training order.

    Raises:
        FLDDError: If ``bins`` is below 2. When read: if the table is missing, unreadable or too short, lacks a column
            that an option names, or holds an entry that its columns do not have.
    """

    def __init__(
        self,
        path: str,
        bins: int = 16,
        leave_out: list[str] | None = None,
        as_text: list[str] | None = None,
        columns: str | None = None,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        batch_size: int = 128,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers, seed)
        check_kinds(locals(), path=str | PathLike)
        check_numbers(locals(), bins=AT_LEAST_TWO)
        check_shares(val_fraction, test_fraction)
        self.save_hyperparameters(logger=False)
        self.path, self.bins = path, bins
        self.leave_out, self.as_text = leave_out or [], as_text or []
        self.val_fraction, self.test_fraction = val_fraction, test_fraction
        self._columns = None if columns is None else Columns.of_state(columns)

    @property
    def columns(self) -> Columns:
        """The columns, as given or found."""
        if self._columns is None:
            _ = self.splits
        assert self._columns is not None
        return self._columns

    @property
    def num_classes(self) -> int:
        """K, the most values that a column has."""
        return max(self.columns.num_values)

    @property
    def num_values(self) -> list[int]:
        """How many values each column has."""
        return self.columns.num_values

    @property
    def shape(self) -> tuple[int, ...]:
        """One number: the columns."""
        return (len(self.columns.names),)

    def read_as(self, columns: Columns) -> None:
        """Take the categories and bins of a model, instead of those that the options or the table give."""
        self._columns = columns
        self.hparams["columns"] = columns.state()

    def load(self) -> dict[str, Split]:
        tables = self._tables(one_split=False)
        if self._columns is None:
            self.read_as(self._found(tables))
        parts = {name: Split(self.columns.encode(table)) for name, table in tables.items()}
        return split_rows(parts.pop("train"), self.val_fraction, self.test_fraction, self.seed, parts)

    def all_rows(self) -> Split:
        """Every row, in the order of the file; of a folder, files in the order of their names."""
        table = self._tables(one_split=True)["train"]
        if self._columns is None:
            self.read_as(self._found({"train": table}))
        return Split(self.columns.encode(table))

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit":
            sizes = ", ".join(f"{name} {len(split)}" for name, split in self.splits.items())
            rank_zero_info(f"table: {self.columns.summary()}; rows: {sizes}")

    def _tables(self, one_split: bool) -> dict[str, pa.Table]:
        """The table of every split, without rows at its end that have no entry."""
        from .readers import Csv  # here: it imports the library, which takes a second

        kinds = {".csv": Csv, ".parquet": "parquet"}
        read = split_names(load_local(Path(self.path), kinds, one_split=one_split))
        needed = 8 * sum(each.num_rows * each.num_columns for each in read.values())
        check_memory(needed, f"the table '{self.path}'", "Give fewer rows, or leave out columns with --data.leave_out.")
        tables = {name: _shortened(_plain_names(each.with_format("arrow")[:])) for name, each in read.items()}
        empty = [name for name, table in tables.items() if table.num_rows == 0]
        if empty:
            raise FLDDError(f"'{self.path}' has no row for {empty[0]}: give a table with rows below its header.")
        return tables

    def _found(self, tables: dict[str, pa.Table]) -> Columns:
        """What the columns hold, in all splits together."""
        names = list(tables["train"].column_names)
        for option in ("leave_out", "as_text"):
            unknown = [name for name in getattr(self, option) if name not in names]
            if unknown:
                raise FLDDError(f"'{self.path}' has no column '{unknown[0]}' for data.{option}; it has {names}.")
        for name, table in tables.items():
            if sorted(table.column_names) != sorted(names):
                raise FLDDError(f"the splits in '{self.path}' differ: train has {names}, {name} {table.column_names}.")
        columns, num_alike = [], 0
        for name in names:
            if name not in self.leave_out:
                counts = sum((count_entries(table, name) for table in tables.values()), Counter[Any]())
                num_alike += name.strip() in counts
                columns.append(find_column(name, counts, self.bins, name in self.as_text))
        if 2 * num_alike > len(columns):  # names that stand in their own columns, too
            raise FLDDError(f"the header of '{self.path}' looks like a row, {names}: put a line with names above it.")
        found = Columns(columns)
        if max(found.num_values, default=0) < 2:
            raise FLDDError(f"'{self.path}' has no column with two different entries: there is nothing to learn.")
        return found


def _plain_names(table: pa.Table) -> pa.Table:
    """A table whose names of columns have no white space around them."""
    names = [name.strip() for name in table.column_names]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise FLDDError(f"two columns are called '{twice}' but for white space: give each a name of its own.")
    return table.rename_columns(names)


def _shortened(table: pa.Table) -> pa.Table:
    """A table without the rows at its end that have no entry: line breaks at the end of a file."""
    number = table.num_rows
    if table.num_columns > 1:
        while number and all(column[number - 1].as_py() is None for column in table.columns):
            number -= 1
    return table.slice(0, number)
