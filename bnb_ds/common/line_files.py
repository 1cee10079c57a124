"""Lines of files of any size, read in constant memory; inputs and outputs that tasks share."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from bnb_ds.errors import ConfigError, DataError

#: most bytes that are read of a line; the rest is skipped, and the line counts as cut
MAX_LINE_BYTES = 1 << 20
_HEAD_BYTES = 1 << 16
_BLOCK_BYTES = 1 << 20
#: stands for standard input or output
STANDARD = "-"


@dataclass(frozen=True)
class Line:
    """One line of the input.

    Attributes:
        text: the line without its newline.
        end: offset of the byte behind the line.
        is_cut: the line was longer than `MAX_LINE_BYTES`.
        is_damaged: the line was not valid UTF-8; each invalid part became U+FFFD.
    """

    text: str
    end: int
    is_cut: bool
    is_damaged: bool


class LineReader:
    """The lines that begin before byte ``end``, from where the file is; an iterator of `Line`.

    Args:
        file: open for reading, at byte ``begin``, where a line begins. It need not be able to seek.
        begin: the first byte to read.
        end: the byte behind the last; None: the end of the file.
        name: of the file, for messages.

    Raises:
        DataError: while it is read: the operating system refuses.
    """

    def __init__(self, file: BinaryIO, begin: int = 0, end: int | None = None, *, name: str = STANDARD):
        self._file = file
        self._place = begin
        self._end = end
        self._name = name
        self._hash = hashlib.sha256()

    def skip(self, num_bytes: int) -> str:
        """Pass over bytes that an earlier run has read; returns their digest."""
        while num_bytes:
            block = self._read(self._file.read, min(num_bytes, _BLOCK_BYTES))
            if not block:
                break
            num_bytes -= len(block)
        return self.digest

    @property
    def digest(self) -> str:
        """SHA-256 of all bytes that were read, as hexadecimal digits."""
        return self._hash.hexdigest()

    def __iter__(self) -> Iterator[Line]:
        while self._end is None or self._place < self._end:
            raw = self._read(self._file.readline, MAX_LINE_BYTES)
            if not raw:
                return
            is_cut = len(raw) == MAX_LINE_BYTES and not raw.endswith(b"\n")
            rest = raw if is_cut else b"\n"
            while rest and not rest.endswith(b"\n"):
                rest = self._read(self._file.readline, MAX_LINE_BYTES)
            try:
                text, is_damaged = raw.decode("utf-8"), False
            except UnicodeDecodeError:
                text = raw.decode("utf-8", errors="replace")
                # A character that the limit has cut in two does not count as damage.
                is_damaged = not is_cut or "\ufffd" in text[:-1]
            yield Line(text.rstrip("\r\n"), self._place, is_cut, is_damaged)

    def _read(self, read: Callable[[int], bytes], size: int) -> bytes:
        try:
            block = read(size)
        except OSError as error:
            raise _unreadable(self._name, error) from None
        self._place += len(block)
        self._hash.update(block)
        return block


def read_lines(file: BinaryIO, begin: int = 0, end: int | None = None, *, name: str = STANDARD) -> LineReader:
    """Lines that begin before byte ``end``; see `LineReader`."""
    return LineReader(file, begin, end, name=name)


def open_input(name: str) -> AbstractContextManager[BinaryIO]:
    """A file, or standard input for ``-``.

    Raises:
        DataError: it cannot be read.
    """
    if name == STANDARD:
        if sys.stdin is None:
            raise DataError("--input -: standard input is closed; give a text file, or redirect one to the command")
        return contextlib.nullcontext(sys.stdin.buffer)
    try:
        return open(name, "rb")
    except OSError as error:
        raise _unreadable(name, error) from None


def _unreadable(name: str, error: OSError) -> DataError:
    return DataError(f"--input {name}: cannot be read ({error.strerror}); give a text file or -")


def is_read_once(name: str) -> bool:
    """Whether an input is a stream, such as ``-``, ``<(command)`` or a named pipe: it can be read once, by one task."""
    if name == STANDARD:
        return True
    try:
        return not stat.S_ISREG(os.stat(name).st_mode)
    except OSError:
        return False  # opening it will say why


def refuse_no_such_share(index: int, count: int) -> None:
    """Raise ConfigError unless ``index`` is the number of one of ``count`` tasks."""
    if not 0 <= index < count:
        raise ConfigError(f"--task-index {index}: give 0 to {count - 1}, below --num-tasks")


def share_path(output: Path, index: int, count: int) -> Path:
    """The file of one task's share of an output. If there is only one task, it is the output itself."""
    return output if count == 1 else output.with_name(f"{output.name}.{index:05d}-of-{count:05d}")


def share_of_file(file: BinaryIO, index: int, count: int) -> tuple[int, int]:
    """Cut a file between lines into ``count`` parts of about equal size, and seek to part ``index``.

    Every line is in exactly one part.

    Returns:
        The part's first byte, and the byte behind its last.
    """
    size = file.seek(0, os.SEEK_END)
    begin, end = (_line_start(file, size * number // count) for number in (index, index + 1))
    file.seek(begin)
    return begin, end


def _line_start(file: BinaryIO, place: int) -> int:
    """Offset of the first line that begins at or behind ``place``."""
    if place == 0:
        return 0
    file.seek(place - 1)
    while (block := file.readline(MAX_LINE_BYTES)) and not block.endswith(b"\n"):
        pass
    return file.tell()


def input_identity(name: str, file: BinaryIO) -> dict[str, Any]:
    """What identifies an input: its name, its size and a hash of its beginning.

    Raises:
        DataError: it cannot be read.
    """
    try:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        head = hashlib.sha256(file.read(_HEAD_BYTES)).hexdigest()
        file.seek(0)
    except OSError as error:
        raise _unreadable(name, error) from None
    return {"name": Path(name).name, "size": size, "head": head}
