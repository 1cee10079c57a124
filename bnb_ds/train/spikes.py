"""Detect loss spikes: steps whose loss is much higher than recent losses. Such steps are skipped and counted."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Sequence
from typing import Any


class SpikeDetector:
    """Compares each step's loss with the median of the recent ones.

    Args:
        factor: a loss above ``factor`` x the median is a spike.
        window_steps: number of accepted losses in the median. Until there are that many, no loss is a spike.
        max_in_row: after this many spikes in a row, the weights are assumed to be spoiled.
        max_returns: how often a run may go back to an older checkpoint.
        recent: recent accepted losses of a resumed run.
        skipped: spikes of the run so far.
        in_row: spikes since the last accepted step.
        returned_to: steps of the checkpoints that the run has gone back to.
    """

    def __init__(
        self,
        factor: float,
        window_steps: int,
        max_in_row: int = 10,
        max_returns: int = 3,
        *,
        recent: Sequence[float] = (),
        skipped: int = 0,
        in_row: int = 0,
        returned_to: Sequence[int] = (),
    ) -> None:
        self._factor = factor
        self._recent: deque[float] = deque(recent, maxlen=window_steps)
        self._max_in_row = max_in_row
        self.max_returns = max_returns
        self.skipped = skipped
        self.in_row = in_row
        self.returned_to = list(returned_to)

    @property
    def livelocked(self) -> bool:
        """True after ``max_in_row`` spikes in a row: an accepted step must have spoiled the weights."""
        return self.in_row >= self._max_in_row

    def is_spike(self, loss: float) -> bool:
        """Return True if the loss of a step (nats per target token) is a spike, and count it."""
        full = len(self._recent) == self._recent.maxlen
        spike = full and loss > self._factor * statistics.median(self._recent)
        self.skipped += spike
        self.in_row += spike
        return spike

    def accept(self, loss: float) -> None:
        """Record the loss of a step that was taken."""
        self._recent.append(loss)
        self.in_row = 0

    def go_back(self, step: int, recent: Sequence[float]) -> None:
        """Record that the run went back to the checkpoint of ``step``, which holds the accepted losses ``recent``."""
        self._recent = deque(recent, maxlen=self._recent.maxlen)
        self.in_row = 0
        self.returned_to.append(step)

    def state(self) -> dict[str, Any]:
        """The state that a checkpoint saves: keyword arguments for the detector of a resumed run."""
        return {
            "recent": list(self._recent),
            "skipped": self.skipped,
            "in_row": self.in_row,
            "returned_to": self.returned_to,
        }
