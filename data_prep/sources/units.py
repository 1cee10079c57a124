"""Cutting the inputs into pieces of work. The cuts depend on the inputs alone.

A *unit* is a file, or a range of one, that a reader reads in one go. A *part* is a run of units that becomes shards of
its own. Workers and tasks only choose among parts, so any number of them gives the same shards.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from bnb_ds.errors import DataError
from data_prep.sources.documents import Record
from data_prep.sources.opening import COMPRESSIONS, kind, unreadable

_LARGEST_PART_BYTES = 1 << 26
_SMALLEST_PART_BYTES = 1 << 21
_BLOCK_BYTES = 1 << 20
_OVERLAP_BYTES = 1 << 22  # more than any compressed record
_PARTS_OF_A_CORPUS = 256  # enough for any node to keep its cores busy to the end


@dataclass(frozen=True)
class SourceFile:
    """One input file."""

    path: Path
    name: str  # relative to the directory the user named, or the file's own name: the same on every machine

    def num_bytes(self) -> int:
        """Size on the disk.

        Raises:
            DataError: it cannot be read, or is a pipe or a device.
        """
        try:
            found = self.path.stat()
        except OSError as error:
            raise unreadable(self.path, error) from error
        if not stat.S_ISREG(found.st_mode):
            raise DataError(f"{self.path}: is no regular file, and is read several times; save its content to a file")
        return found.st_size

    def stamp(self) -> tuple[int, ...]:
        """A value that changes when the file is written to or replaced.

        Raises:
            DataError: it cannot be read.
        """
        try:
            found = self.path.stat()
        except OSError as error:
            raise unreadable(self.path, error) from error
        return found.st_ino, found.st_size, found.st_mtime_ns

    def digest(self, unit: Unit | None = None) -> str:
        """SHA-256 (hex) of the bytes on the disk that a unit is read from, by default the whole file.

        Raises:
            DataError: they cannot be read.
        """
        spans = ((0, self.num_bytes()),) if unit is None else unit.spans_of(self.num_bytes())
        digest = hashlib.sha256()
        try:
            with open(self.path, "rb") as file:
                for begin, end in spans:
                    file.seek(begin)
                    while block := file.read(min(_BLOCK_BYTES, end - begin)):
                        digest.update(block)
                        begin += len(block)
        except OSError as error:
            raise unreadable(self.path, error) from error
        return digest.hexdigest()

    def manifest_entry(self, sha256: str | None = None) -> dict[str, Any]:
        """Name, size and SHA-256; reads the file unless its SHA-256 is known.

        Raises:
            DataError: it cannot be read.
        """
        return {"name": self.name, "bytes": self.num_bytes(), "sha256": sha256 or self.digest()}


@dataclass(frozen=True)
class Unit:
    """A file, or the range ``[begin, end)`` of it in whatever its reader counts: bytes or row groups."""

    file: int  # index into the source's files
    num_bytes: int  # its share of the file on disk, for sizing parts and for progress
    begin: int = 0
    end: int | None = None
    spans: tuple[tuple[int, int], ...] = ()  # the bytes it is read from, where `begin` and `end` do not count bytes

    def spans_of(self, file_bytes: int) -> tuple[tuple[int, int], ...]:
        """The ranges of bytes that decide its records, in a file of that size."""
        if self.spans:
            return self.spans
        if self.end is None:
            return ((0, file_bytes),)
        # The record that begins last may end in the next range.
        return ((self.begin, min(self.end + _OVERLAP_BYTES, file_bytes)),)


class Source(Protocol):
    """Where documents come from. Instances are sent to worker processes."""

    files: Sequence[Any]  # each with name, num_bytes(), stamp(), digest(unit) and manifest_entry()
    settings: dict[str, Any]  # everything that decides the documents, for the manifest
    latest_wins: bool  # ids repeat: keep the latest version, honour deletions

    def units(self) -> list[Unit]:
        """The input cut into pieces, in the order of the corpus; a function of the input alone."""

    def read(self, unit: Unit) -> Iterator[Record]:
        """The records of one piece, streamed.

        Raises:
            DataError: the piece cannot be read on.
        """


def parts(units: Sequence[Unit], part_bytes: int | None = None) -> list[list[Unit]]:
    """Runs of units of about ``part_bytes`` on disk each; by default it follows from the size of the corpus."""
    if part_bytes is None:
        total = sum(unit.num_bytes for unit in units)
        part_bytes = min(_LARGEST_PART_BYTES, max(_SMALLEST_PART_BYTES, total // _PARTS_OF_A_CORPUS))
    runs: list[list[Unit]] = []
    filled = part_bytes
    for unit in units:
        if filled >= part_bytes:
            runs.append([])
            filled = 0
        runs[-1].append(unit)
        filled += unit.num_bytes
    return runs


def find_files(inputs: Sequence[Any], kinds: Sequence[str]) -> list[SourceFile]:
    """The files that ``inputs`` name: files as given, directories searched to the bottom in sorted order.

    Hidden files and files of other types inside directories are passed over; every kind may be compressed. Links to
    directories are followed, and a directory that is reached twice is searched once.

    Raises:
        DataError: an input is missing, of another type, without such files, or named twice, or a directory cannot be
            read.
    """
    files: list[SourceFile] = []
    for given in map(Path, inputs):
        if given.is_dir():
            found = sorted(path for path in _files_below(given) if _has_kind(path, kinds))
            if not found:
                raise DataError(f"{given}: no {', '.join(kinds)} file in this directory; name one that has some")
            files.extend(SourceFile(path, path.relative_to(given).as_posix()) for path in found)
        elif not given.exists():
            raise DataError(f"{given}: no such file or directory; check --input")
        elif not _has_kind(given, kinds):
            raise DataError(f"{given}: not a {', '.join(kinds)} file; convert it or choose another --input")
        else:
            files.append(SourceFile(given, given.name))
    seen: set[Path] = set()
    for file in files:
        if (resolved := file.path.resolve()) in seen:
            raise DataError(f"{file.path}: named twice by --input; name it once")
        seen.add(resolved)
    return files


def _files_below(directory: Path) -> Iterator[Path]:
    """Every file below a directory that is not hidden, in no order; broken links too, whose reading will fail."""

    def refuse(error: OSError) -> None:
        raise unreadable(error.filename, error) from error

    seen: set[str] = set()
    starts = [directory]
    for start in starts:  # links come last, so that a file keeps its own name where it has one
        for parent, directories, names in os.walk(start, onerror=refuse):
            real = os.path.realpath(parent)
            if real in seen:
                directories.clear()
                continue
            seen.add(real)
            directories[:] = sorted(name for name in directories if not name.startswith("."))
            paths = (Path(parent, name) for name in directories)
            starts.extend(path for path in paths if path.is_symlink())
            yield from (Path(parent, name) for name in names if not name.startswith("."))


def _has_kind(path: Path, kinds: Sequence[str]) -> bool:
    # Columnar files have compression of their own.
    return kind(path) in kinds and not (path.suffix in COMPRESSIONS and kind(path) in (".parquet", ".arrow"))
