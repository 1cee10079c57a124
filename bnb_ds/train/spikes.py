"""Steps whose loss jumps: found against the recent losses, not taken, and counted."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Sequence


class SpikeDetector:
    """Compares each step's loss with the median of the recent ones.

    Args:
        factor: a loss above ``factor`` x the median is a spike.
        window_steps: how many accepted losses the median is taken over; before there are as many, nothing is a spike.
        recent: accepted losses of the run so far, for a resumed run.
        skipped: spikes of the run so far.
    """

    def __init__(self, factor: float, window_steps: int, recent: Sequence[float] = (), skipped: int = 0) -> None:
        self._factor = factor
        self._recent: deque[float] = deque(recent, maxlen=window_steps)
        self.skipped = skipped

    def is_spike(self, loss: float) -> bool:
        """Judge the loss of a step (nats per target token), and count it if it is a spike."""
        full = len(self._recent) == self._recent.maxlen
        spike = full and loss > self._factor * statistics.median(self._recent)
        self.skipped += spike
        return spike

    def accept(self, loss: float) -> None:
        """A step with this loss has been taken."""
        self._recent.append(loss)

    def state(self) -> dict[str, object]:
        """What a checkpoint keeps: the keyword arguments of a successor."""
        return {"recent": list(self._recent), "skipped": self.skipped}
