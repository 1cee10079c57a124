"""MLflow. ``MLFLOW_TRACKING_URI`` says where it keeps the numbers, as for every program with MLflow."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import mlflow
from mlflow.entities import Metric, Param, RunTag

from bnb_ds.loggers.logger import Logger, Outcome, RunInfo

_STATUS = {"done": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
_ID_TAG = "bnb_ds.id"
#: most of MLflow's limits for one request
_MOST_PARAMS = 100


class MlflowLogger(Logger):
    """One run of MLflow for all launches of a run. The project is its experiment."""

    def __init__(self) -> None:
        self._client = mlflow.MlflowClient()
        self._id = ""

    def start(self, run: RunInfo, step: int) -> None:
        if self._id:
            return
        experiment = self._client.get_experiment_by_name(run.project)
        number = experiment.experiment_id if experiment else self._client.create_experiment(run.project)
        found = self._client.search_runs([number], f"tags.`{_ID_TAG}` = '{run.id}'", max_results=1)
        if found:
            self._id = found[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
            return
        self._id = self._client.create_run(number, tags={_ID_TAG: run.id}, run_name=run.name).info.run_id
        for params in _parts([Param(name, str(value)) for name, value in run.settings.items()], _MOST_PARAMS):
            self._client.log_batch(self._id, params=params)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        now = int(1000 * time.time())
        self._client.log_batch(self._id, metrics=[Metric(tag, float(v), now, step) for tag, v in values.items()])

    def text(self, step: int, tag: str, markdown: str) -> None:
        self._client.log_text(self._id, markdown, f"{tag}/step_{step:08d}.md")

    def finish(self, outcome: Outcome) -> None:
        self._client.log_batch(self._id, tags=[RunTag("bnb_ds.outcome", outcome)])
        self._client.set_terminated(self._id, _STATUS[outcome])


def _parts(items: list[Any], size: int) -> Iterator[list[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))
