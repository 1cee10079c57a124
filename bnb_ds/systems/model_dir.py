"""Read the directory of a fine-tuned model: its kind, task and recipe, and the best model of a run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from bnb_ds.common.hub import ONNX_FILE, export_hint
from bnb_ds.config.loading import load_section
from bnb_ds.errors import CheckpointError, ConfigError
from bnb_ds.systems.base import TASK_FILE, System
from bnb_ds.systems.kinds import system_class
from bnb_ds.tasks.data_section import TaskDataSection
from bnb_ds.tasks.own_tasks import restored
from bnb_ds.tasks.registry import get_task
from bnb_ds.tasks.task import Task
from bnb_ds.tasks.text_lengths import Lengths


def load_system(directory: Path) -> System:
    """Make the system of a model directory of ``runs/finetune.py`` or ``bnb-ds export``, without reading the weights.

    Raises:
        CheckpointError: the directory is not a fine-tuned model.
    """
    try:
        made_for = json.loads((directory / TASK_FILE).read_text(encoding="utf-8"))
        kind, task = made_for["kind"], restored(get_task(made_for["task"]), made_for)
        lengths = Lengths.restored(task, made_for["lengths"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        if hint := export_hint(directory):
            raise CheckpointError(f"{directory}: {hint}") from None
        raise CheckpointError(
            f"{directory}: not a fine-tuned model ({TASK_FILE}: {error}); give a run of `bnb-ds finetune`, its"
            " `best` directory, or an export of that run"
        ) from None
    chosen = system_class(kind, task)
    return chosen(task, lengths, chosen.load_codec(directory))


#: the subdirectory of a run that holds its best model
BEST = "best"
#: the subdirectory of a model that holds what `bnb-ds evaluate` has found
EVALUATION = "evaluation"


#: the file in a model directory that holds its fine-tuning recipe
RECIPE_FILE = "recipe.yaml"


def best_model(path: Path) -> Path:
    """The best model of a finished run; any other directory is assumed to be a model itself."""
    best = path / BEST
    return best if (best / TASK_FILE).is_file() else path


def system_and_data(model: Path, task_name: str | None, overrides: Sequence[str]) -> tuple[System, TaskDataSection]:
    """Make the system of a model directory, and the data section to read.

    Args:
        model: a model directory.
        task_name: None: the task that the model was fine-tuned for.
        overrides: ``data.KEY=VALUE``, in place of the data that the model was fine-tuned on.

    Raises:
        CheckpointError: the directory is not a model, or the model cannot do the task.
        ConfigError: an override is wrong, or the task differs in kind or labels.
    """
    if (model / ONNX_FILE).is_file():
        raise CheckpointError(
            f"{model}: is an ONNX model, for `bnb-ds generate` and `bnb-ds serve`; give the model that it was made of"
        )
    saved = saved_data(model)
    if task_name is not None and not (model / TASK_FILE).is_file():
        return _untuned(model, get_task(task_name), load_section(saved, overrides, "data", TaskDataSection))
    system = load_system(model)
    own: dict[str, Any] = {"max_source_length": system.lengths.source, "max_target_length": system.lengths.target}
    made_for = system.task
    if task_name is not None and task_name != system.task.name:
        # Another task has other columns, so the saved data section does not apply.
        task, saved = get_task(task_name), {}
        if (task.kind, task.labels) != (system.task.kind, system.task.labels):
            raise ConfigError(f"--task {task_name}: {model} was fine-tuned for {system.task.name}; give that task")
        system.task = task
    if len(made_for.sources) == len(system.task.sources) == 2:
        own["cut"] = system.lengths.cut
    data = load_section({**saved, **own}, overrides, "data", TaskDataSection)
    system.lengths = Lengths.of(system.task, data)
    system.use_romanian(data)
    return system, data


def saved_data(model: Path) -> dict[str, Any]:
    """The data section of the recipe in a model directory; empty if there is none.

    Raises:
        CheckpointError: the recipe is damaged.
    """
    recipe = model / RECIPE_FILE
    if not recipe.is_file():
        return {}
    try:
        data = dict(yaml.safe_load(recipe.read_text(encoding="utf-8"))).get("data", {})
        if isinstance(data, dict):
            return data
        reason = "data is no section"
    except (OSError, ValueError, LookupError, TypeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
    raise CheckpointError(
        f"{recipe}: is not a recipe of fine-tuning ({reason}); restore it, or remove it to go without"
    )


def _untuned(model: Path, task: Task, data: TaskDataSection) -> tuple[System, TaskDataSection]:
    """The same for a model that was only pre-trained."""
    try:
        kind = json.loads((model / "config.json").read_text(encoding="utf-8"))["model_type"]
    except (OSError, ValueError, KeyError) as error:
        if hint := export_hint(model):
            raise CheckpointError(f"{model}: {hint}") from None
        raise CheckpointError(
            f"{model}: not a model directory ({error}); give a directory that `bnb-ds export` wrote"
        ) from None
    if not task.is_generation:
        raise CheckpointError(
            f"{model}: was only pre-trained and has no head for {task.name}; fine-tune it with `bnb-ds finetune`"
        )
    chosen = system_class(kind, task)
    system = chosen(task, Lengths.of(task, data), chosen.load_codec(model))
    system.use_romanian(data)
    return system, data
