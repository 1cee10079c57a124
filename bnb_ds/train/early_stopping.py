"""Early stopping: end a run if its score no longer improves."""

from __future__ import annotations

import math
from typing import Any


class EarlyStopping:
    """Counts evaluations since the best one.

    Args:
        patience: the run ends after this many evaluations without improvement; at least 1.
        min_change: smallest improvement that counts, in units of the score.
    """

    def __init__(self, patience: int, min_change: float = 0.0) -> None:
        self._patience = patience
        self._min_change = min_change
        self._best = math.inf
        self._since_best = 0

    @property
    def ended(self) -> bool:
        """True if the run must end."""
        return self._since_best >= self._patience

    def observe(self, selection_loss: float | None) -> bool:
        """Record the score of an evaluation; return True if the run must end.

        A lower score is better. None, for a score that was not finite, counts as an evaluation without improvement.
        """
        if selection_loss is not None and selection_loss < self._best - self._min_change:
            self._best, self._since_best = selection_loss, 0
        else:
            self._since_best += 1
        return self.ended

    def state(self) -> dict[str, Any]:
        """The state that a checkpoint saves, as JSON values."""
        return {"best": self._best if math.isfinite(self._best) else None, "since_best": self._since_best}

    def restore(self, state: dict[str, Any] | None) -> None:
        """Continue from the state in a checkpoint."""
        if state is not None:
            self._best = math.inf if state["best"] is None else state["best"]
            self._since_best = state["since_best"]
