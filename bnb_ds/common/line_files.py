"""Lines of files of any size: read in constant memory, and written so that a killed run can resume.

An unfinished run writes to ``OUTPUT.partial``. ``OUTPUT.progress.json`` holds how many bytes of the input are done, and
how many bytes of output they gave. After each part the output is flushed to the disk first and the progress is replaced
second, so the progress never counts output that is not on the disk. A resumed run cuts off any output behind that
point.
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

#: most bytes that are read of a line; the rest is skipped, and the line counts as cut
MAX_LINE_BYTES = 1 << 20
_HEAD_BYTES = 1 << 16


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


def read_lines(file: BinaryIO, begin: int = 0, end: int | None = None) -> Iterator[Line]:
    """Lines that begin before byte ``end``. The file's position must be ``begin``, where a line begins."""
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
            # A character that the limit has cut in two does not count as damage.
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
    """What identifies an input: its name, its size and a hash of its beginning."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = hashlib.sha256(file.read(_HEAD_BYTES)).hexdigest()
    file.seek(0)
    return {"name": Path(name).name, "size": size, "head": head}


@dataclass
class Progress:
    """How far a run is.

    Attributes:
        settings: everything that decides the output: input, model, options. A resumed run must have the same.
        input_offset: bytes of the input that are done.
        output_bytes: bytes of output that they gave.
        counts: number of lines, and how many of them are empty, truncated or damaged.
        seconds: time spent so far, over all launches.
        complete: the output has its final name.
    """

    settings: dict[str, Any]
    input_offset: int = 0
    output_bytes: int = 0
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("lines", "empty", "truncated", "damaged"), 0))
    seconds: float = 0.0
    complete: bool = False


class ResumableOutput:
    """The output file of a run that can be resumed.

    Args:
        path: the finished output.
        settings: see `Progress`.
        resume: continue an unfinished run. If False, an unfinished run is an error.

    Raises:
        DataError: the disk refuses, another process writes this output, or an unfinished run exists without ``resume``.
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
        """Append one part, and flush it and the progress to the disk."""
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
        """Give the output its final name."""
        with disk_errors(self.path):
            os.replace(self.partial, self.path)
            sync(self.path.parent)
        self.progress.complete = True
        self._write_state()
        self._file.close()

    def abandon(self) -> None:
        """Close the output. If nothing was written to it, it is removed."""
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
                f"--resume: {self.state_path} is of a run with other settings ({', '.join(changed)}): give the same, or"
                " remove that file and start again"
            )
