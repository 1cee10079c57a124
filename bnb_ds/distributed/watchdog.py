"""Starts the guardian of this rank and reports the rank's progress to it.

If a rank dies, stops or hangs, the guardians end the whole job within a set time and name that rank. This works even
while the other ranks wait in a collective operation.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from bnb_ds.distributed import ranks

_BEAT_SECONDS = 1.0
_VERDICT_SECONDS = 30.0
#: a rank that reads and writes so many bytes between two beats is busy; its beats themselves are a few hundred
_BUSY_BYTES = 1 << 16
#: words in the errors of gloo, NCCL and torch when another rank is gone
_CONNECTION_SIGNS = ("connection", "peer", "timed out", "timeout", "nccl", "socket", "gloo", "store")


class Watchdog:
    """Watches this job while its block runs. Every rank must enter it.

    Args:
        silence_seconds: the job ends when a rank has not run or could not be reached for so long.
        hang_seconds: the job ends when no rank has made progress for so long. A rank makes progress when it passes a
            mark, when it ticks, and while it reads or writes files.
    """

    def __init__(self, silence_seconds: float, hang_seconds: float) -> None:
        self._limits = (silence_seconds, hang_seconds)
        self._state: dict[str, Any] = {"event": "beat", "step": 0, "phase": "start", "progress": 0, "activity": 0}
        self._state["message"] = ""
        self._lock = threading.Lock()
        self._guardian: subprocess.Popen[bytes] | None = None
        self._closed = threading.Event()

    def __enter__(self) -> Watchdog:
        meeting = ranks.on_main(self._start_hub)
        if not ranks.is_main():
            self._start_guardian(meeting)
        # No rank goes on before every rank is watched.
        ranks.barrier()
        threading.Thread(target=self._beat, name="watchdog", daemon=True).start()
        return self

    def _start_hub(self) -> dict[str, object]:
        token = secrets.token_hex(16)
        port = self._start_guardian({"token": token})
        return {"host": os.environ.get("MASTER_ADDR", "127.0.0.1"), "port": port, "token": token}

    def _start_guardian(self, meeting: dict[str, object]) -> int:
        limits = map(str, self._limits)
        program = str(Path(__file__).with_name("guardian.py"))
        # The program needs only the standard library; -S and -E make it start faster.
        guardian = subprocess.Popen(
            [sys.executable, "-S", "-E", program, str(ranks.rank()), str(ranks.world_size()), *limits],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd="/",
        )
        self._guardian = guardian
        self._write(meeting)
        assert guardian.stdout is not None
        return int(guardian.stdout.readline() or 0)

    def mark(self, phase: str, step: int | None = None) -> None:
        """Note what the rank does next. Every rank must pass the same marks in the same order.

        Args:
            phase: what it does next.
            step: number of the training step; None: unchanged.
        """
        self._state["phase"] = phase
        if step is not None:
            self._state["step"] = step
        self._state["progress"] += 1

    def tick(self) -> None:
        """Note that this rank is busy with long work of its own, such as tokenising while the others wait."""
        self._state["activity"] += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None and _is_connection_error(error):
            self._report("lost", str(error))
            # The guardian of rank 0 names the rank that is the cause and ends this rank. A traceback of the broken
            # connection would hide that line.
            time.sleep(_VERDICT_SECONDS)
        self._report("bye" if error is None else "failed", "")
        self._closed.set()
        with contextlib.suppress(OSError):
            self._stdin.close()
        if error is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._started.wait(timeout=5)

    def _report(self, event: str, message: str) -> None:
        self._state.update(event=event, message=" ".join(message.split())[:300])
        self._write(self._state)

    def _beat(self) -> None:
        moved = _bytes_moved()
        while not self._closed.wait(_BEAT_SECONDS):
            before, moved = moved, _bytes_moved()
            # Downloads, hashes and checkpoints take long, and the libraries that make them report nothing.
            if moved - before >= _BUSY_BYTES:
                self.tick()
            self._write(self._state)

    def _write(self, message: dict[str, object]) -> None:
        with self._lock, contextlib.suppress(OSError, ValueError):
            self._stdin.write(json.dumps(message).encode() + b"\n")
            self._stdin.flush()

    @property
    def _started(self) -> subprocess.Popen[bytes]:
        assert self._guardian is not None
        return self._guardian

    @property
    def _stdin(self) -> IO[bytes]:
        assert self._started.stdin is not None
        return self._started.stdin


def _bytes_moved() -> int:
    """Bytes that this process has read and written so far; 0 where the system does not say."""
    try:
        counters = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
        return sum(int(counters[name]) for name in ("rchar", "wchar", "read_bytes"))
    except (OSError, KeyError, ValueError):
        return 0


def _is_connection_error(error: BaseException) -> bool:
    """Whether an error looks like a collective operation that failed because of another rank, judged by its text."""
    if ranks.world_size() == 1 or not isinstance(error, RuntimeError):
        return False
    return any(sign in str(error).lower() for sign in _CONNECTION_SIGNS)
