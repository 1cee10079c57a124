"""trackio, a tracker that keeps its numbers in a local database or in a Hugging Face Space."""

from __future__ import annotations

from typing import Any

import trackio

from bnb_ds.loggers.logger import Logger, Outcome, RunInfo


class TrackioLogger(Logger):
    """One run of trackio for all launches of a run. trackio knows runs by their names, so the name holds the id."""

    def __init__(self) -> None:
        self._run: Any = None

    def start(self, run: RunInfo, step: int) -> None:
        if self._run is not None:
            return
        name = f"{run.name}-{run.id[:6]}"
        self._run = trackio.init(run.project, name, config=run.settings, resume="allow", embed=False)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def text(self, step: int, tag: str, markdown: str) -> None:
        self._run.log({tag: trackio.Markdown(markdown)}, step=step)

    def finish(self, outcome: Outcome) -> None:
        trackio.finish()  # the run's own method would be called again when the process ends
