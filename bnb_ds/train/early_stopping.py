"""Ending a run whose score no longer improves."""

from __future__ import annotations

import math
from typing import Any


class EarlyStopping:
    """Counts evaluations since the best one.

    Args:
        patience: evaluations without improvement after which the run ends; at least 1.
        min_change: what counts as improvement, in units of the score.
    """

    def __init__(self, patience: int, min_change: float = 0.0) -> None:
        self._patience = patience
        self._min_change = min_change
        self._best = math.inf
        self._since_best = 0

    @property
    def ended(self) -> bool:
        """Whether the run is over."""
        return self._since_best >= self._patience

    def observe(self, selection_loss: float) -> bool:
        """Take in the score of an evaluation, lower being better; return whether the run is over.

        A score that is not finite is no improvement.
        """
        if math.isfinite(selection_loss) and selection_loss < self._best - self._min_change:
            self._best, self._since_best = selection_loss, 0
        else:
            self._since_best += 1
        return self.ended

    def state(self) -> dict[str, Any]:
        """JSON values for a checkpoint."""
        return {"best": self._best if math.isfinite(self._best) else None, "since_best": self._since_best}

    def restore(self, state: dict[str, Any] | None) -> None:
        """Go on from what a checkpoint holds."""
        if state is not None:
            self._best = math.inf if state["best"] is None else state["best"]
            self._since_best = state["since_best"]
