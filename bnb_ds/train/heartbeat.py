"""Shows what a run does while nothing else is printed: in the first step, for example, which may take minutes."""

from __future__ import annotations

import threading
import time
from types import TracebackType

from bnb_ds.distributed import ranks
from bnb_ds.train.phases import Phases
from bnb_ds.train.tracking import Tracker

_LONGEST_SILENCE_SECONDS = 600


class Heartbeat:
    """While its block runs, a long silence of the loop is broken, after ever longer times. Only rank 0 speaks.

    Args:
        tracker: says it.
        phases: know what the loop does.
        silence_seconds: how long the first silence of a phase may be.
    """

    def __init__(self, tracker: Tracker, phases: Phases, silence_seconds: float = 10) -> None:
        self._tracker = tracker
        self._phases = phases
        self._first = silence_seconds
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="heartbeat", daemon=True)

    def __enter__(self) -> None:
        if ranks.is_main():
            self._thread.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended.set()
        if ranks.is_main():
            self._thread.join()

    def _watch(self) -> None:
        tracker, longest = self._tracker, self._first
        sign = tracker.last_sign
        spoken = sign
        while not self._ended.wait(min(self._first / 10, 1)):
            if tracker.last_sign not in (sign, spoken):  # the loop itself has printed something
                sign, longest = tracker.last_sign, self._first
            now = time.monotonic()
            if now - max(sign, spoken) < longest:
                continue
            phases = self._phases
            doing = f"{phases.current}, {phases.part}" if phases.part else phases.current
            tracker.show_progress(f"step {phases.step}  {doing}, for {now - sign:.0f} s so far")
            spoken = max(now, tracker.last_sign)
            longest = min(2 * longest, _LONGEST_SILENCE_SECONDS)
