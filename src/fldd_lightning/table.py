"""The module of tables: samples as CSV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from .data import TableDataModule
from .data.columns import Columns
from .errors import FLDDError
from .module import FLDD

__all__ = ["TableFLDD"]


class TableFLDD(FLDD):
    """Rows of a table, shape ``(columns,)``; no column ever takes a value that it does not have.

    Names, categories and bins are taken from the :class:`TableDataModule` and go into the checkpoint, as plain data.
    Samples are written as CSV with them; a bin as its midpoint, a missing entry as an empty field.

    Attributes:
        columns: The columns of the data, from the first training on.
    """

    columns: Columns | None = None
    text_ending = ".csv"

    def adopt(self, data: Any) -> None:
        """Takes the columns, too."""
        super().adopt(data)
        if isinstance(data, TableDataModule):
            self.columns = self._same_columns(data.columns)

    def given_rows(self, rows: Sequence[Mapping[str, Any]]) -> Tensor:
        """What rows give that are known in part, for :meth:`sample`: ``(N, columns)``, -1 where nothing is given.

        Args:
            rows: Entries by the names of their columns, such as ``[{"job": "nurse", "hours": 38}]``. A column that is
                left out, or holds ``"___"``, is not given. An entry that is empty or None is missing. A number stands
                for its bin, and comes back as that bin's midpoint.

        Raises:
            FLDDError: If the columns are not known yet, a name is no column's, or an entry was not there in training.
        """
        if self.columns is None:
            raise FLDDError("this model does not know its columns: train it on a TableDataModule first.")
        return self.columns.given(rows)

    def to_text(self, x: Tensor) -> list[str] | None:
        """Rows of CSV, with a dot for MASK; None before the columns are known."""
        return None if self.columns is None else self.columns.lines(x)

    def text_head(self) -> list[str]:
        """The names of the columns, as a line of CSV."""
        return [] if self.columns is None else [self.columns.head()]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["fldd_columns"] = None if self.columns is None else self.columns.state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        state = checkpoint.get("fldd_columns")
        if state is not None:
            self.columns = self._same_columns(Columns.of_state(state))

    def _same_columns(self, other: Columns) -> Columns:
        """``other``, if it has as many values as the model, and does not contradict the columns that are there."""
        self.spec.check_num_values(other.num_values)
        if self.columns is not None and self.columns.state() != other.state():
            pairs = zip(self.columns.columns, other.columns, strict=True)
            name = next(mine.name for mine, its in pairs if mine != its)
            raise FLDDError(
                f"column '{name}' of the table has other categories or bins than in the checkpoint. Give the data "
                "module those of the model: columns=model.columns.state()."
            )
        return other
