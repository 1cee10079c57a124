"""Requests to end a run: a signal (Slurm's pre-emption sends SIGTERM), a file, or the loss of its launcher.

This module only notes a request. At the next step boundary all ranks learn of it, and the training loop saves a
checkpoint and ends with exit code 0. A request to one rank is enough.
"""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from bnb_ds.distributed import ranks

#: environment variable with the path of the stop file; the run ends once that file exists. The launch scripts set it.
STOP_FILE_VARIABLE = "BNB_STOP_FILE"

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

#: a step may take minutes, so Ctrl-C is answered at once
_ANSWER = b"\nCtrl-C: the run ends after this step, with a checkpoint; press Ctrl-C again to end it at once\n"


class StopRequest:
    """Notes requests to end while its block runs. A second Ctrl-C interrupts at once."""

    def __init__(self) -> None:
        self._reason: str | None = None
        self._previous: dict[int, Any] = {}
        # Only rank 0 looks for the file, so that not every rank asks the file server at every step.
        self._stop_file = os.environ.get(STOP_FILE_VARIABLE) if ranks.is_main() else None
        self._launchers = _deepspeed_launchers()

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # Python allows signal handlers only there
            self._previous = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._reason = signal.Signals(number).name
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            if ranks.is_main():
                # A handler must not print: it may have interrupted a print.
                os.write(2, _ANSWER)

    @property
    def reason(self) -> str | None:
        """Why this rank should end, or None."""
        if self._reason is None and self._stop_file and os.path.exists(self._stop_file):
            self._reason = f"file {self._stop_file}"
        if self._reason is None and self._launchers != _deepspeed_launchers():
            # If only DeepSpeed's launcher is killed, its ranks go on without it.
            self._reason = "its launcher is gone"
        return self._reason


def _deepspeed_launchers() -> tuple[int, ...]:
    """Process ids of the deepspeed launchers above this process: the host's and, if it runs here, the job's.

    Other parent processes are ignored, because a shell may exit before the run it started.
    """
    found = []
    pid = os.getppid()
    for _ in range(2):
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            break
        if not any(_is_deepspeed(argument) for argument in command.split(b"\0")):
            break
        found.append(pid)
        pid = parent
    return tuple(found)


def _is_deepspeed(argument: bytes) -> bool:
    return argument.startswith(b"deepspeed.launcher.") or argument.rpartition(b"/")[2] == b"deepspeed"
