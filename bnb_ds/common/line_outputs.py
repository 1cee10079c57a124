"""Outputs of lines that a killed run can resume.

An unfinished run writes to ``OUTPUT.partial``. ``OUTPUT.progress.json`` holds how many bytes of the input are done,
their hash, and how many bytes of output they gave. After each part the output is flushed to the disk first and the
progress is replaced second, so the progress never counts output that is not on the disk. A resumed run hashes that part
of the input again, and cuts off any output behind that point.

Standard output, a pipe or a device (`bnb_ds.common.files.is_stream`) is written as the lines come, and not resumed.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bnb_ds.common.files import (
    disk_errors,
    is_stream,
    link_target,
    move_into_place,
    open_stream,
    refuse_output,
    refuse_overwriting,
    refuse_same_file,
    sync_file,
    write_atomic,
)
from bnb_ds.common.line_files import STANDARD
from bnb_ds.common.program import refuse_closed_output
from bnb_ds.errors import ConfigError, DataError


def refuse_line_output(name: str | Path, inputs: Sequence[str | Path | int]) -> None:
    """Refuse an output of `open_output` before the work begins; see `bnb_ds.common.files.refuse_output`.

    Args:
        name: the file, or ``-``.
        inputs: what is read: files, or numbers of open files.

    Raises:
        ConfigError, DataError: it is or would destroy an input, or it cannot be written.
    """
    if name == STANDARD:
        refuse_closed_output()
        refuse_same_file(1, inputs)
        return
    refuse_output(name, inputs)
    if not is_stream(name):
        for path in _files_of(link_target(name)):
            refuse_same_file(path, inputs)


def refuse_finished_output(name: str | Path, *, resume: bool, overwrite: bool) -> None:
    """Refuse an output that is there already, unless the user says what should become of it.

    Raises:
        ConfigError: both flags are given.
        DataError: the file exists, and neither is given.
    """
    if resume and overwrite:
        raise ConfigError("--resume goes on with an output, and --overwrite replaces it: give one of them")
    if name != STANDARD:
        way = ", --resume to go on with an unfinished one"
        refuse_overwriting(name, overwrite=resume or overwrite, or_else=way)


def _files_of(path: Path) -> tuple[Path, Path]:
    """The files of an unfinished output: the output so far, and the progress."""
    return path.with_name(f"{path.name}.partial"), path.with_name(f"{path.name}.progress.json")


#: counts that runs of earlier versions lack
_LATER_COUNTS = ("unwritten",)
COUNTS = ("lines", "empty", "truncated", "damaged", *_LATER_COUNTS)


@dataclass
class Progress:
    """How far a run is.

    Attributes:
        settings: everything that decides the output: input, model, options. A resumed run must have the same.
        input_offset: bytes of the input that are done.
        input_digest: their SHA-256, as hexadecimal digits; empty in runs of earlier versions and without an input file.
        output_bytes: bytes of output that they gave.
        counts: number of lines, and how many of them are empty, truncated or damaged, or got an empty output.
        seconds: time spent so far, over all launches.
        complete: the output has its final name.
    """

    settings: dict[str, Any]
    input_offset: int = 0
    input_digest: str = ""
    output_bytes: int = 0
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTS, 0))
    seconds: float = 0.0
    complete: bool = False

    def add(
        self, output_bytes: int, input_offset: int, counts: dict[str, int], seconds: float, input_digest: str
    ) -> None:
        """Count one part. ``input_offset`` and ``input_digest`` are of all parts up to its end."""
        self.output_bytes += output_bytes
        self.input_offset = input_offset
        self.input_digest = input_digest
        self.seconds += seconds
        for name, count in counts.items():
            self.counts[name] += count


def open_output(
    name: str | Path, settings: dict[str, Any], *, resume: bool, overwrite: bool = False
) -> ResumableOutput | StreamOutput:
    """The output for a file, a pipe, a device, or standard output for ``-``. Arguments as of `ResumableOutput`."""
    if name == STANDARD or is_stream(name):
        return StreamOutput(name)
    return ResumableOutput(Path(name), settings, resume=resume, overwrite=overwrite)


def _encoded(lines: list[str]) -> bytes:
    return "".join(line + "\n" for line in lines).encode("utf-8")


class StreamOutput:
    """An output that is written as the lines come. It has the methods of `ResumableOutput`, but cannot be resumed.

    Args:
        name: a pipe or a device, or ``-`` for standard output.

    Raises:
        DataError: it cannot be written.
    """

    is_complete = False

    def __init__(self, name: str | Path):
        self.progress = Progress({})
        self._name = name
        with disk_errors(name):
            self._file = None if name == STANDARD else open_stream(name)

    def write(
        self, lines: list[str], input_offset: int, counts: dict[str, int], seconds: float, input_digest: str = ""
    ) -> None:
        """Write one part."""
        data = _encoded(lines)
        if self._file is None:
            sys.stdout.write(data.decode("utf-8"))
            sys.stdout.flush()
        else:
            with disk_errors(self._name):
                self._file.write(data)
                self._file.flush()
        self.progress.add(len(data), input_offset, counts, seconds, input_digest)

    def finish(self) -> None:
        """All parts are written."""
        self.progress.complete = True

    def abandon(self) -> None:
        """Close the output."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # what could not be written was told by `write`
                self._file.close()


class ResumableOutput:
    """The output file of a run that can be resumed.

    Args:
        path: the finished output.
        settings: see `Progress`.
        resume: continue an unfinished run. If False, an unfinished run is an error.
        overwrite: throw an unfinished run away instead.

    Raises:
        DataError: the disk refuses, another process writes this output, or an unfinished run exists without ``resume``.
        ConfigError: the unfinished run had other settings.
    """

    def __init__(self, path: Path, settings: dict[str, Any], *, resume: bool, overwrite: bool = False):
        with disk_errors(path):
            self.path = link_target(path)
        self.partial, self.state_path = _files_of(self.path)
        self.progress = Progress(settings)
        found = self._read_state()
        if found is not None and not (found.complete or resume or overwrite):
            # Without an input file there is nothing to go on from.
            way = "add --resume to go on, or" if found.settings.get("input", True) else "keep what you need, and add"
            raise DataError(f"{self.partial}: an earlier run left this unfinished: {way} --overwrite to begin again")
        if found is not None and resume:
            self._check_same(found)
            self.progress = found
        self.is_complete = resume and found is not None and found.complete and path.is_file()
        if not self.is_complete:
            self._open()

    def write(
        self, lines: list[str], input_offset: int, counts: dict[str, int], seconds: float, input_digest: str = ""
    ) -> None:
        """Append one part, and flush it and the progress to the disk."""
        data = _encoded(lines)
        with disk_errors(self.partial):
            self._file.write(data)
            sync_file(self._file)
        self.progress.add(len(data), input_offset, counts, seconds, input_digest)
        self._write_state()

    def refuse_other_input(self, digest: str) -> None:
        """Raise DataError unless ``digest`` is that of the input's bytes that are done."""
        if self.progress.input_digest not in ("", digest):
            raise DataError(
                f"--resume: the input has changed since {self.partial} was written: restore it, or remove that file and"
                f" {self.state_path.name} and start again"
            )

    def finish(self) -> None:
        """Give the output its final name."""
        with disk_errors(self.path):
            move_into_place(self.partial, self.path)
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
            found = Progress(**json.loads(self.state_path.read_text(encoding="utf-8")))
            if any(type(getattr(found, name)) is not type(value) for name, value in vars(Progress({})).items()):
                raise TypeError("a value of another kind")
            found.counts = {**dict.fromkeys(_LATER_COUNTS, 0), **found.counts}
            if found.counts.keys() != Progress({}).counts.keys():
                raise ValueError("other counts")
            return found
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError) as error:
            raise DataError(f"{self.state_path}: cannot be read ({error}); remove it and start again") from None

    def _write_state(self) -> None:
        write_atomic(self.state_path, json.dumps(asdict(self.progress), indent=1) + "\n")

    def _check_same(self, found: Progress) -> None:
        ours = json.loads(json.dumps(self.progress.settings))
        # A run of an earlier version lacks what that version did not record.
        changed = sorted(name for name, value in found.settings.items() if ours.get(name) != value)
        if changed:
            raise ConfigError(
                f"--resume: {self.state_path} is of a run with other settings ({', '.join(changed)}): give the same, or"
                " remove that file and start again"
            )
