"""Readers of plain corpora: .txt, .jsonl, .csv, .tsv and .parquet files, and directories of them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bnb_ds.common.tables import FileNotes, RowFault, read_table
from bnb_ds.errors import DataError
from data_prep.sources import units
from data_prep.sources.documents import SURROGATE, BadRecord, Document, Record, content_id, is_encodable
from data_prep.sources.opening import kind, open_input, raw_lines, reading_errors, unreadable
from data_prep.sources.units import SourceFile, Unit

EXTENSIONS = (".txt", ".jsonl", ".csv", ".tsv", ".parquet")
TXT_DOCUMENTS = ("blank-line", "line", "file")
DEFAULT_ID_COLUMN = "id"

_PARQUET_BATCH_ROWS = 64  # bounds memory within a row group, and what sampling its beginning costs
_PARQUET_UNIT_BYTES = 1 << 27  # before compression
_PARQUET_TRAILER_BYTES = 8  # length of the metadata, and a signature


@dataclass(frozen=True)
class TextFormat:
    """How documents lie in the files."""

    text_column: str = "text"  # of all but .txt
    id_column: str | None = None  # likewise; None takes `id` where there is one, else a hash of the text
    txt_documents: str = "blank-line"  # what separates documents of a .txt file: one of TXT_DOCUMENTS
    ignore_ids: bool = False  # always take a hash of the text

    def id_of(self, row: Mapping[str, Any]) -> Any:
        """The id that a row gives its document; None: a hash of the text serves."""
        return None if self.ignore_ids else row.get(self.id_column or DEFAULT_ID_COLUMN)


class TextSource:
    """Plain corpora as a :class:`~data_prep.sources.units.Source`."""

    latest_wins = False

    def __init__(self, files: Sequence[SourceFile], text_format: TextFormat, settings: dict[str, Any]) -> None:
        self.files = files
        self.settings = settings
        self._format = text_format

    def units(self) -> list[Unit]:
        """Whole files, and large parquet files by row groups."""
        units: list[Unit] = []
        for index, file in enumerate(self.files):
            if file.path.suffix == ".parquet":
                units.extend(parquet_units(file, index))
            else:
                units.append(Unit(index, file.num_bytes()))
        return units

    def read(self, unit: Unit) -> Iterator[Record]:
        """The records of a file, or of some of its row groups."""
        return read_records(self.files[unit.file], self._format, unit)


def find_files(inputs: Sequence[str | os.PathLike[str]]) -> list[SourceFile]:
    """The files of `EXTENSIONS` that ``inputs`` name; see :func:`data_prep.sources.units.find_files`."""
    return units.find_files(inputs, EXTENSIONS)


def read_documents(files: Sequence[SourceFile], text_format: TextFormat = TextFormat()) -> Iterator[Document]:
    """Every document of the files in order, streamed; a document may be empty.

    Raises:
        DataError: something is unreadable; the message names file and line or row.
    """
    for file in files:
        for record in read_records(file, text_format):
            if isinstance(record, BadRecord):
                raise DataError(str(record))
            yield record


def read_records(file: SourceFile, text_format: TextFormat, unit: Unit | None = None) -> Iterator[Document | BadRecord]:
    """The documents of one file, or of the row groups of a unit; a bad record does not end them.

    Raises:
        DataError: the file cannot be read on.
    """
    readers = {
        ".txt": _read_txt,
        ".jsonl": _read_jsonl,
        ".csv": _read_table,
        ".tsv": _read_table,
        ".parquet": _read_parquet,
        ".arrow": _read_arrow,
    }
    with reading_errors(file.path):
        yield from readers[kind(file.path)](file, text_format, unit)


def parquet_units(file: SourceFile, index: int) -> list[Unit]:
    """Runs of row groups of at least a part's size; an unreadable file is one unit, whose reader will say so."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    num_bytes = file.num_bytes()
    try:
        metadata = pq.read_metadata(file.path)
    except (pa.ArrowException, OSError):
        return [Unit(index, num_bytes)]
    sizes = [metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups)]
    footer = (file.num_bytes() - metadata.serialized_size - _PARQUET_TRAILER_BYTES, file.num_bytes())
    starts = [0, *(_first_byte(metadata.row_group(i)) for i in range(1, len(sizes))), footer[0]]
    found: list[Unit] = []
    begin = filled = 0
    for i, size in enumerate(sizes):
        filled += size
        if filled >= _PARQUET_UNIT_BYTES or i == len(sizes) - 1:
            share, span = num_bytes * filled // max(sum(sizes), 1), (starts[begin], starts[i + 1])
            found.append(Unit(index, share, begin, i + 1, (span, footer)))
            begin, filled = i + 1, 0
    return found if len(found) > 1 else [Unit(index, num_bytes)]


def _first_byte(row_group: Any) -> int:
    columns = (row_group.column(i) for i in range(row_group.num_columns))
    return min(column.dictionary_page_offset or column.data_page_offset for column in columns)


def _lines(path: Path) -> Iterator[tuple[int, str | BadRecord]]:
    """Line number from 1 and line without its end; a byte order mark is dropped."""
    with open_input(path) as file:
        for number, raw in enumerate(raw_lines(file), start=1):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                reason = f"not valid UTF-8 at byte {error.start + 1} of the line; convert the file"
                yield number, BadRecord(f"{path}: line {number}", reason)
            else:
                yield number, line.rstrip("\r\n")


def _read_txt(file: SourceFile, text_format: TextFormat, unit: Unit | None) -> Iterator[Document | BadRecord]:
    separator = text_format.txt_documents
    paragraph: list[str] = []
    spoilt = False  # by a bad line: the document is lost, not shortened
    for _, line in _lines(file.path):
        if isinstance(line, BadRecord):
            yield line
            spoilt = separator != "line"
            continue
        is_blank = not line.strip()
        if separator == "file" or not is_blank:
            paragraph.append(line)
        if separator == "line" or (separator == "blank-line" and is_blank):
            if paragraph and not spoilt:
                yield _document(file.name, "\n".join(paragraph))
            paragraph, spoilt = [], False
    if (paragraph or separator == "file") and not spoilt:
        yield _document(file.name, "\n".join(paragraph))


def _read_jsonl(file: SourceFile, text_format: TextFormat, unit: Unit | None) -> Iterator[Document | BadRecord]:
    for number, line in _lines(file.path):
        if isinstance(line, BadRecord):
            yield line
        elif line.strip():
            yield _jsonl_document(file, f"{file.path}: line {number}", line, text_format)


def _jsonl_document(file: SourceFile, place: str, line: str, text_format: TextFormat) -> Document | BadRecord:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return BadRecord(place, f"not valid JSON ({error}); mend or remove the line")
    if not isinstance(row, dict):
        return BadRecord(place, f"a JSON {type(row).__name__}, not an object; write one object per line")
    return row_document(file.name, place, row, text_format)


def _read_table(file: SourceFile, text_format: TextFormat, unit: Unit | None) -> Iterator[Document | BadRecord]:
    """Rows of .csv, whose quoted fields may run over several lines, and of .tsv. The first line names the columns."""
    delimiter = "," if kind(file.path) == ".csv" else "\t"
    for place, row in read_table(file.path, _table_lines(file.path), delimiter, True, FileNotes()):
        if isinstance(row, RowFault):
            yield BadRecord(place, str(row).removeprefix(place).strip())
            continue
        if (missing := _missing_column(row, text_format)) is not None:
            raise DataError(f"{file.path}: {missing}")
        yield _checked(file.name, place, row[text_format.text_column], text_format.id_of(row) or None)


def _table_lines(path: Path) -> Iterator[str]:
    """Lines with their ends. One that is no text may be part of any row, so it cannot be left out."""
    with open_input(path) as file:
        for number, raw in enumerate(raw_lines(file), start=1):
            try:
                yield raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                place = f"{path}: line {number}: not valid UTF-8 at byte {error.start + 1} of the line"
                raise DataError(f"{place}; convert the file") from None


def _read_parquet(file: SourceFile, text_format: TextFormat, unit: Unit | None) -> Iterator[Document | BadRecord]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file.path) as parquet:
            columns = _columns(file, parquet.schema_arrow.names, text_format)
            end = parquet.num_row_groups if unit is None or unit.end is None else unit.end
            groups = range(unit.begin if unit else 0, end)
            row_number = sum(parquet.metadata.row_group(i).num_rows for i in range(groups.start))
            batches = parquet.iter_batches(
                batch_size=_PARQUET_BATCH_ROWS, row_groups=list(groups), columns=columns, use_threads=False
            )
            yield from _rows(file, batches, row_number, text_format)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable_rows(file, "parquet", error) from error


def _read_arrow(file: SourceFile, text_format: TextFormat, unit: Unit | None) -> Iterator[Document | BadRecord]:
    """The IPC stream that ``datasets`` writes, or the IPC file format."""
    import pyarrow as pa

    try:
        with pa.memory_map(str(file.path)) as mapped:
            if mapped.read(6) == b"ARROW1":
                reader = pa.ipc.open_file(mapped)
                batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
            else:
                mapped.seek(0)
                batches = reader = pa.ipc.open_stream(mapped)
            columns = _columns(file, reader.schema.names, text_format)
            yield from _rows(file, (batch.select(columns) for batch in batches), 0, text_format)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable_rows(file, "arrow", error) from error


def _unreadable_rows(file: SourceFile, name: str, error: Exception) -> Exception:
    if isinstance(error, OSError) and error.errno is not None:
        return unreadable(file.path, error)
    reason = " ".join(str(error).split())
    return DataError(f"{file.path}: not a readable {name} file ({reason}); restore or convert it")


def _columns(file: SourceFile, names: list[str], text_format: TextFormat) -> list[str]:
    if (missing := _missing_column(names, text_format)) is not None:
        raise DataError(f"{file.path}: {missing}")
    # A set, because one column may serve as text and id.
    wanted = {text_format.text_column}
    if not text_format.ignore_ids:
        wanted.add(text_format.id_column or DEFAULT_ID_COLUMN)
    for name in wanted:
        if names.count(name) > 1:
            raise DataError(f"{file.path}: {names.count(name)} columns are named {name!r}; rename all but one")
    return sorted(wanted & set(names))


def _rows(file: SourceFile, batches: Any, row_number: int, text_format: TextFormat) -> Iterator[Document | BadRecord]:
    for batch in batches:
        for start in range(0, len(batch), _PARQUET_BATCH_ROWS):
            rows = batch.slice(start, _PARQUET_BATCH_ROWS)
            values = {name: _values(rows.column(name)) for name in rows.schema.names}
            ids = text_format.id_of(values) or [None] * len(rows)
            for text, document_id in zip(values[text_format.text_column], ids, strict=True):
                row_number += 1
                yield _checked(file.name, f"{file.path}: row {row_number}", text, document_id)


def _values(column: Any) -> list[Any]:
    """The values of a column as Python objects; one that has no such object is the error that says so."""
    try:
        return column.to_pylist()
    except (ValueError, OverflowError, ImportError):  # bad UTF-8, times out of range, times that only pandas can hold
        return [_value(scalar) for scalar in column]


def _value(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError as error:
        return error
    except (ValueError, OverflowError, ImportError):
        return _Unreadable(str(scalar.type))


@dataclass(frozen=True)
class _Unreadable:
    """A value of an Arrow type that Python cannot hold."""

    type_name: str


def _missing_column(names: Any, text_format: TextFormat) -> str | None:
    flags = {"--text-column": text_format.text_column, "--id-column": text_format.id_column}
    for flag, column in flags.items():
        if column is not None and column not in names:
            known = ", ".join(name if name.isprintable() else repr(name) for name in names)
            return f"no column {column!r}; choose {flag} from {known or 'none'}"
    return None


def row_document(source: str, place: str, row: Mapping[str, Any], text_format: TextFormat) -> Document | BadRecord:
    """The document of a row, or the fault that names ``place``; ``source`` is the input's name in the manifest."""
    if (missing := _missing_column(row, text_format)) is not None:
        return BadRecord(place, missing)
    return _checked(source, place, row[text_format.text_column], text_format.id_of(row))


def _checked(source: str, place: str, text: Any, document_id: Any) -> Document | BadRecord:
    if text is None:
        text = ""
    if isinstance(text, UnicodeDecodeError) or isinstance(document_id, UnicodeDecodeError):
        return BadRecord(place, "not valid UTF-8; write the file again from valid text")
    if not isinstance(text, str):
        return BadRecord(place, f"the text is of type {_type_name(text)}; choose a --text-column of strings")
    if document_id is not None and (isinstance(document_id, bool) or not isinstance(document_id, (str, int))):
        reason = f"the id is of type {_type_name(document_id)}"
        return BadRecord(place, f"{reason}; choose an --id-column of strings or integers, or --ignore-ids")
    document_id = None if document_id is None else str(document_id)
    if not is_encodable(text, document_id or ""):
        return BadRecord(place, SURROGATE)
    return _document(source, text, document_id)


def _type_name(value: Any) -> str:
    return value.type_name if isinstance(value, _Unreadable) else type(value).__name__


def _document(source: str, text: str, document_id: str | None = None) -> Document:
    return Document(content_id(text) if document_id is None else document_id, text, source)
