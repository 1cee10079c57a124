"""Read rows from local files (json, jsonl, csv, tsv, txt, parquet, parallel text; text also as .gz) or from the hub.

A row is a dictionary. It comes with the place where it was read, for error messages.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from bnb_ds.common.files import READING_ERRORS
from bnb_ds.errors import DataError
from bnb_ds.tasks.task import HubData

Row = dict[str, Any]
#: the place of a row, and the row or its fault
PlacedRow = tuple[str, Row | DataError]

_FORMS = ".json, .jsonl, .csv, .tsv, .txt (tabs) or .parquet, text also as .gz"


def read_file(path: Path, *, form: str = "rows", header: bool = True) -> Iterator[PlacedRow]:
    """Read the rows of a file.

    Args:
        path: the file; its suffix gives the format.
        form: form of a ``.json`` file: ``rows`` (a list of objects, or ``{"data": [...]}``) or ``squad``.
        header: whether the first line of csv or tsv names the columns; otherwise they are numbered 0, 1, ...

    Raises:
        DataError: the file cannot be read in the format of its suffix. The message names the file and the line.
    """
    name = path.name.removesuffix(".gz")
    suffix = Path(name).suffix
    if suffix == ".parquet":
        yield from _parquet_rows(path)
        return
    readers = {".jsonl": _json_lines, ".csv": _table, ".tsv": _table, ".txt": _table, ".json": _json}
    if suffix not in readers:
        raise DataError(f"{path}: the suffix is not of a known format; give {_FORMS}")
    with _text(path) as file:
        try:
            if suffix == ".json":
                yield from _squad(path, file) if form == "squad" else _json(path, file)
            elif suffix == ".jsonl":
                yield from _json_lines(path, file)
            else:
                yield from _table(path, file, "," if suffix == ".csv" else "\t", header)
        except READING_ERRORS as error:
            raise DataError(f"{path}: cannot be read ({error}); restore the file") from None


def read_parallel(source: Path, target: Path) -> Iterator[tuple[str, Row]]:
    """Read two files line by line, as rows with ``source`` and ``target``.

    Raises:
        DataError: the files have different numbers of lines.
    """
    with _text(source) as sources, _text(target) as targets:
        number = 0
        try:
            while True:
                left, right = sources.readline(), targets.readline()
                if not left and not right:
                    return
                number += 1
                if not left or not right:
                    shorter = target if left else source
                    raise DataError(
                        f"{shorter}: has only {number - 1:,} lines, fewer than {source if left else target};"
                        " lines form pairs: restore the missing ones"
                    )
                place = f"{source} and {target}: line {number}"
                yield place, {"source": left.rstrip("\r\n"), "target": right.rstrip("\r\n")}
        except READING_ERRORS as error:
            raise DataError(f"{source} or {target}: cannot be read ({error}); restore the file") from None


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


def _json_lines(path: Path, file: TextIO) -> Iterator[PlacedRow]:
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}: line {number} is not valid JSON ({error}); correct it") from None
        if not isinstance(row, dict):
            raise DataError(f"{path}: line {number} is not a JSON object; write one object per line")
        yield f"{path}: line {number}", row


def _json(path: Path, file: TextIO) -> Iterator[PlacedRow]:
    rows = _load_json(path, file)
    rows = rows.get("data") if isinstance(rows, dict) else rows
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path}: not a list of JSON objects, nor one under 'data'; give .jsonl or such a list")
    for number, row in enumerate(rows):
        yield f"{path}: row {number}", row


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
        return json.load(file)
    except ValueError as error:
        raise DataError(
            f"{path}: not valid JSON ({error}); correct it, or name it .jsonl if it has one object per line"
        ) from None


def _table(path: Path, file: TextIO, delimiter: str, header: bool) -> Iterator[PlacedRow]:
    # A quotation mark in tab-separated corpora is text. In csv it quotes a field, which may span lines.
    csv.field_size_limit(2**30)
    reader = csv.reader(file, delimiter=delimiter, quoting=csv.QUOTE_MINIMAL if delimiter == "," else csv.QUOTE_NONE)
    names: list[Any] | None = None
    try:
        for fields in reader:
            if not fields:
                continue
            if names is None:
                names = [field.strip() for field in fields] if header else list(range(len(fields)))
                if header:
                    continue
            place = f"{path}: line {reader.line_num}"
            if len(fields) != len(names):
                fault = DataError(f"{place} has {len(fields)} fields instead of {len(names)}; correct it")
                yield place, fault
                continue
            yield place, dict(zip(names, fields, strict=True))
    except csv.Error as error:
        raise DataError(f"{path}: line {reader.line_num} cannot be read ({error}); correct it") from None


def _parquet_rows(path: Path) -> Iterator[PlacedRow]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    yield f"{path}: row {number}", row
                    number += 1
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{path}: cannot be read as parquet ({' '.join(str(error).split())}); restore it") from None
