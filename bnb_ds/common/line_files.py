"""Lines of files of any size: read in constant memory, written so that a killed run goes on where it was.

The output of an unfinished run is ``OUTPUT.partial``; ``OUTPUT.progress.json`` says how far input and output belong
together. After each part the output is synced, then the progress replaced, so that at any moment the progress names
output that is on the disk. What stands behind it is cut off on resuming.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from bnb_ds.common.files import disk_errors, sync, sync_file, write_atomic
from bnb_ds.errors import ConfigError, DataError

#: bytes of a line that are read; the rest is skipped, and the line counts as cut
MAX_LINE_BYTES = 1 << 20
_HEAD_BYTES = 1 << 16


@dataclass(frozen=True)
class Line:
    """One line of the input.

    Attributes:
        text: without its end.
        end: offset in the file behind the line, in bytes.
        is_cut: it was longer than `MAX_LINE_BYTES`.
        is_damaged: it was not UTF-8; what could not be read became U+FFFD.
    """

    text: str
    end: int
    is_cut: bool
    is_damaged: bool


def read_lines(file: BinaryIO, begin: int = 0, end: int | None = None) -> Iterator[Line]:
    """Lines that begin before ``end``, from a file that stands at ``begin``, the beginning of a line."""
    place = begin
    while end is None or place < end:
        raw = file.readline(MAX_LINE_BYTES)
        if not raw:
            return
        place += len(raw)
        is_cut = len(raw) == MAX_LINE_BYTES and not raw.endswith(b"\n")
        rest = raw if is_cut else b"\n"
        while rest and not rest.endswith(b"\n"):
            rest = file.readline(MAX_LINE_BYTES)
            place += len(rest)
        try:
            text, is_damaged = raw.decode("utf-8"), False
        except UnicodeDecodeError:
            text = raw.decode("utf-8", errors="replace")
            # A character that the limit cut in two is no damage.
            is_damaged = not is_cut or "\ufffd" in text[:-1]
        yield Line(text.rstrip("\r\n"), place, is_cut, is_damaged)


def open_input(name: str) -> AbstractContextManager[BinaryIO]:
    """A file, or standard input for ``-``.

    Raises:
        DataError: it cannot be read.
    """
    if name == "-":
        return contextlib.nullcontext(sys.stdin.buffer)
    try:
        return open(name, "rb")
    except OSError as error:
        raise DataError(f"--input {name}: cannot be read ({error.strerror}); give a text file or -") from None


def refuse_no_such_share(index: int, count: int) -> None:
    """Raise ConfigError where a task is none of those that share the work."""
    if not 0 <= index < count:
        raise ConfigError(f"--task-index {index}: give 0 to {count - 1}, below --num-tasks")


def share_path(output: Path, index: int, count: int) -> Path:
    """Where one of ``count`` tasks writes its share of an output; one task alone writes the output itself."""
    return output if count == 1 else output.with_name(f"{output.name}.{index:05d}-of-{count:05d}")


def share_of_file(file: BinaryIO, index: int, count: int) -> tuple[int, int]:
    """Byte offsets of one of ``count`` parts of about equal size that begin and end at lines; seeks to its beginning.

    The parts in their order are the file, each line in exactly one of them.
    """
    size = file.seek(0, os.SEEK_END)
    begin, end = (_line_start(file, size * number // count) for number in (index, index + 1))
    file.seek(begin)
    return begin, end


def _line_start(file: BinaryIO, place: int) -> int:
    """Where the first line at or behind a place begins."""
    if place == 0:
        return 0
    file.seek(place - 1)
    while (block := file.readline(MAX_LINE_BYTES)) and not block.endswith(b"\n"):
        pass
    return file.tell()


def input_identity(name: str, file: BinaryIO) -> dict[str, Any]:
    """What tells one input from another: size and a hash of its beginning."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = hashlib.sha256(file.read(_HEAD_BYTES)).hexdigest()
    file.seek(0)
    return {"name": Path(name).name, "size": size, "head": head}


@dataclass
class Progress:
    """How far a run is.

    Attributes:
        settings: all that decides the output: input, model, options. A resume must have the same.
        input_offset: bytes of the input that are done; ``output_bytes``: of the output that they gave.
        counts: lines, and of them empty, truncated and damaged ones.
        seconds: spent so far, in all launches.
        complete: the output stands under its name.
    """

    settings: dict[str, Any]
    input_offset: int = 0
    output_bytes: int = 0
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("lines", "empty", "truncated", "damaged"), 0))
    seconds: float = 0.0
    complete: bool = False


class ResumableOutput:
    """The output file of a run.

    Args:
        path: of the finished output.
        settings: see `Progress`.
        resume: go on with an unfinished run; without it there must be none.

    Raises:
        DataError: the disk refuses, another process writes this output, or an unfinished run is there.
        ConfigError: the unfinished run had other settings.
    """

    def __init__(self, path: Path, settings: dict[str, Any], *, resume: bool):
        self.path = path
        self.partial = path.with_name(f"{path.name}.partial")
        self.state_path = path.with_name(f"{path.name}.progress.json")
        self.progress = Progress(settings)
        found = self._read_state()
        if found is not None and not found.complete and not resume:
            raise DataError(
                f"{self.partial}: an earlier run left this unfinished: add --resume to go on, or remove it and "
                f"{self.state_path.name}"
            )
        if found is not None and resume:
            self._check_same(found)
            self.progress = found
        self.is_complete = resume and found is not None and found.complete and path.is_file()
        if not self.is_complete:
            self._open()

    def write(self, lines: list[str], input_offset: int, counts: dict[str, int], seconds: float) -> None:
        """Append one part, and make it and the progress durable."""
        data = "".join(line + "\n" for line in lines).encode("utf-8")
        with disk_errors(self.partial):
            self._file.write(data)
            sync_file(self._file)
        progress = self.progress
        progress.output_bytes += len(data)
        progress.input_offset = input_offset
        progress.seconds += seconds
        for name, count in counts.items():
            progress.counts[name] += count
        self._write_state()

    def finish(self) -> None:
        """Give the output its name."""
        with disk_errors(self.path):
            os.replace(self.partial, self.path)
            sync(self.path.parent)
        self.progress.complete = True
        self._write_state()
        self._file.close()

    def abandon(self) -> None:
        """Close; an output to which nothing was written is removed."""
        if not self.is_complete:
            self._file.close()
            if self.progress.output_bytes == 0 and not self.state_path.exists():
                self.partial.unlink(missing_ok=True)

    def _open(self) -> None:
        progress = self.progress
        progress.complete = False
        with disk_errors(self.partial):
            self._file = open(self.partial, "ab")  # noqa: SIM115 (held until the run ends)
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._file.close()
                raise DataError(
                    f"{self.partial}: another process is writing it: wait for it, or choose another output"
                ) from None
        size = os.path.getsize(self.partial)
        if size < progress.output_bytes:
            self._file.close()
            raise DataError(
                f"{self.partial}: holds {size} bytes, but {self.state_path.name} says {progress.output_bytes}: remove "
                "both and start again"
            )
        self._file.truncate(progress.output_bytes)
        if progress.output_bytes == 0:
            self.state_path.unlink(missing_ok=True)

    def _read_state(self) -> Progress | None:
        try:
            return Progress(**json.loads(self.state_path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError) as error:
            raise DataError(f"{self.state_path}: cannot be read ({error}); remove it and start again") from None

    def _write_state(self) -> None:
        write_atomic(self.state_path, json.dumps(asdict(self.progress), indent=1) + "\n")

    def _check_same(self, found: Progress) -> None:
        ours = json.loads(json.dumps(self.progress.settings))
        changed = sorted(
            name for name in ours.keys() | found.settings.keys() if ours.get(name) != found.settings.get(name)
        )
        if changed:
            raise ConfigError(
                f"--resume: {self.state_path} was begun with another {', '.join(changed)}: give the same, or remove it "
                "and start again"
            )
