"""Read rows from local files (json, jsonl, csv, tsv, txt, parquet, parallel text or sgm; text also as .gz), or the hub.

A row is a dictionary. It comes with the place where it was read, for error messages.
"""

from __future__ import annotations

import gzip
import io
import itertools
import json
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from bnb_ds.common.files import READING_ERRORS
from bnb_ds.common.tables import FileNotes, PlacedRow, Row, RowFault, read_table
from bnb_ds.errors import DataError
from bnb_ds.tasks.layouts import SGM_SUFFIX, dialogue_rows, is_dialogue, sgm_segments
from bnb_ds.tasks.task import HubData

_FORMS = ".json, .jsonl, .csv, .tsv, .txt (tabs) or .parquet, text also as .gz"
#: suffixes that `read_file` knows
SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".txt", ".parquet")


def read_file(
    path: Path, *, form: str = "rows", header: bool = True, notes: FileNotes | None = None
) -> Iterator[PlacedRow]:
    """Read the rows of a file.

    Args:
        path: the file; its suffix gives the format. A ``.txt`` that begins with ``id=NUMBER`` holds medical dialogues
            (`bnb_ds.tasks.layouts.dialogue_rows`).
        form: form of a ``.json`` file: ``rows`` (a list of objects, or ``{"data": [...]}``) or ``squad``.
        header: whether the first line of csv or tsv names the columns; otherwise they are numbered 0, 1, ...
        notes: filled in while reading.

    Raises:
        DataError: the file cannot be read in the format of its suffix. The message names the file and the line.
    """
    notes = notes if notes is not None else FileNotes()
    suffix = suffix_of(path)
    if suffix == ".parquet":
        yield from _parquet_rows(path)
        return
    if suffix == SGM_SUFFIX:
        raise DataError(f"{path}: an sgm file holds one language; give both as {{source: FILE, target: FILE}}")
    if suffix not in SUFFIXES:
        raise DataError(f"{path}: the suffix is not of a known format; give {_FORMS}")
    with _text(path) as file:
        try:
            if suffix == ".json":
                yield from _squad(path, file) if form == "squad" else _json(path, file)
            elif suffix == ".jsonl":
                yield from _json_lines(path, file, notes)
            elif suffix == ".txt":
                yield from _text_rows(path, file, header, notes)
            else:
                yield from read_table(path, file, "," if suffix == ".csv" else "\t", header, notes)
        except READING_ERRORS as error:
            raise DataError(f"{path}: cannot be read ({error}{_line_of(error, path)}); restore the file") from None


def _text_rows(path: Path, file: TextIO, header: bool, notes: FileNotes) -> Iterator[PlacedRow]:
    """Medical dialogues, or a table with tabs."""
    first = file.readline()
    lines = itertools.chain([first], file)
    return dialogue_rows(path, lines) if is_dialogue(first) else read_table(path, lines, "\t", header, notes)


def suffix_of(path: Path) -> str:
    """The suffix that gives the format, without ``.gz``."""
    return Path(path.name.removesuffix(".gz")).suffix


def read_text_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Read a text file line by line: the place of each line, and its text.

    Raises:
        DataError: the file cannot be read.
    """
    with _text(path) as file:
        try:
            for number, line in enumerate(file, start=1):
                yield f"{path}: line {number}", line.rstrip("\r\n")
        except READING_ERRORS as error:
            raise DataError(f"{path}: cannot be read ({error}{_line_of(error, path)}); restore the file") from None


def read_parallel(source: Path, target: Path) -> Iterator[tuple[str, Row]]:
    """Read two files line by line, as rows with ``source`` and ``target``; of sgm files, segment by segment.

    Raises:
        DataError: the files have different numbers of lines.
    """
    with _text(source) as sources, _text(target) as targets:
        pairs = itertools.zip_longest(_texts(source, sources), _texts(target, targets))
        try:
            for number, (left, right) in enumerate(pairs, start=1):
                if left is None or right is None:
                    shorter = source if left is None else target
                    raise DataError(
                        f"{shorter}: has only {number - 1:,} lines, fewer than {target if left is None else source};"
                        " lines form pairs: restore the missing ones"
                    )
                yield f"{source} and {target}: line {number}", {"source": left, "target": right}
        except READING_ERRORS as error:
            where = _line_of(error, source) or _line_of(error, target)
            raise DataError(f"{source} or {target}: cannot be read ({error}{where}); restore the file") from None


def _texts(path: Path, file: TextIO) -> Iterator[str]:
    """The lines of a file without their ends, or the segments of an sgm file."""
    if suffix_of(path) == SGM_SUFFIX:
        return sgm_segments(path, file)
    return (line.rstrip("\r\n") for line in file)


def read_hub(hub: HubData, split: str) -> Iterator[PlacedRow]:
    """Read the rows of a hub data set, or of a local directory with the same layout.

    Raises:
        DataError: the data set cannot be loaded.
    """
    rows = open_hub(hub, split)
    for number, row in enumerate(rows):
        yield f"{hub.name} ({split}): row {number}", row


def open_hub(hub: HubData, split: str) -> Any:
    """Open one split as a `datasets.Dataset`.

    Raises:
        DataError: the data set cannot be loaded.
    """
    import datasets

    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(hub.name, hub.config, split=split)
    except Exception as error:  # datasets, the hub and file systems raise many types; all mean the same here
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise DataError(
            f"{hub.name}: split {split!r} cannot be loaded ({reason}); go online once, or give local files in data"
        ) from None


def _text(path: Path) -> TextIO:
    try:
        if path.name.endswith(".gz"):
            return io.TextIOWrapper(gzip.open(path), encoding="utf-8-sig", newline="\n")
        return open(path, encoding="utf-8-sig", newline="\n")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); name a file that exists") from None


def _line_of(error: BaseException, path: Path) -> str:
    """``, line 7 of NAME`` for text that is not UTF-8; empty for other errors."""
    if not isinstance(error, UnicodeDecodeError) or not path.is_file():  # a pipe cannot be read again
        return ""
    with gzip.open(path) if path.name.endswith(".gz") else open(path, "rb") as file:
        try:
            for number, line in enumerate(file, start=1):
                try:
                    line.decode("utf-8")
                except UnicodeDecodeError:
                    return f", line {number} of {path.name}"
        except READING_ERRORS:
            pass
    return ""


def _json_lines(path: Path, file: TextIO, notes: FileNotes) -> Iterator[PlacedRow]:
    for number, line in enumerate(file, start=1):
        if not line.strip():
            notes.blank_lines += 1
            continue
        place = f"{path}: line {number}"
        try:
            row = json.loads(line, object_pairs_hook=_object)
        except (ValueError, RecursionError) as error:
            yield place, RowFault("not valid JSON", f"{place} is not valid JSON ({error}); correct it")
            continue
        if isinstance(row, dict):
            yield place, row
        else:
            yield place, RowFault("not JSON objects", f"{place} is not a JSON object; write one object per line")


def _json(path: Path, file: TextIO) -> Iterator[PlacedRow]:
    rows = _load_json(path, file)
    rows = rows.get("data") if isinstance(rows, dict) else rows
    if not isinstance(rows, list):
        raise DataError(f"{path}: not a list of JSON objects, nor one under 'data'; give .jsonl or such a list")
    for number, row in enumerate(rows):
        place = f"{path}: row {number}"
        if isinstance(row, dict):
            yield place, row
        else:
            yield place, RowFault("not JSON objects", f"{place} is not a JSON object; write a list of objects")


def _squad(path: Path, file: TextIO) -> Iterator[PlacedRow]:
    """Read rows like those of ``rajpurkar/squad`` on the hub; titles are unquoted as in the document lists."""
    try:
        for article in _load_json(path, file)["data"]:
            title = urllib.parse.unquote(article["title"])
            for paragraph in article["paragraphs"]:
                for question in paragraph["qas"]:
                    answers = [answer["text"] for answer in question["answers"]]
                    row = {"id": question["id"], "title": title, "context": paragraph["context"]}
                    row |= {"question": question["question"], "answers": {"text": answers}}
                    yield f"{path}: question {question['id']}", row
    except (KeyError, TypeError):
        raise DataError(f"{path}: not in the format of SQuAD v1.1; give its train-v1.1.json or dev-v1.1.json") from None


def _load_json(path: Path, file: TextIO) -> Any:
    try:
        return json.load(file, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path}: not valid JSON ({error}); correct it, or name it .jsonl if it has one object per line"
        ) from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. JSON allows a name twice, and readers take the last of its values."""
    made = dict(pairs)
    if len(made) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"two values of {next(name for name in names if names.count(name) > 1)!r} in one object")
    return made


def _parquet_rows(path: Path) -> Iterator[PlacedRow]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            for name in names:
                if names.count(name) > 1:
                    raise DataError(f"{path}: names the column {name!r} twice; give each column a name of its own")
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    yield f"{path}: row {number}", row
                    number += 1
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{path}: cannot be read as parquet ({' '.join(str(error).split())}); restore it") from None
