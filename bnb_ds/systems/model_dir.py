"""The directory of a fine-tuned model: which kind and task it is for, its recipe, and a run's best one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import yaml

from bnb_ds.config.loading import load_section
from bnb_ds.errors import CheckpointError, ConfigError
from bnb_ds.systems.base import TASK_FILE, System
from bnb_ds.systems.kinds import system_class
from bnb_ds.tasks.data_section import TaskDataSection
from bnb_ds.tasks.registry import get_task
from bnb_ds.tasks.task import Task
from bnb_ds.tasks.tokenised import Lengths


def load_system(directory: Path) -> System:
    """The system of a model directory that ``runs/finetune.py`` or ``bnb-ds export`` wrote; its weights stay unread.

    Raises:
        CheckpointError: it is no such directory.
    """
    try:
        made_for = json.loads((directory / TASK_FILE).read_text(encoding="utf-8"))
        kind, task, lengths = made_for["kind"], get_task(made_for["task"]), Lengths(**made_for["lengths"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{directory}: not a fine-tuned model ({TASK_FILE}: {error}); give the `best` directory of a run of"
            " runs/finetune.py, or what `bnb-ds export` made of that run"
        ) from None
    chosen = system_class(kind, task)
    return chosen(task, lengths, chosen.load_codec(directory))


#: directory of a run that holds its best model
BEST = "best"


#: the recipe that a model was fine-tuned with, in its directory
RECIPE_FILE = "recipe.yaml"


def best_model(path: Path) -> Path:
    """The best model of a run that is over; any other directory is taken for a model itself."""
    best = path / BEST
    return best if (best / TASK_FILE).is_file() else path


def system_and_data(model: Path, task_name: str | None, overrides: Sequence[str]) -> tuple[System, TaskDataSection]:
    """The system of a model directory, and the data it is to read; arguments as `evaluate_model`."""
    recipe = model / RECIPE_FILE
    saved = yaml.safe_load(recipe.read_text(encoding="utf-8"))["data"] if recipe.is_file() else {}
    if task_name is not None and not (model / TASK_FILE).is_file():
        return _untuned(model, get_task(task_name), load_section(saved, overrides, "data", TaskDataSection))
    system = load_system(model)
    if task_name is not None and task_name != system.task.name:
        # Other data for the same model: what its columns are called is another matter too.
        task, saved = get_task(task_name), {}
        if (task.kind, task.labels) != (system.task.kind, system.task.labels):
            raise ConfigError(f"--task {task_name}: {model} was fine-tuned for {system.task.name}; give that")
        system.task = task
    own = {"max_source_length": system.lengths.source, "max_target_length": system.lengths.target}
    data = load_section({**saved, **own}, overrides, "data", TaskDataSection)
    system.lengths = Lengths.of(system.task, data)
    return system, data


def _untuned(model: Path, task: Task, data: TaskDataSection) -> tuple[System, TaskDataSection]:
    """A model that was pre-trained only."""
    try:
        kind = json.loads((model / "config.json").read_text(encoding="utf-8"))["model_type"]
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{model}: no model directory ({error}); give what `bnb-ds export` wrote") from None
    if not task.is_generation:
        raise CheckpointError(f"{model}: was not fine-tuned, and has no head for {task.name}; run runs/finetune.py")
    chosen = system_class(kind, task)
    return chosen(task, Lengths.of(task, data), chosen.load_codec(model)), data
