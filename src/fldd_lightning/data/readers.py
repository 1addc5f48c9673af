"""Files of text as tables of the ``datasets`` library: lines, comma-separated rows, records of FASTA.

The library has readers of its own for these. Its reader of CSV guesses types, so that ``0012`` becomes 12 and ``NA``
nothing, and drops what stands before a comma too many. None of them knows UTF-16. Its reader of FASTA leaves out what
stands before the first header.
"""

from __future__ import annotations

import codecs
import csv
from collections.abc import Iterable, Iterator
from io import TextIOWrapper
from typing import Any, BinaryIO

import datasets
import pyarrow as pa
from pyarrow import csv as arrow_csv

from ..errors import FLDDError

__all__ = ["TEXTS", "Csv", "Fasta", "Lines", "encoding_of"]

_CHARACTERS = 1 << 22  # in one table, or a little more
_BLOCK = 1 << 26  # bytes of CSV at once; a row must fit in
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark it starts with
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def encoding_of(file: str) -> str:
    """The encoding of a text file: UTF-8, or UTF-16 or UTF-32 if its first bytes show it.

    Python's decoders of these leave out a byte-order mark. Without one, UTF-16 shows in Latin letters: every second
    byte is zero.
    """
    with open(file, "rb") as raw:
        start: bytes = raw.read(4)
    for mark, name in _MARKS.items():
        if start.startswith(mark):
            return name
    zeros = [byte == 0 for byte in start]
    if zeros == [False, True, False, True]:
        return "utf-16-le"
    return "utf-16-be" if zeros == [True, False, True, False] else "utf-8-sig"


class _Reader(datasets.ArrowBasedBuilder):  # type: ignore[misc]
    """Makes tables of files; a subclass gives :meth:`tables`."""

    VERSION = datasets.Version("1.0.0")  # raise it where the same file gives another table: tables are kept
    features: Any = None

    def tables(self, file: str, name: str) -> Iterator[pa.Table]:
        """The tables of one file.

        Args:
            file: Where to read it, unpacked.
            name: What the user calls it.

        Raises:
            FLDDError: If it is not of this kind.
        """
        raise NotImplementedError

    def _info(self) -> Any:
        return datasets.DatasetInfo(features=self.features)

    def _split_generators(self, dl_manager: Any) -> list[Any]:
        named = {split: [str(file) for file in files] for split, files in self.config.data_files.items()}
        dl_manager.download_config.extract_on_the_fly = True  # else what was unpacked before would be read again
        unpacked = dl_manager.download_and_extract(named)
        return [
            datasets.SplitGenerator(name=split, gen_kwargs={"files": unpacked[split], "names": names})
            for split, names in named.items()
        ]

    def _generate_tables(self, files: list[str], names: list[str]) -> Iterator[tuple[tuple[int, int], pa.Table]]:
        columns: list[str] = []
        for number, (file, name) in enumerate(zip(files, names, strict=True)):
            for part, table in enumerate(self.tables(file, name)):
                columns = columns or table.column_names
                if table.column_names != columns:
                    raise FLDDError(
                        f"'{name}' has the columns {table.column_names}, but '{names[0]}' has {columns}: give files of "
                        "the same columns, or one file."
                    )
                yield (number, part), table


class Lines(_Reader):
    """A document on every line: column ``text``."""

    features = datasets.Features({"text": datasets.Value("string")})

    def tables(self, file: str, name: str) -> Iterator[pa.Table]:
        with _opened(file) as text:
            yield from _tables(line.removesuffix("\n") for line in text)


class Fasta(_Reader):
    """A document in every record of FASTA, its lines joined: column ``text``; headers and comments are not read."""

    features = Lines.features

    def tables(self, file: str, name: str) -> Iterator[pa.Table]:
        with _opened(file) as text:
            yield from _tables(self._sequences(text, name))

    def _sequences(self, text: Iterable[str], name: str) -> Iterator[str | None]:
        """The sequences, None for a header without one."""
        parts: list[str] | None = None
        for number, line in enumerate(text, 1):
            if line.startswith(">"):
                if parts is not None:
                    yield "".join(parts) or None
                parts = []
            elif line.strip() and not line.startswith(";"):
                if parts is None:
                    raise FLDDError(
                        f"'{name}', line {number} is {line.strip()[:40]!r}, but a FASTA file starts with a header: "
                        "'>name'. Add one, or call the file .txt if each line is a document."
                    )
                parts.append("".join(line.split()))
        if parts is not None:
            yield "".join(parts) or None


class Csv(_Reader):
    """Comma-separated rows under a header; every field is text as it stands there, and none if it is empty.

    ``""`` is text of no characters. Quoted fields may have commas and line breaks. A blank line is a row of no texts.
    """

    def tables(self, file: str, name: str) -> Iterator[pa.Table]:
        blank, header = self._header(file, name)
        wrong: list[Any] = []

        def refuse(row: Any) -> str:
            wrong.append(row)
            return "error"

        last = None
        try:
            with open(file, "rb") as raw:
                watched = _Watched(raw)
                reader = arrow_csv.open_csv(
                    pa.PythonFile(watched, mode="r"),
                    arrow_csv.ReadOptions(
                        use_threads=False,  # with threads a row that is refused has no number
                        block_size=_BLOCK,
                        skip_rows=blank,
                        encoding=encoding_of(file),
                    ),
                    arrow_csv.ParseOptions(
                        newlines_in_values=True, ignore_empty_lines=False, invalid_row_handler=refuse
                    ),
                    arrow_csv.ConvertOptions(
                        column_types={column: pa.string() for column in header},
                        null_values=[""],
                        strings_can_be_null=True,
                        quoted_strings_can_be_null=False,
                    ),
                )
                yield reader.schema.empty_table()  # which names the columns of a file without rows
                for batch in reader:
                    yield pa.Table.from_batches([batch])
                    last = batch.column(len(header) - 1)[-1].as_py() if len(batch) else last
        except pa.ArrowInvalid as error:
            if not wrong:
                raise
            row = wrong[0]
            is_long = row.actual_columns > len(header)
            raise FLDDError(
                f"'{name}', row {row.number} ({row.text[:60]!r}) has {row.actual_columns} fields, but the header names "
                f"{len(header)}. {'Put a field with a comma in double quotes' if is_long else 'Add what is missing'}."
            ) from error
        if "\n" in (last or "") and watched.end != b'"':  # a text with a line break is between quotes
            raise FLDDError(
                f"'{name}' ends within double quotes, in the text that starts with {str(last)[:40]!r}. Close them, or "
                "write a double quote that is text twice."
            )

    def _header(self, file: str, name: str) -> tuple[int, list[str]]:
        """The number of blank lines before the header, and its fields."""
        with _opened(file) as text:
            blank, header = next(((n, row) for n, row in enumerate(csv.reader(text)) if row), (0, []))
        if not header:
            raise FLDDError(f"'{name}' is empty: its first line must name the columns.")
        if len(header) == 1 and set(header[0]) & set(";\t"):
            raise FLDDError(f"the header of '{name}' is {header[0]!r}: separate the columns by commas.")
        twice = {column for column in header if header.count(column) > 1}
        if twice:
            raise FLDDError(f"the header of '{name}' names {sorted(twice)} twice: give each column a name of its own.")
        return blank, header


class _Watched:
    """A file that keeps the last byte read of it, but for white space and the zeros of UTF-16."""

    def __init__(self, raw: BinaryIO) -> None:
        self.raw, self.end, self.closed = raw, b"", False

    def read(self, size: int = -1) -> bytes:
        part = self.raw.read(size)
        self.end = part.rstrip(b"\r\n \0")[-1:] or self.end
        return part


def _opened(file: str) -> TextIOWrapper:
    """A file as text, each line break as one character."""
    return TextIOWrapper(open(file, "rb"), encoding=encoding_of(file))


def _tables(texts: Iterable[str | None]) -> Iterator[pa.Table]:
    """Tables with a column ``text``."""
    part: list[str | None] = []
    size = 0
    for text in texts:
        part.append(text)
        size += 1 + len(text or "")
        if size >= _CHARACTERS:
            yield pa.table({"text": pa.array(part, pa.string())})
            part, size = [], 0
    if part:
        yield pa.table({"text": pa.array(part, pa.string())})


# what is read as text, by the ending of a file
TEXTS: dict[str, Any] = {
    ".arrow": "arrow",
    ".csv": Csv,
    ".json": "json",
    ".jsonl": "json",
    ".parquet": "parquet",
    ".txt": Lines,
    **dict.fromkeys((".fa", ".faa", ".fasta", ".fna"), Fasta),
}
