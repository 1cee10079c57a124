"""The trackers of others, with their real packages and local stores: what was logged is read back."""

from __future__ import annotations

import importlib.util
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from tests import launching

pytestmark = pytest.mark.slow

# A launch that logs two steps and is stopped, and one that goes on from the first of them.
LAUNCHES = (
    launching.LIGHT
    + """
import math
from pathlib import Path
from bnb_ds.loggers.choice import find_loggers
from bnb_ds.loggers.logger import RunInfo
from bnb_ds.train.tracking import Tracker
logger, directory = sys.argv[1], Path(sys.argv[2])
run = RunInfo(directory, "first try", "my project", settings={"seed": 1, "model.encoder": "bert", "on": True})
for start, outcome in ((0, "stopped"), (1, "done")):
    tracker = Tracker(directory / "runs", start_step=start, total_steps=3, loggers=find_loggers([logger]), run=run)
    for step in range(start + 1, start + 3):
        tracker.scalars(step, {"train/loss": 10.0 - step, "train/grad_norm": math.nan, "train/skipped_spikes": 0})
    tracker.evaluation(step, {"eval/loss": 0.5 + step})
    tracker.text(step, "eval/outputs", "| source | output |\\n|---|---|\\n| a < b | b |")
    tracker.close(outcome)
"""
)


def needs(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f'needs {package} (`pip install ".[{package}]"` in the checkout)')


def launch(name: str, directory: Path, **variables: str) -> None:
    result = subprocess.run(
        [sys.executable, "-c", LAUNCHES, name, str(directory)],
        env={**os.environ, **variables},
        cwd=directory.parent,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "has failed" not in result.stdout


def test_mlflow(tmp_path, monkeypatch):
    needs("mlflow")
    variables = {"MLFLOW_TRACKING_URI": (tmp_path / "store").as_uri(), "MLFLOW_ALLOW_FILE_STORE": "true"}
    directory = tmp_path / "run"
    launch("mlflow", directory, **variables)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    import mlflow

    client = mlflow.MlflowClient(variables["MLFLOW_TRACKING_URI"])
    experiment = client.get_experiment_by_name("my project")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "first try"
    assert run.info.status == "FINISHED"
    assert run.data.params == {"seed": "1", "model.encoder": "bert", "on": "True"}
    losses = [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, "train/loss")]
    assert losses == [(1, 9.0), (2, 8.0), (2, 8.0), (3, 7.0)]  # the second launch did step 2 again
    assert run.data.metrics["eval/loss"] == 3.5
    assert "train/skipped_spikes" not in run.data.metrics
    (text,) = (tmp_path / "store").rglob("step_00000003.md")
    assert text.read_text().endswith("| a < b | b |")


def test_wandb_offline(tmp_path):
    needs("wandb")
    directory = tmp_path / "run"
    variables = {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_CONFIG_DIR": str(tmp_path / "config")}
    variables |= {"WANDB_CACHE_DIR": str(tmp_path / "cache"), "WANDB_DATA_DIR": str(tmp_path / "data")}
    launch("wandb", directory, **variables)
    stores = sorted((directory / "wandb").glob("offline-run-*/*.wandb"))
    assert len(stores) == 2
    run_id = (directory / "run_id").read_text().strip()
    assert {store.stem for store in stores} == {f"run-{run_id}"}  # `wandb sync` makes one run of both
    assert [history(store) for store in stores] == [
        [{"step": 1, "train/loss": 9.0}, {"step": 2, "train/loss": 8.0}, {"step": 2, "eval/loss": 2.5}, {"step": 2}],
        [{"step": 2, "train/loss": 8.0}, {"step": 3, "train/loss": 7.0}, {"step": 3, "eval/loss": 3.5}, {"step": 3}],
    ]
    (table, *_) = directory.rglob("*.html")
    assert "a &lt; b" in table.read_text()


def history(store: Path) -> list[dict[str, float]]:
    """The rows of an offline run. Its file is a log of LevelDB: blocks of 32 KiB, and in them pieces of records."""
    from wandb.proto import wandb_internal_pb2

    data, place, rows, record = store.read_bytes(), 7, [], b""  # the file begins with 7 bytes of its own
    while place < len(data):
        if (left := -place % 32768) and left < 7:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind not in (1, 4):  # whole, or the last piece
            continue
        message, record = wandb_internal_pb2.Record.FromString(record), b""
        if message.WhichOneof("record_type") == "history":
            row = {item.key or "/".join(item.nested_key): item.value_json for item in message.history.item}
            rows.append({key: json.loads(row[key]) for key in ("step", "train/loss", "eval/loss") if key in row})
    return rows


def test_trackio(tmp_path):
    needs("trackio")
    directory = tmp_path / "run"
    variables = {"TRACKIO_DIR": str(tmp_path / "store"), "HF_HUB_OFFLINE": "1"}
    launch("trackio", directory, **variables)
    name = f"first try-{(directory / 'run_id').read_text()[:6]}"
    command = ["get", "metric", "--project", "my project", "--run", name, "--metric", "train/loss", "--json"]
    result = subprocess.run(
        [sys.executable, "-m", "trackio.cli", *command],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    values = json.loads(result.stdout)["values"]
    assert [(row["step"], row["value"]) for row in values] == [(1, 9.0), (2, 8.0), (2, 8.0), (3, 7.0)]
