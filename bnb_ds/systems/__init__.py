"""Kinds of models that the launcher fine-tunes, evaluates and compares: ``model.kind`` of a recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from pydantic import Field

from bnb_ds.errors import CheckpointError, ConfigError
from bnb_ds.systems.base import TASK_FILE, Prediction, System
from bnb_ds.systems.bnb import BnbClassifier, BnbGenerator, BnbModelSection
from bnb_ds.tasks import Task, get_task
from bnb_ds.tasks.tokenised import Lengths

#: of a recipe's ``model``; the field ``kind`` says which. A second section makes this a union with
#: ``Field(discriminator="kind")``
ModelChoice = Annotated[BnbModelSection, Field()]

#: writers of texts
GENERATORS: dict[str, type[System]] = {system.kind: system for system in (BnbGenerator,)}
#: givers of labels
CLASSIFIERS: dict[str, type[System]] = {system.kind: system for system in (BnbClassifier,)}

__all__ = [
    "CLASSIFIERS",
    "GENERATORS",
    "TASK_FILE",
    "ModelChoice",
    "Prediction",
    "System",
    "load_system",
    "system_class",
]


def system_class(kind: str, task: Task) -> type[System]:
    """The class for a kind of model and a task.

    Raises:
        ConfigError: that kind cannot do the task.
    """
    able = GENERATORS if task.is_generation else CLASSIFIERS
    if kind not in able:
        wanted = "texts" if task.is_generation else "labels"
        raise ConfigError(f"model.kind {kind}: task {task.name} asks for {wanted}; kinds that can: {', '.join(able)}")
    return able[kind]


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
