"""Weights & Biases. ``WANDB_MODE=offline`` writes into ``output_dir/wandb``, and ``wandb sync`` sends it later."""

from __future__ import annotations

import html
from typing import Any

import wandb

from bnb_ds.loggers.logger import Logger, Outcome, RunInfo


class WandbLogger(Logger):
    """One run of W&B for all launches of a run. ``step`` is a number like the others, so the run may go back."""

    def __init__(self) -> None:
        self._run: Any = None

    def start(self, run: RunInfo, step: int) -> None:
        if self._run is not None:
            return
        self._run = wandb.init(
            project=run.project,
            name=run.name,
            id=run.id,
            resume="allow",
            dir=str(run.directory),
            config=run.settings,
            settings=wandb.Settings(console="off"),  # the console belongs to the tracker
        )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def scalars(self, step: int, values: dict[str, float]) -> None:
        self._run.log({"step": step, **values})

    def text(self, step: int, tag: str, markdown: str) -> None:
        self._run.log({"step": step, tag: wandb.Html(f"<pre>{html.escape(markdown)}</pre>")})

    def finish(self, outcome: Outcome) -> None:
        self._run.finish(exit_code=int(outcome == "failed"))
