"""What every ``bnb-ds`` command owes its caller: standard streams, signals and exit codes.

Standard output is UTF-8 in every locale. If it fails (closed, full disk), the command ends with one line and exit code
2, even if only its last words are lost. If its reader has gone (``| head``), it ends quietly. Standard error may be
closed or full: what cannot be said there is dropped. Ctrl-C ends a command with exit code 130, SIGTERM with 143 and a
closed terminal with 129, and its temporary files are removed first. Too little memory is one line too.
"""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from bnb_ds.errors import EXIT_USER_ERROR, BnbError, DataError, run_reporting_errors

#: characters of an error's reason that its line shows
_SHOWN = 120
_ENDING = (signal.SIGTERM, signal.SIGHUP)
#: Ctrl-C came since the command began
_interrupted = threading.Event()


class Ended(BaseException):
    """A signal asks this process to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def run_command(program: str, function: Callable[[], int | None]) -> int:
    """Call the main function of a program, and return its exit code."""
    with _streams(), _signals():
        try:
            return run_reporting_errors(program, lambda: _to_the_last_word(function))
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            reason = str(error).splitlines()[0] if str(error) else "Python"
            print(
                f"{program}: error: out of memory ({reason[:_SHOWN]}); use smaller batches, or a smaller beam",
                file=sys.stderr,
                flush=True,
            )
            return EXIT_USER_ERROR
        except Ended as end:
            print(f"{program}: ended by {signal.Signals(end.number).name}", file=sys.stderr, flush=True)
            return 128 + end.number


def _is_out_of_memory(error: Exception) -> bool:
    """Whether Python, a CPU's allocator or a GPU's has no memory left; torch need not be imported."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return "can't allocate memory" in str(error) or "not enough memory" in str(error)


def speak_utf8() -> None:
    """Make standard output and standard error UTF-8 in every locale."""
    for stream, errors in ((sys.stdout, "surrogateescape"), (sys.stderr, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors=errors)


def refuse_closed_output() -> None:
    """Raise DataError before the work begins, if standard output is closed."""
    if (output := _raw_output()) is not None and output.is_closed:
        raise output.closed_error


class _Output(io.FileIO):
    """Standard output. Its first failure is raised, and nothing is written after it.

    Attributes:
        is_closed: there is no standard output.
        failure: what went wrong so far.
    """

    closed_error = DataError("standard output: cannot write: it is closed; redirect it to a file or to /dev/null")

    def __init__(self, descriptor: int, *, is_closed: bool) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self.is_closed = is_closed
        self.failure: Exception | None = None

    def write(self, data: Any) -> int | None:
        if self.failure is not None:
            return memoryview(data).nbytes
        try:
            if self.is_closed:
                raise self.closed_error
            return super().write(data)
        except OSError as error:
            is_unread = isinstance(error, BrokenPipeError)
            self.failure = error if is_unread else DataError(f"standard output: cannot write: {error.strerror}")
        except DataError as error:
            self.failure = error
        raise self.failure


class _Messages(io.FileIO):
    """Standard error. What cannot be written is dropped."""

    def write(self, data: Any) -> int | None:
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


def _raw_output() -> _Output | None:
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    return raw if isinstance(raw, _Output) else None


def _to_the_last_word(function: Callable[[], int | None]) -> int | None:
    """Call a function, then write what is still buffered, so that its loss is noticed."""
    try:
        code = function()
    except SystemExit:  # --help
        _flush()
        raise
    _flush()
    return code


def _flush() -> None:
    if sys.stdout is not None:
        sys.stdout.flush()
    if (output := _raw_output()) is not None and output.failure is not None:
        raise output.failure  # somebody has caught it on the way


@contextmanager
def _streams() -> Iterator[None]:
    before = sys.stdout, sys.stderr
    _hold_closed_descriptors()
    # Otherwise somebody has redirected it within this process.
    if sys.stdout is sys.__stdout__:
        if sys.stdout is not None:
            sys.stdout.flush()
        raw = _Output(1, is_closed=sys.stdout is None)
        sys.stdout = _utf8(raw, "surrogateescape", by_line=raw.isatty())
    if sys.stderr is sys.__stderr__:
        sys.stderr = _utf8(_Messages(2, "w", closefd=False), "backslashreplace", by_line=True)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def _utf8(raw: io.FileIO, errors: str, *, by_line: bool) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding="utf-8", errors=errors, line_buffering=by_line)


def _hold_closed_descriptors() -> None:
    """Open /dev/null where a standard stream is closed, so that no other file gets its number and what is meant for it.

    `sys.stdin` stays None then.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


@contextmanager
def _signals() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # Python allows handlers only there
        yield
        return
    # A signal that is ignored, as SIGHUP under nohup, stays so.
    taken = {number: signal.SIG_DFL for number in _ENDING if signal.getsignal(number) is signal.SIG_DFL}
    for number in taken:
        signal.signal(number, _end)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        _interrupted.clear()
        signal.signal(signal.SIGINT, _interrupt)
        taken[signal.SIGINT] = signal.default_int_handler
    try:
        yield
    finally:
        for number, handler in taken.items():
            signal.signal(number, handler)


def _end(number: int, frame: FrameType | None) -> None:
    raise Ended(number)


def _interrupt(number: int, frame: FrameType | None) -> None:
    _interrupted.set()
    raise KeyboardInterrupt


@contextmanager
def lost_interrupts() -> Iterator[None]:
    """Raise KeyboardInterrupt for a failure after Ctrl-C: torch drops it while it imports numpy, which then fails."""
    try:
        yield
    except BnbError:
        raise
    except Exception as error:
        if _interrupted.is_set():
            raise KeyboardInterrupt from error
        raise
