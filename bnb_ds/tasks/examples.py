"""Read the examples of a task as text, from files or the hub, and check their columns."""

from __future__ import annotations

import hashlib
import unicodedata
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from bnb_ds.errors import ConfigError, DataError, nearest
from bnb_ds.tasks.data_section import ParallelFiles, TaskDataSection
from bnb_ds.tasks.rows import PlacedRow, Row, open_hub, read_file, read_hub, read_parallel
from bnb_ds.tasks.task import HubData, Task


@dataclass(frozen=True)
class Example:
    """One example of a task.

    Attributes:
        id: the row's own id, or a hash of its text.
        sources: the text of each source column.
        target: a text, the number of a class, or the score of a regression.
    """

    id: str
    sources: tuple[str, ...]
    target: str | int | float


@dataclass
class ReadingCounts:
    """The number of rows that :func:`read_examples` has skipped."""

    skipped: int = 0


def read_examples(
    task: Task, data: TaskDataSection, split: str, counts: ReadingCounts | None = None
) -> Iterator[Example]:
    """Read the examples of one split, in the order of the data.

    Args:
        task: names the columns to read.
        data: the source of the rows.
        split: ``train``, ``validation``, ``test``, or another split that the task names.
        counts: counts the rows that ``data.skip_bad_rows`` skips.

    Raises:
        ConfigError: the recipe names no data for the split.
        DataError: a file or column is missing, a source or target is empty, or a label is unknown. The message names
            the file and the row.
    """
    counts = counts or ReadingCounts()
    reader = _RowReader(task, data)
    origin = _origin(data, split)
    rows = _belonging(task, data, split, _rows(task, data, origin))
    examples = _examples(reader, rows, data.skip_bad_rows, counts)
    if data.split is not None and origin == "train":
        examples = (example for example in examples if _part(example.id, data) == split)
    yield from islice(examples, data.max_samples(split))


def files_of(data: TaskDataSection, split: str) -> list[Path]:
    """The local files of a split; an empty list if it comes from the hub."""
    named = _file_of(data, _origin(data, split))
    lists = [Path(data.documents[split])] if split in data.documents else []
    if named is None:
        return lists
    if isinstance(named, ParallelFiles):
        return [Path(named.source), Path(named.target), *lists]
    return [Path(named), *lists]


def hub_of(task: Task, data: TaskDataSection, split: str) -> tuple[HubData, str]:
    """Return the hub data set and the name of the split there.

    Raises:
        ConfigError: the task has no hub data set, or the data set has no such split.
    """
    split = _origin(data, split)
    hub = task.hub
    if data.hub is not None:
        hub = HubData(data.hub, hub.config if hub else None, hub.splits if hub else HubData("").splits)
    if hub is None:
        raise ConfigError(f"data.{split}: task {task.name} has no data set on the hub; name a file, or set data.split")
    if split not in hub.splits:
        raise ConfigError(f"split {split!r}: task {task.name} has no such split; {nearest(split, hub.splits)}")
    return hub, hub.splits[split]


def hub_fingerprint(hub: HubData, split: str) -> str:
    """A fingerprint of the content of a hub split."""
    return open_hub(hub, split)._fingerprint


def uses_files(data: TaskDataSection) -> bool:
    """Whether rows are read from local files. As soon as one split has a file, the hub is not used for any split."""
    return any(_file_of(data, split) is not None for split in _SPLITS)


_SPLITS = ("train", "validation", "test", "validation_matched", "validation_mismatched")


def _file_of(data: TaskDataSection, split: str) -> str | ParallelFiles | None:
    return getattr(data, split) if split in _SPLITS else None


def _origin(data: TaskDataSection, split: str) -> str:
    """The split to read rows from: ``train`` if ``data.split`` sets this split aside from it."""
    set_aside = data.split is not None and getattr(data.split, split, 0) > 0 and _file_of(data, split) is None
    return "train" if set_aside else split


def _rows(task: Task, data: TaskDataSection, split: str) -> Iterator[PlacedRow]:
    named = _file_of(data, split)
    if named is None:
        if uses_files(data):
            raise ConfigError(f"data.{split}: no file is named for this split; name one, or set data.split")
        return read_hub(*hub_of(task, data, split))
    if isinstance(named, ParallelFiles):
        return _as_columns(task, read_parallel(Path(named.source), Path(named.target)))
    header = not any(isinstance(name, int) for name in data.columns.values())
    return read_file(Path(named), form=task.form, header=header)


def _as_columns(task: Task, rows: Iterator[tuple[str, Row]]) -> Iterator[PlacedRow]:
    """Rename the two columns of parallel files to the column names of the task."""
    if len(task.sources) != 1:
        raise ConfigError(
            f"task {task.name}: has {len(task.sources)} source columns, but parallel files hold one; give .tsv"
        )
    for place, row in rows:
        yield place, {task.sources[0]: row["source"], task.target: row["target"]}


def _belonging(task: Task, data: TaskDataSection, split: str, rows: Iterator[PlacedRow]) -> Iterator[PlacedRow]:
    """The rows of the documents that are listed for the split; all rows if there are no lists."""
    if not data.documents:
        # In some data sets train and test share one hub split, and only document lists separate them.
        shared = task.hub is not None and len(set(task.hub.splits.values())) < len(task.hub.splits)
        if shared and split == "test" and not uses_files(data):
            raise ConfigError(
                f"data.documents: the {split} split of {task.name} consists of listed documents of the training set;"
                " name the file that lists them"
            )
        return rows
    if task.document_column is None:
        raise ConfigError(f"data.documents: the rows of task {task.name} have no documents; remove data.documents")
    if split not in data.documents:
        raise ConfigError(f"data.documents: no list is given for the split {split!r}; name its file")
    path = Path(data.documents[split])
    try:
        listed = {_title(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()}
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); name a list of documents") from None
    column = task.document_column
    return (
        (place, row)
        for place, row in rows
        if not isinstance(row, dict) or (column in row and _title(row[column]) in listed)
    )


def _title(text: str) -> str:
    """Normalise a title: files differ in percent escapes, in underscores for spaces and in the form of accents."""
    return unicodedata.normalize("NFC", urllib.parse.unquote(text.strip())).replace(" ", "_")


def _examples(
    reader: _RowReader, rows: Iterator[PlacedRow], skip_bad_rows: bool, counts: ReadingCounts
) -> Iterator[Example]:
    for place, row in rows:
        if not isinstance(row, dict):
            if not skip_bad_rows:
                raise DataError(f"{row}, or set data.skip_bad_rows")
            counts.skipped += 1
            continue
        example = reader(place, row)
        empty = reader.empty_column(example)
        if empty is None:
            yield example
        elif skip_bad_rows:
            counts.skipped += 1
        else:
            raise DataError(f"{place}: {empty} is empty; remove the row, or set data.skip_bad_rows")


class _RowReader:
    """Makes an example of a row."""

    def __init__(self, task: Task, data: TaskDataSection) -> None:
        self._task = task
        self._names: dict[str, list[str | int]] = {}
        known = [*task.sources, task.target, *filter(None, (task.id_column, task.document_column))]
        for column in data.columns:
            if column not in known:
                raise ConfigError(f"data.columns: task {task.name} has no column {column!r}; {nearest(column, known)}")
        for column in known:
            names = data.columns.get(column, column)
            self._names[column] = [*names] if isinstance(names, list) else [names]
        self._class_of = {name: number for number, name in enumerate(task.labels)}

    def __call__(self, place: str, row: Row) -> Example:
        sources = tuple(_as_text(self._value(place, row, column)) for column in self._task.sources)
        target = self._target(place, self._value(place, row, self._task.target))
        return Example(self._id(row, sources, target), sources, target)

    def empty_column(self, example: Example) -> str | None:
        """The first column without text."""
        for column, text in zip(self._task.sources, example.sources, strict=True):
            if not text.strip():
                return f"the source ({column})"
        if isinstance(example.target, str) and not example.target.strip():
            return f"the target ({self._task.target})"
        return None

    def _value(self, place: str, row: Row, column: str) -> Any:
        for name in self._names[column]:
            found, value = _look_up(row, name)
            if found:
                return value
        names = " or ".join(repr(name) for name in self._names[column])
        raise DataError(
            f"{place}: has no column {names}, only {', '.join(map(str, row))}; give its name with"
            f" data.columns.{column}=NAME"
        )

    def _target(self, place: str, value: Any) -> str | int | float:
        task = self._task
        if task.is_generation:
            return _as_text(value)
        if task.kind == "regression":
            try:
                return float(value)
            except (TypeError, ValueError):
                raise DataError(f"{place}: the score {value!r} is not a number; correct it") from None
        if isinstance(value, str):
            value = self._class_of.get(value.strip(), int(value) if value.strip().isdecimal() else value)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < len(task.labels):
            numbered = ", ".join(f"{number} {name}" for name, number in self._class_of.items())
            raise DataError(f"{place}: the label {value!r} is not one of {task.name}'s ({numbered}); correct it")
        return value

    def _id(self, row: Row, sources: tuple[str, ...], target: object) -> str:
        if self._task.id_column is not None:
            for name in self._names[self._task.id_column]:
                found, value = _look_up(row, name)
                if found:
                    return str(value)
        text = "\x1f".join((*sources, str(target)))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _look_up(row: Row, name: str | int) -> tuple[bool, Any]:
    if name in row:
        return True, row[name]
    value: Any = row
    for part in str(name).split("."):
        if isinstance(value, dict) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            return False, None
    return True, value


def _as_text(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value))
    return "" if value is None else str(value)


def _part(example_id: str, data: TaskDataSection) -> str:
    """The part of ``data.split`` that a row belongs to, from a hash of seed and id as a number in [0, 1)."""
    split = data.split
    assert split is not None
    digest = hashlib.sha256(f"{split.seed}:{example_id}".encode()).digest()
    number = int.from_bytes(digest[:8], "big") / 2**64
    if number < split.validation:
        return "validation"
    return "test" if number < split.validation + split.test else "train"
