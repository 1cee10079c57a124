"""Read the examples of a task as text, from files or the hub, and check their columns."""

from __future__ import annotations

import hashlib
import unicodedata
import urllib.parse
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from bnb_ds.common.tables import FileNotes, PlacedRow, Row, RowFault
from bnb_ds.errors import ConfigError, DataError, nearest
from bnb_ds.tasks.data_section import ParallelFiles, SplitSection, TaskDataSection
from bnb_ds.tasks.row_reader import Example, RowReader
from bnb_ds.tasks.rows import SUFFIXES, open_hub, read_file, read_hub, read_parallel, read_text_lines, suffix_of
from bnb_ds.tasks.task import HubData, Task


@dataclass
class ReadingCounts:
    """What became of the rows that :func:`read_examples` has read.

    Attributes:
        read: number of rows read from the data.
        left_out: reason -> number of rows that are not examples of the split.
        notes: what the reader of a file noticed besides.
        limit: the setting that ended the reading, or None.
    """

    read: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    notes: FileNotes = field(default_factory=FileNotes)
    limit: str | None = None

    @property
    def skipped(self) -> int:
        """Number of rows left out, for whatever reason."""
        return self.left_out.total()


def read_examples(
    task: Task, data: TaskDataSection, split: str, counts: ReadingCounts | None = None
) -> Iterator[Example]:
    """Read the examples of one split, in the order of the data.

    Args:
        task: names the columns to read.
        data: the source of the rows.
        split: ``train``, ``validation``, ``test``, or another split that the task names.
        counts: counts the rows read and left out.

    Raises:
        ConfigError: the recipe names no data for the split.
        DataError: a file or column is missing, a source or target is empty, or a label is unknown. The message names
            the file and the row.
    """
    counts = counts if counts is not None else ReadingCounts()
    reader = RowReader(task, data)
    origin = _origin(data, split)
    rows = _counted(_rows(task, data, origin, counts.notes), counts)
    examples = _examples(reader, _belonging(task, data, split, rows, counts), data.skip_bad_rows, counts)
    if data.split is not None and origin == "train":
        examples = _of_part(examples, data, split, counts)
    limit = data.max_samples(split)
    yield from islice(examples, limit)
    # Rows behind the limit are not read, not even to count them.
    counts.limit = f"data.max_{split.partition('_')[0]}_samples {limit:,}" if limit is not None else None


def read_sources(task: Task, data: TaskDataSection, path: Path, counts: ReadingCounts) -> Iterator[Example]:
    """Read the sources of a file, whose rows need neither label nor target. ``target`` of each example is empty.

    Args:
        task: names the source columns.
        data: ``columns`` and ``skip_bad_rows``.
        path: a file of any format that a recipe may name. For a task with one source column, a file with another
            suffix is plain text, one source a line.
        counts: counts the rows read and left out.

    Raises:
        DataError: as in `read_examples`.
    """
    if suffix_of(path) in SUFFIXES or len(task.sources) > 1:
        header = not any(isinstance(name, int) for name in data.columns.values())
        rows = read_file(path, form=task.form, header=header, notes=counts.notes)
    else:
        data = data.model_copy(update={"columns": {}})
        rows = ((place, {task.sources[0]: line}) for place, line in read_text_lines(path))
    yield from _examples(RowReader(task, data, with_targets=False), _counted(rows, counts), data.skip_bad_rows, counts)


def read_class_names(task: Task, data: TaskDataSection) -> list[str]:
    """The different labels of the training rows: whole numbers in their order, else in the order of the alphabet.

    Raises:
        ConfigError, DataError: as in `read_examples`.
    """
    reader, names = RowReader(task, data), set()
    for place, row in _rows(task, data, _origin(data, "train"), FileNotes()):
        try:
            if isinstance(row, RowFault):
                raise row
            names.add(reader.class_name(place, row))
        except RowFault as fault:
            if not data.skip_bad_rows:
                raise DataError(f"{fault}, or set data.skip_bad_rows") from None
    return sorted(names, key=int) if all(name.removeprefix("-").isdecimal() for name in names) else sorted(names)


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
        ConfigError: the rows are read from files, and none is named for this split; the task has no hub data set, or
            the data set has no such split.
    """
    split = _origin(data, split)
    if data.hub is None and any(_file_of(data, other) is not None for other in SPLITS):
        way_out = "data.split or data.hub" if split in SplitSection.model_fields else "data.hub"
        raise ConfigError(f"data.{split}: no file is named for this split; name one, or set {way_out}")
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


def reads_file(data: TaskDataSection, split: str) -> bool:
    """Whether the rows of a split are read from local files, not from the hub.

    If some split has a file, the others come from the hub only where ``data.hub`` names the data set.
    """
    return _file_of(data, _origin(data, split)) is not None


#: the splits that may have files of their own
SPLITS = ("train", "validation", "test", "validation_matched", "validation_mismatched")


def _file_of(data: TaskDataSection, split: str) -> str | ParallelFiles | None:
    return getattr(data, split) if split in SPLITS else None


def _origin(data: TaskDataSection, split: str) -> str:
    """The split to read rows from: ``train`` if ``data.split`` sets this split aside from it."""
    set_aside = data.split is not None and getattr(data.split, split, 0) > 0 and _file_of(data, split) is None
    return "train" if set_aside else split


def _rows(task: Task, data: TaskDataSection, split: str, notes: FileNotes) -> Iterator[PlacedRow]:
    named = _file_of(data, split)
    if named is None:
        return read_hub(*hub_of(task, data, split))
    if isinstance(named, ParallelFiles):
        return _as_columns(task, read_parallel(Path(named.source), Path(named.target)))
    header = not any(isinstance(name, int) for name in data.columns.values())
    return read_file(Path(named), form=task.form, header=header, notes=notes)


def _as_columns(task: Task, rows: Iterator[tuple[str, Row]]) -> Iterator[PlacedRow]:
    """Rename the two columns of parallel files to the column names of the task."""
    if len(task.sources) != 1:
        raise ConfigError(
            f"task {task.name}: has {len(task.sources)} source columns, but parallel files hold one; give .tsv"
        )
    for place, row in rows:
        yield place, {task.sources[0]: row["source"], task.target: row["target"]}


def _belonging(
    task: Task, data: TaskDataSection, split: str, rows: Iterator[PlacedRow], counts: ReadingCounts
) -> Iterator[PlacedRow]:
    """The rows of the documents that are listed for the split; all rows if there are no lists."""
    if not data.documents:
        # In some data sets train and test share one hub split, and only document lists separate them.
        shared = task.hub is not None and len(set(task.hub.splits.values())) < len(task.hub.splits)
        if shared and split == "test" and not reads_file(data, split):
            raise ConfigError(
                f"data.documents: the {split} split of {task.name} consists of listed documents of the training set;"
                " name the file that lists them"
            )
        return rows
    if task.document_column is None:
        raise ConfigError(f"data.documents: the rows of task {task.name} have no documents; remove data.documents")
    if split not in data.documents:
        raise ConfigError(f"data.documents: no list is given for the split {split!r}; name its file")
    listed = _listed(data.documents[split])
    for other, path in data.documents.items():
        if other != split and (both := listed.keys() & _listed(path).keys()):
            raise DataError(
                f"{data.documents[split]}: lists {min(both)!r} for {split}, and {path} lists it for {other}; a document"
                " belongs to one split, so remove it from one list"
            )
    return _of_documents(task.document_column, listed, rows, counts)


def _listed(path: str) -> dict[str, str]:
    """The titles in a list of documents, normalised -> as the list spells them."""
    try:
        # As rows are read: a byte order mark is no part of the first title.
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); name a list of documents") from None
    return {_title(line): line.strip() for line in lines if line.strip()}


def _of_documents(
    column: str, listed: dict[str, str], rows: Iterator[PlacedRow], counts: ReadingCounts
) -> Iterator[PlacedRow]:
    absent = dict(listed)
    for place, row in rows:
        if not isinstance(row, dict):
            yield place, row
        elif not isinstance(row.get(column), str):
            yield place, RowFault("no document named", f"{place}: names no document ({column}); correct it")
        elif (title := _title(row[column])) in listed:
            absent.pop(title, None)
            yield place, row
        else:
            counts.left_out["of documents that are not listed"] += 1
    # Reached only behind the last row: where a limit ends the reading, documents may still follow.
    counts.notes.absent_documents = list(absent.values())


def _title(text: str) -> str:
    """Normalise a title: files differ in percent escapes, in underscores for spaces and in the form of accents."""
    return unicodedata.normalize("NFC", urllib.parse.unquote(text.strip())).replace(" ", "_")


def _counted(rows: Iterator[PlacedRow], counts: ReadingCounts) -> Iterator[PlacedRow]:
    for placed in rows:
        counts.read += 1
        yield placed


def _examples(
    reader: RowReader, rows: Iterator[PlacedRow], skip_bad_rows: bool, counts: ReadingCounts
) -> Iterator[Example]:
    for place, row in rows:
        try:
            if isinstance(row, RowFault):
                raise row
            example = reader(place, row)
        except RowFault as fault:
            if not skip_bad_rows:
                raise DataError(f"{fault}, or set data.skip_bad_rows") from None
            counts.left_out[fault.reason] += 1
        else:
            yield example


def _of_part(
    examples: Iterator[Example], data: TaskDataSection, split: str, counts: ReadingCounts
) -> Iterator[Example]:
    for example in examples:
        part = _part(example.id, data)
        if part == split:
            yield example
        else:
            counts.left_out[f"set aside for {part} by data.split"] += 1


def _part(example_id: str, data: TaskDataSection) -> str:
    """The part of ``data.split`` that a row belongs to, from a hash of seed and id as a number in [0, 1)."""
    split = data.split
    assert split is not None
    digest = hashlib.sha256(f"{split.seed}:{example_id}".encode()).digest()
    number = int.from_bytes(digest[:8], "big") / 2**64
    if number < split.validation:
        return "validation"
    return "test" if number < split.validation + split.test else "train"
