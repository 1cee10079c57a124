"""Tokenise a split of a task once, and cache it under a hash of its content.

A directory of the cache holds these files:

  source.npy             uint32, all sources concatenated
  source_offsets.npy     int64, the begin of each source, and the end of the last
  first_lengths.npy      int32, tokens of each source before its second text
  target.npy, target_offsets.npy   the targets likewise; empty if there are labels
  labels.npy             int64 classes or float64 scores, for tasks with labels
  ids.txt                the id of each row
  references.jsonl       target texts; empty for train and for labels
  spacing.json           of train, for text targets of a WordPiece tokenizer: where spaces stand between words
  info.json              counts
"""

from __future__ import annotations

import codecs
import hashlib
import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from bnb_ds.common.files import new_directory, sha256_file
from bnb_ds.errors import DataError
from bnb_ds.tasks.codec import Codec
from bnb_ds.tasks.data_section import TaskDataSection
from bnb_ds.tasks.examples import ReadingCounts, files_of, hub_fingerprint, hub_of, read_examples, reads_file
from bnb_ds.tasks.romanian import Spelling, respell
from bnb_ds.tasks.row_reader import Example
from bnb_ds.tasks.spacing import SPACING_FILE, Sample, Spacing, learns_spacing
from bnb_ds.tasks.task import Task
from bnb_ds.tasks.text_lengths import Lengths

_FORMAT = 2
_CHUNK = 2000


class Tokenised:
    """One tokenised split, memory-mapped.

    Attributes:
        info: numbers of samples, of cut sources and targets, and of rows read and left out.
        fingerprint: hex hash of everything that determines the content.
        labels: int64 classes or float64 scores [num_samples]; None if the targets are texts.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.fingerprint = directory.name
        self.info: dict[str, Any] = json.loads((directory / "info.json").read_text(encoding="utf-8"))
        self._source, self._target = self._array("source"), self._array("target")
        self._source_offsets, self._target_offsets = self._array("source_offsets"), self._array("target_offsets")
        self._first_lengths = self._array("first_lengths")
        labels = directory / "labels.npy"
        self.labels = np.load(labels) if labels.exists() else None

    def __len__(self) -> int:
        return self._source_offsets.size - 1

    @property
    def has_pairs(self) -> bool:
        """Whether a source consists of two texts."""
        return self.info["texts_per_source"] == 2

    def source_lengths(self, ids: np.ndarray) -> np.ndarray:
        """int64 [B], number of tokens of each source."""
        return self._source_offsets[ids + 1] - self._source_offsets[ids]

    def target_lengths(self, ids: np.ndarray) -> np.ndarray:
        """int64 [B], number of tokens of each target; 0 for tasks with labels."""
        return self._target_offsets[ids + 1] - self._target_offsets[ids]

    def sources(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Sources back to back, int64 [N], and their offsets, int64 [B + 1]."""
        return _gather(self._source, self._source_offsets, ids)

    def targets(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Targets back to back, int64 [M], and their offsets, int64 [B + 1]."""
        return _gather(self._target, self._target_offsets, ids)

    def first_lengths(self, ids: np.ndarray) -> np.ndarray:
        """int64 [B], number of tokens before the second text."""
        return self._first_lengths[ids].astype(np.int64)

    def references(self) -> list[str]:
        """The target texts, unchanged from the data."""
        with open(self.directory / "references.jsonl", encoding="utf-8") as file:
            return [json.loads(line) for line in file]

    def spacing(self) -> Spacing | None:
        """Where spaces stand in the targets; None except for train with text targets of a WordPiece tokenizer."""
        path = self.directory / SPACING_FILE
        return Spacing.load(path) if path.is_file() else None

    def row_ids(self) -> list[str]:
        """The id of each row."""
        return (self.directory / "ids.txt").read_text(encoding="utf-8").split("\n")[:-1]

    def _array(self, name: str) -> np.ndarray:
        return np.load(self.directory / f"{name}.npy", mmap_mode="r")


def tokenise(
    task: Task, data: TaskDataSection, split: str, codec: Codec, progress: Callable[[], None] = lambda: None
) -> Tokenised:
    """Return a split as token ids, from the cache or made now. Only one process of a job may call it.

    Args:
        task: the task.
        data: the recipe's ``data`` section.
        split: name of the split.
        codec: the tokenizers.
        progress: called now and then while files are hashed and rows are tokenised.

    Raises:
        ConfigError, DataError: as in `read_examples`; or the split is empty.
    """
    directory = cached_directory(task, data, split, codec, progress)
    if not _is_made(directory):
        try:
            with new_directory(directory) as made:
                _write(task, data, split, codec, made, progress)
        except DataError:
            # Another run may have made the same directory in the meantime.
            if not _is_made(directory):
                raise
    return Tokenised(directory)


def rows_lines(info: dict[str, Any]) -> list[str]:
    """What became of the rows of a split, for the user: rows read, kept, left out by reason, and cut."""
    left_out = info["rows_left_out"]
    lines = [f"{info['num_rows_read']:,} rows read, {info['num_samples']:,} kept, {sum(left_out.values()):,} left out"]
    if info["limit"]:
        lines[0] += f" (ends at {info['limit']})"
    lines += [f"{number:,} left out: {reason}" for reason, number in left_out.items()]
    for part in ("sources", "targets"):
        if number := info[f"num_{part}_cut"]:
            lines.append(f"{number:,} {part} cut to the longest length")
    return lines + info["notes"]


def _is_made(directory: Path) -> bool:
    return (directory / "info.json").is_file()


def cached_directory(
    task: Task, data: TaskDataSection, split: str, codec: Codec, progress: Callable[[], None] = lambda: None
) -> Path:
    """The cache directory of a split; its name is a hash of everything that determines the content."""
    lengths = Lengths.of(task, data)
    named = files_of(data, split)
    for path in named:
        if not path.is_file():
            reason = "is no regular file, and is read several times" if path.exists() else "no such file"
            raise DataError(f"{path}: {reason}; data.{split} names it")
    content: list[Any] = [sha256_file(path, progress) for path in named]
    if not reads_file(data, split):
        content.append(hub_fingerprint(*hub_of(task, data, split)))
    key = {
        "format": _FORMAT,
        "task": [task.kind, task.sources, task.target, task.labels, lengths.cut, task.form, task.id_column],
        "split": [split, data.max_samples(split), data.split.model_dump() if data.split else None],
        "columns": data.columns,
        "skip_bad_rows": data.skip_bad_rows,
        "lengths": {"source": lengths.source, "target": lengths.target},
        "content": content,
        "tokenizers": codec.fingerprint,
    }
    if _spelling_of_references(data) != "none":
        key["references"] = _spelling_of_references(data)
    if split in data.documents and _has_mark(Path(data.documents[split])):
        key["documents"] = "utf-8-sig"  # earlier releases lost the first title of such a list
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return Path(data.cache_dir) / f"{task.name}-{split}-{digest[:24]}"


def _has_mark(path: Path) -> bool:
    """Whether a file begins with a byte order mark."""
    with open(path, "rb") as file:
        return file.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8


class _Rows:
    """Collects arrays of different lengths, to be saved as one array with offsets."""

    def __init__(self) -> None:
        self._parts: list[np.ndarray] = []
        self._lengths: list[int] = []

    def add(self, rows: list[np.ndarray]) -> None:
        self._lengths += [row.size for row in rows]
        if rows:
            self._parts.append(np.concatenate(rows).astype(np.uint32))

    def save(self, directory: Path, name: str) -> None:
        values = np.concatenate(self._parts) if self._parts else np.zeros(0, np.uint32)
        offsets = np.zeros(len(self._lengths) + 1, np.int64)
        np.cumsum(self._lengths, out=offsets[1:])
        np.save(directory / f"{name}.npy", values)
        np.save(directory / f"{name}_offsets.npy", offsets)


def _write(
    task: Task, data: TaskDataSection, split: str, codec: Codec, directory: Path, progress: Callable[[], None]
) -> None:
    counts = ReadingCounts()
    examples = _marked(read_examples(task, data, split, counts), progress)
    is_train = split.startswith("train")
    references = None if is_train else _spelling_of_references(data)
    info = write_examples(task, Lengths.of(task, data), codec, examples, directory, references=references)
    if not info["num_samples"]:
        raise DataError(
            f"task {task.name}: the {split} split is empty{_reasons(counts)}; check the files named in data"
        )
    if is_train and task.is_generation and learns_spacing(codec.target):
        # A second reading of the rows: to draw from all of them is cheap beside tokenising them.
        sample = Sample()
        spelling = codec.spelling["target"]
        sample.add(respell(str(example.target), spelling) for example in read_examples(task, data, split))
        Spacing.learn(codec.target, sample.texts, exact=codec.exact_targets).save(directory / SPACING_FILE)
    info |= {
        "split": split,
        "num_rows_read": counts.read,
        "rows_left_out": dict(sorted(counts.left_out.items())),
        "limit": counts.limit,
        "notes": counts.notes.lines(),
    }
    (directory / "info.json").write_text(json.dumps(info, indent=1), encoding="utf-8")


def _spelling_of_references(data: TaskDataSection) -> Spelling:
    return data.romanian.references if data.romanian else "none"


def _reasons(counts: ReadingCounts) -> str:
    left_out = ", ".join(f"{number:,} {reason}" for reason, number in sorted(counts.left_out.items()))
    return f": {counts.read:,} rows read, left out: {left_out}" if left_out else ""


def write_examples(
    task: Task,
    lengths: Lengths,
    codec: Codec,
    examples: Iterator[Example],
    directory: Path,
    *,
    references: Spelling | None,
) -> dict[str, Any]:
    """Tokenise examples and write all files but ``info.json``; returns the counts for that file.

    Args:
        task: of the examples.
        lengths: longest source and target.
        codec: the tokenizers.
        examples: any number of them.
        directory: exists and is empty.
        references: how Romanian is spelled in the target texts, which are written too; None: they are not written.
    """
    sources, targets, first_lengths, labels = _Rows(), _Rows(), [], []
    sources_cut = targets_cut = 0
    with (
        open(directory / "ids.txt", "w", encoding="utf-8") as ids,
        open(directory / "references.jsonl", "w", encoding="utf-8") as file,
    ):
        for chunk in _chunks(examples):
            encoded = codec.encode_sources([example.sources for example in chunk], lengths.source, cut=lengths.cut)
            sources.add(encoded.tokens)
            first_lengths += encoded.first_lengths
            sources_cut += encoded.num_cut
            ids.writelines(" ".join(example.id.split()) + "\n" for example in chunk)
            if not task.is_generation:
                labels += [example.target for example in chunk]
                targets.add([np.zeros(0)] * len(chunk))
                continue
            tokens, num_cut = codec.encode_targets([str(example.target) for example in chunk], lengths.target)
            targets.add(tokens)
            targets_cut += num_cut
            if references is not None:
                file.writelines(json.dumps(respell(str(example.target), references)) + "\n" for example in chunk)
    sources.save(directory, "source")
    targets.save(directory, "target")
    np.save(directory / "first_lengths.npy", np.array(first_lengths, np.int32))
    if not task.is_generation:
        np.save(directory / "labels.npy", np.array(labels, np.int64 if task.kind == "classification" else np.float64))
    return {
        "task": task.name,
        "num_samples": len(first_lengths),
        "texts_per_source": len(task.sources),
        "num_sources_cut": sources_cut,
        "num_targets_cut": targets_cut,
    }


def _marked(examples: Iterator[Example], progress: Callable[[], None]) -> Iterator[Example]:
    for number, example in enumerate(examples, 1):
        if number % _CHUNK == 0:
            progress()
        yield example


def _chunks(examples: Iterator[Example]) -> Iterator[list[Example]]:
    while chunk := list(islice(examples, _CHUNK)):
        yield chunk


def _gather(values: np.ndarray, offsets: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    begins = offsets[ids]
    lengths = offsets[ids + 1] - begins
    cu_seqlens = np.zeros(ids.size + 1, np.int64)
    np.cumsum(lengths, out=cu_seqlens[1:])
    index = np.arange(cu_seqlens[-1]) + np.repeat(begins - cu_seqlens[:-1], lengths)
    return np.asarray(values[index], np.int64), cu_seqlens
