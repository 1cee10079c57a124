"""This rank's side of the watch: it starts the guardian and reports its own progress to it.

Together they see to it that a job whose ranks cannot all go on ends within a set time, with the rank named: the
guardians notice ranks that die, stop or hang, whatever the state of the collective operations.
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

from bnb_ds.distributed import ranks

_BEAT_SECONDS = 1.0
_VERDICT_SECONDS = 30.0
#: what gloo, NCCL and torch say when a peer is gone
_CONNECTION_SIGNS = ("connection", "peer", "timed out", "timeout", "nccl", "socket", "gloo", "store")


class Watchdog:
    """Watches this job from ``start`` to the end of the block; every rank enters it.

    Args:
        silence_seconds: a rank that has not run, or could not be reached, for so long ends the job.
        hang_seconds: likewise when no rank has made progress for so long.
    """

    def __init__(self, silence_seconds: float, hang_seconds: float) -> None:
        self._limits = (silence_seconds, hang_seconds)
        self._state = {"event": "beat", "step": 0, "phase": "start", "progress": 0, "message": ""}
        self._lock = threading.Lock()
        self._guardian: subprocess.Popen[bytes] | None = None
        self._closed = threading.Event()

    def __enter__(self) -> Watchdog:
        meeting = ranks.on_main(self._start_hub)
        if not ranks.is_main():
            self._start_guardian(meeting)
        # Everyone is being watched before anyone goes on.
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
        # -S, -E: the program needs the standard library alone, and starts in a blink.
        self._guardian = subprocess.Popen(
            [sys.executable, "-S", "-E", program, str(ranks.rank()), str(ranks.world_size()), *limits],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd="/",
        )
        self._write(meeting)
        return int(self._guardian.stdout.readline() or 0)

    def mark(self, phase: str, step: int | None = None) -> None:
        """Note what the rank is about to do; every rank passes the same marks in the same order."""
        self._state["phase"] = phase
        if step is not None:
            self._state["step"] = step
        self._state["progress"] += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None and _is_connection_error(error):
            self._report("lost", str(error))
            # The guardian of rank 0 knows which rank is the cause, says it once, and ends this one; a traceback of
            # the connection would only hide that.
            time.sleep(_VERDICT_SECONDS)
        self._report("bye" if error is None else "failed", "")
        self._closed.set()
        with contextlib.suppress(OSError):
            self._guardian.stdin.close()
        if error is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._guardian.wait(timeout=5)

    def _report(self, event: str, message: str) -> None:
        self._state.update(event=event, message=" ".join(message.split())[:300])
        self._write(self._state)

    def _beat(self) -> None:
        while not self._closed.wait(_BEAT_SECONDS):
            self._write(self._state)

    def _write(self, message: dict[str, object]) -> None:
        with self._lock, contextlib.suppress(OSError, ValueError):
            self._guardian.stdin.write(json.dumps(message).encode() + b"\n")
            self._guardian.stdin.flush()


def _is_connection_error(error: BaseException) -> bool:
    """Whether a collective operation failed because of another rank, as far as its text tells."""
    if ranks.world_size() == 1 or not isinstance(error, RuntimeError):
        return False
    return any(sign in str(error).lower() for sign in _CONNECTION_SIGNS)
