"""What a logger is told about a run. `bnb_ds.loggers.choice` finds the loggers that a recipe names."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

#: done: nothing of the run is left to do; stopped: this launch was to end earlier; failed: an error ended it
Outcome = Literal["done", "stopped", "failed"]


@dataclass(frozen=True)
class RunInfo:
    """A run, as loggers know it.

    Attributes:
        directory: ``output_dir`` of the run.
        name: of the run, for people.
        project: group of runs that it belongs to.
        id: the same for all launches of a run; no other run has it.
        settings: dotted field -> number, text or truth value; the settings of the training, from both files.
        chosen: the fields of ``settings`` that are not left at their defaults.
    """

    directory: Path
    name: str
    project: str = "bnb_ds"
    id: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    chosen: frozenset[str] = frozenset()


class Logger:
    """Logs one run. Only rank 0 calls it, always from one thread.

    A subclass overrides what it needs; every method here does nothing. A class of another package is found by its entry
    point in the group ``bnb_ds.loggers``. An error in ``start`` ends the launch; one in another method is told in a
    line, and the logger is then left out until the next launch.
    """

    def start(self, run: RunInfo, step: int) -> None:
        """Called before the first step of a launch.

        It is called again in the same launch if the run goes back to an older checkpoint.

        Args:
            run: the run.
            step: number of steps already done; what was logged of later ones is void.
        """

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Log numbers of a step.

        Args:
            step: number of the step, from 1.
            values: tag -> value. The tags of training begin with ``train/``, those of evaluations with ``eval``. A
                value may be NaN.
        """

    def text(self, step: int, tag: str, markdown: str) -> None:
        """Log a text, a Markdown table of outputs for example."""

    def histogram(self, step: int, tag: str, values: np.ndarray) -> None:
        """Log the distribution of ``values``, an array of float32 of any shape."""

    def finish(self, outcome: Outcome) -> None:
        """Called once, at the end of a launch."""
