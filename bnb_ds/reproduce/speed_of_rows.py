"""Latency of the rows of one task, as ``bnb-ds reproduce --time TASK`` files it: all systems in one process, in turn.

The paper gives seconds of a whole split and milliseconds a sentence. Both stand in one file for each task, because
numbers of different processes, machines or precisions would not be comparable.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bnb_ds.errors import ConfigError, DataError, nearest
from bnb_ds.reproduce.paper_rows import COLUMNS, SPEED, WHOLE_BATCH, Row, rows
from bnb_ds.systems.base import TASK_FILE
from bnb_ds.systems.model_dir import BEST

#: the file that ``bnb-ds bench frontier`` writes
_FILE = "frontier.json"


def directory_of(task: str, runs: Path) -> Path:
    """Where the latencies of a task are filed."""
    return runs / "latency" / task


def timed_rows(task: str, runs: Path) -> list[Row]:
    """The rows of a task that have a trained model.

    Raises:
        ConfigError: no table has latencies of such a task.
        DataError: no row has a model.
    """
    timed = [name for name, columns in COLUMNS.items() if set(SPEED) <= set(columns)]
    if task not in timed:
        raise ConfigError(f"--time {task}: no table has the speed of such a task; {nearest(task, timed)}")
    found = [row for row in rows() if row.task == task and (runs / row.output_dir / BEST / TASK_FILE).is_file()]
    if not found:
        raise DataError(f"--time {task}: no row of it was run below {runs}; run one with bnb-ds reproduce --run ROW")
    return found


def latencies(task: str, runs: Path) -> dict[str, dict[str, float]]:
    """System -> column of `SPEED` -> what was measured here.

    Raises:
        DataError: the file cannot be read.
    """
    found = {}
    for system in _read(task, runs).get("systems", ()):
        one, whole = system["speed"]["1"], system["speed"][str(WHOLE_BATCH)]
        found[system["system"]] = {"ms": one["milliseconds_per_sentence"], "s": whole["whole_set_seconds"]}
    return found


def setting_of(task: str, runs: Path) -> str:
    """One line: on what the latencies of a task were measured; empty if there are none."""
    read = _read(task, runs)
    if not read:
        return ""
    return (
        f"Speed here, {task}: {read['timed_sentences']:,} sentences of {read['split']}, {read['device']},"
        f" {read['dtype']}; one at a time, and all in batches of {WHOLE_BATCH}."
    )


def _read(task: str, runs: Path) -> dict[str, Any]:
    path = directory_of(task, runs) / _FILE
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        for system in values["systems"]:
            if not {"1", str(WHOLE_BATCH)} <= set(system["speed"]):
                raise KeyError(f"speed of {system['system']}")
        return {name: values[name] for name in ("systems", "split", "device", "dtype", "timed_sentences")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); run bnb-ds reproduce --time {task} again") from None
