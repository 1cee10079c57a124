"""One trial: a run of its own, in a process and a directory of its own."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from bnb_ds.common.children import child_command, without_launcher
from bnb_ds.common.files import disk_errors, write_atomic
from bnb_ds.train.tracking import METRICS_FILE, read_metrics
from bnb_ds.tune.space import Settings

#: how long a run may take to save a checkpoint when it is to end
_ENDING_SECONDS = 60.0


@dataclass
class TrialRun:
    """A run that has been started.

    Attributes:
        number: of the trial.
        directory: of the run. Its recipe, DeepSpeed JSON and log lie beside it, under the same name.
        tag: of the score that counts, for example ``eval/loss``.
        place: environment variables of its place.
    """

    number: int
    directory: Path
    tag: str
    place: dict[str, str]
    _process: subprocess.Popen[bytes] | None = None
    _read: int = field(default=0, init=False)

    def start(self, module: str, settings: Settings) -> None:
        """Write the settings and start the program ``module``. A run that was begun continues."""
        recipe, ds_config = self.directory.with_suffix(".yaml"), self.directory.with_suffix(".json")
        with disk_errors(recipe):
            recipe.parent.mkdir(parents=True, exist_ok=True)
        write_recipe(recipe, {**settings.recipe, "output_dir": str(self.directory)})
        write_ds_config(ds_config, settings.deepspeed)
        arguments = [str(recipe), "--deepspeed-config", str(ds_config), "--resume", "auto"]
        with disk_errors(self._log), open(self._log, "ab") as log:
            self._process = subprocess.Popen(
                child_command(module, *arguments),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**without_launcher(), **self.place},
                start_new_session=True,  # Ctrl-C is for the search, which then ends its trials
            )

    def new_scores(self) -> Iterator[tuple[int, float]]:
        """The evaluations since the last call: step and score, NaN for a score that is not finite."""
        metrics = self.directory / METRICS_FILE
        rows = read_metrics(metrics) if metrics.exists() else []
        scores = [(row["step"], row[self.tag]) for row in rows if self.tag in row]
        yield from ((step, math.nan if score is None else float(score)) for step, score in scores[self._read :])
        self._read = len(scores)

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        assert self._process is not None, "it was not started"
        return self._process.poll()

    def ask_to_end(self) -> None:
        """Have the run save a checkpoint and end."""
        assert self._process is not None, "it was not started"
        self._process.terminate()

    def end(self) -> None:
        """Have the run end, and wait for it."""
        self.ask_to_end()
        assert self._process is not None, "it was not started"
        try:
            self._process.wait(_ENDING_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    @property
    def last_words(self) -> str:
        """The last line of its log."""
        lines = self._log.read_text(encoding="utf-8", errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "its log is empty")

    @property
    def _log(self) -> Path:
        return self.directory.with_suffix(".log")


def drop_weights(run: Path) -> None:
    """Remove what takes space in a run: checkpoints and exported models. Settings, log and curves stay."""
    for name in ("checkpoints", "best"):
        shutil.rmtree(run / name, ignore_errors=True)


def write_recipe(path: Path, values: dict[str, Any]) -> None:
    """Write a recipe as YAML."""
    write_atomic(path, yaml.safe_dump(values, sort_keys=False))


def write_ds_config(path: Path, values: dict[str, Any]) -> None:
    """Write a DeepSpeed JSON."""
    write_atomic(path, json.dumps(values, indent=2) + "\n")
