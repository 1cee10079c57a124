"""TensorBoard's event files in ``output_dir/runs``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from bnb_ds.loggers.logger import Logger, Outcome, RunInfo


class TensorBoardLogger(Logger):
    """Writes scalars, texts, histograms, and the run's line of the HParams page: settings beside the last scores."""

    def __init__(self) -> None:
        self._writer: SummaryWriter | None = None
        self._run: RunInfo | None = None
        self._end: Any = None

    def start(self, run: RunInfo, step: int) -> None:
        if self._writer is not None:
            self._writer.close()
        self._run, self._end = run, None
        directory = run.directory / "runs"
        _wait_for_a_later_name(directory)
        self._writer = SummaryWriter(str(directory), purge_step=step + 1)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        for tag, value in values.items():
            self._open.add_scalar(tag, value, step)
        scores = [tag for tag in values if tag.startswith("eval")]
        if scores and self._end is None:
            self._write_settings(scores)
        self._open.flush()

    def text(self, step: int, tag: str, markdown: str) -> None:
        self._open.add_text(tag, markdown, step)

    def histogram(self, step: int, tag: str, values: np.ndarray) -> None:
        self._open.add_histogram(tag, values, step)

    def finish(self, outcome: Outcome) -> None:
        if self._end is not None:
            self._open.file_writer.add_summary(self._end)
        self._open.close()

    @property
    def _open(self) -> SummaryWriter:
        assert self._writer is not None, "start comes first"
        return self._writer

    def _write_settings(self, scores: list[str]) -> None:
        """The HParams page reads the newest value of each score, so its names are all it needs.

        A column for each setting would hide the scores.
        """
        assert self._run is not None
        chosen = {name: value for name, value in self._run.settings.items() if name in self._run.chosen}
        experiment, start, self._end = hparams(chosen, dict.fromkeys(scores, 0.0))
        self._open.file_writer.add_summary(experiment)
        self._open.file_writer.add_summary(start)


def _wait_for_a_later_name(directory: Path) -> None:
    """TensorBoard reads files in the order of their names, which hold a second; within one, the order is any."""
    while any(directory.glob(f"events.out.tfevents.{int(time.time()):010d}.*")):
        time.sleep(0.05)
