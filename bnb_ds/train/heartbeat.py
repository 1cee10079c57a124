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
    """Breaks long silences of the loop while its block runs, each time one that is twice as long. Only rank 0 speaks.

    Args:
        tracker: says it.
        phases: know what the loop does.
        silence_seconds: how long the first silence may be.
    """

    def __init__(self, tracker: Tracker, phases: Phases, silence_seconds: float = 10) -> None:
        self._tracker = tracker
        self._phases = phases
        self._patience = silence_seconds
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
        tracker, phases = self._tracker, self._phases
        sign = own = tracker.last_sign
        while not self._ended.wait(min(self._patience / 10, 1)):
            if tracker.last_sign not in (sign, own):  # the loop itself has printed something, or made a step
                sign = tracker.last_sign
            silence = time.monotonic() - sign
            if silence < self._patience:
                continue
            doing = f"{phases.current}, {phases.part}" if phases.part else phases.current
            tracker.show_progress(f"step {phases.step}  running for {silence:.0f} s, now: {doing}")
            own = tracker.last_sign
            # Steps that always take so long are not told of again.
            self._patience = min(2 * self._patience, _LONGEST_SILENCE_SECONDS)
