"""Read csv and tsv files, and find the line where a quotation mark is missing.

In csv a quotation mark quotes a field, which may run over several lines. If one mark is missing, a plain reader takes
many rows for one field. Here that is an error where the file contradicts the format, and a note where it does not. In
tsv a quotation mark is text.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bnb_ds.errors import DataError


class RowFault(DataError):
    """A fault of one row, which ``data.skip_bad_rows`` leaves out.

    Attributes:
        reason: the kind of fault in a few words, for counts.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


Row = dict[str, Any]
#: names of documents in a note
_SHOWN_DOCUMENTS = 3
#: the place of a row, and the row or its fault
PlacedRow = tuple[str, Row | RowFault]


@dataclass
class FileNotes:
    """What a reader noticed in a file besides its rows.

    Attributes:
        blank_lines: number of lines without text, which are passed over.
        open_quotes: number of tsv fields that begin with a quotation mark and do not end it.
        first_open_quote: the first line with such a field.
        long_rows: number of csv rows that quoted fields spread over several lines.
        longest_row: lines of the longest of them.
        first_longest_row: the line where it begins.
        rows_in_quotes: number of csv fields that run over several lines, each of which looks like a row of its own.
        first_rows_in_quotes: the line where the first such field opens.
        absent_documents: listed documents of which the data has no row, as the list spells them.
    """

    blank_lines: int = 0
    open_quotes: int = 0
    first_open_quote: int = 0
    long_rows: int = 0
    longest_row: int = 0
    first_longest_row: int = 0
    rows_in_quotes: int = 0
    first_rows_in_quotes: int = 0
    absent_documents: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The notes as text for the user; an empty list if there are none."""
        said = []
        if self.blank_lines:
            said.append(f"{self.blank_lines:,} blank lines passed over")
        if self.open_quotes:
            said.append(
                f"{self.open_quotes:,} fields with an unbalanced quotation mark, kept as text (the first in line"
                f" {self.first_open_quote})"
            )
        if self.long_rows:
            said.append(
                f"{self.long_rows:,} rows have quoted fields over several lines (the longest begins in line"
                f" {self.first_longest_row}: {self.longest_row:,} lines)"
            )
        if self.rows_in_quotes:
            said.append(
                f"{self.rows_in_quotes:,} quoted fields over several lines that each look like a row of their own (the"
                f" first opens in line {self.first_rows_in_quotes}): look there for a missing quotation mark"
            )
        if absent := self.absent_documents:
            more = ", ..." if len(absent) > _SHOWN_DOCUMENTS else ""
            said.append(
                f"{len(absent):,} listed documents are not in the data ({', '.join(absent[:_SHOWN_DOCUMENTS])}{more})"
            )
        return said


class _Lines:
    """Hands on the lines of a file and keeps those of the current record."""

    def __init__(self, file: Iterable[str]) -> None:
        self._file = iter(file)
        self.number = 0
        self.record: list[str] = []

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = next(self._file)
        self.number += 1
        self.record.append(line)
        return line

    def take(self) -> tuple[int, list[str]]:
        """The number of the record's first line, and its lines. The next record begins."""
        lines, self.record = self.record, []
        return self.number - len(lines) + 1, lines


def read_table(path: Path, file: Iterable[str], delimiter: str, header: bool, notes: FileNotes) -> Iterator[PlacedRow]:
    """Read the rows of a csv or tsv file.

    Args:
        path: for messages.
        file: its lines with their ends, as a file that was opened with ``newline="\\n"`` gives them.
        delimiter: a comma (csv) or a tab (tsv).
        header: whether the first line names the columns; otherwise they are numbered 0, 1, ...
        notes: filled in while reading.

    Raises:
        DataError: the header names a column twice, a quotation mark is not closed, or a line cannot be read.
    """
    quotes = delimiter == ","
    csv.field_size_limit(2**30)
    lines = _Lines(file)
    reader = csv.reader(
        lines, delimiter=delimiter, quoting=csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE, strict=quotes
    )
    names: list[Any] | None = None
    while True:
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise _unreadable(path, lines, delimiter, quotes, error) from None
        if fields is None:
            return
        begin, record = lines.take()
        if not fields:
            notes.blank_lines += 1
            continue
        if names is None:
            names = _names(path, fields) if header else list(range(len(fields)))
            if header:
                continue
        _take_notes(notes, fields, record, begin, delimiter, len(names))
        yield f"{path}: line {begin}", _row(path, names, fields, begin, len(record))


def _names(path: Path, fields: list[str]) -> list[Any]:
    names = [field.strip() for field in fields]
    for name in names:
        if names.count(name) > 1:
            raise DataError(f"{path}: line 1 names the column {name!r} twice; give each column a name of its own")
    return names


def _row(path: Path, names: list[Any], fields: list[str], begin: int, num_lines: int) -> Row | RowFault:
    if len(fields) == len(names):
        return dict(zip(names, fields, strict=True))
    said = f"{path}: line {begin} has {len(fields)} fields instead of {len(names)}"
    if num_lines > 1:
        # Leaving it out could lose whole rows, so this one cannot be skipped.
        raise DataError(
            f"{said}, and a quoted field in it runs on to line {begin + num_lines - 1}; look for a missing quotation"
            " mark"
        )
    return RowFault("another number of fields", f"{said}; correct it")


def _take_notes(
    notes: FileNotes, fields: list[str], record: list[str], begin: int, delimiter: str, num_columns: int
) -> None:
    if delimiter == "\t":
        for field in fields:
            if field.startswith('"') and field.count('"') % 2:
                notes.first_open_quote = notes.first_open_quote or begin
                notes.open_quotes += 1
    elif len(record) > 1:
        notes.long_rows += 1
        if len(record) > notes.longest_row:
            notes.longest_row, notes.first_longest_row = len(record), begin
        if num_columns > 1 and all(line.count(delimiter) == num_columns - 1 for line in record):
            notes.first_rows_in_quotes = notes.first_rows_in_quotes or begin
            notes.rows_in_quotes += 1


def _unreadable(path: Path, lines: _Lines, delimiter: str, quotes: bool, error: csv.Error) -> DataError:
    begin, record = lines.take()
    opened = _open_quote(record, delimiter) if quotes else None
    if opened is None:
        return DataError(f"{path}: line {begin + len(record) - 1} cannot be read ({error}); correct it")
    last = begin + len(record) - 1
    until = "in that line" if begin + opened == last else f"as far as line {last}"
    return DataError(
        f"{path}: line {begin + opened}: a quotation mark opens a field here, and none closes it {until}; add the"
        " missing mark, and double each mark inside a quoted field"
    )


def _open_quote(record: list[str], delimiter: str) -> int | None:
    """The place in ``record`` of the line where the quotation mark opens that is not closed before a delimiter."""
    opened: int | None = None
    at_start = True
    for number, line in enumerate(record):
        place = 0
        while place < len(line):
            char = line[place]
            place += 1
            if opened is None:
                if char == '"' and at_start:
                    opened = number
                at_start = char in (delimiter, "\n")
            elif char == '"':
                following = line[place : place + 1]
                if following == '"':
                    place += 1
                elif following in (delimiter, "\r", "\n", ""):
                    opened, at_start = None, False
                else:
                    return opened
    return opened
