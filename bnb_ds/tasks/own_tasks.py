"""Classification and regression of a user's own rows: the recipe names columns, the recipe or the data the classes.

The declarations name one text and no classes. `resolved` completes them for a recipe, and a model directory records
what they were completed with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from bnb_ds.errors import ConfigError
from bnb_ds.tasks.data_section import TaskDataSection
from bnb_ds.tasks.examples import read_class_names
from bnb_ds.tasks.task import Task

#: the column of a second text; a recipe that names it in ``data.columns`` has two
SECOND_TEXT = "text_pair"
#: more values than this are hardly classes
_MOST_CLASSES = 1000

CLASSIFICATION = Task(
    name="classification",
    title="Classification",
    kind="classification",
    sources=("text",),
    target="label",
    metrics=("accuracy", "macro_f1", "mcc"),
    main_score="accuracy",
    is_own=True,
)
REGRESSION = Task(
    name="regression",
    title="Regression",
    kind="regression",
    sources=("text",),
    target="label",
    metrics=("pearson", "spearman"),
    main_score="pearson",
    is_own=True,
)
OWN = (CLASSIFICATION, REGRESSION)


def resolved(task: Task, data: TaskDataSection) -> Task:
    """The task with the texts and classes of a recipe; other tasks than those of this module stay as they are.

    Without ``data.labels`` the classes are those of the training rows, which are read for it: whole numbers in their
    order, other names in the order of the alphabet.

    Raises:
        ConfigError: there are too few or too many classes, or the task has classes of its own.
        DataError: the training rows cannot be read.
    """
    if data.labels is not None and not (task.is_own and task.kind == "classification"):
        raise ConfigError(f"data.labels: task {task.name} takes none; remove it, or set task: classification")
    if not task.is_own:
        return task
    if SECOND_TEXT in data.columns:
        task = replace(task, sources=("text", SECOND_TEXT))
    if task.kind != "classification":
        return task
    labels = data.labels if data.labels is not None else read_class_names(task, data)
    if not labels:
        raise ConfigError("data.train: no row has a label, so that there are no classes; give files that have rows")
    if len(labels) < 2:
        raise ConfigError(
            f"data.labels: the training rows have one class only ({', '.join(labels)}); a classification needs two or"
            " more: name the right column with data.columns.label=NAME"
        )
    if len(labels) > _MOST_CLASSES:
        raise ConfigError(
            f"data.labels: the training rows have {len(labels):,} different labels, such as {labels[0]!r}; set task:"
            " regression for scores, or list the classes in data.labels"
        )
    return replace(task, labels=tuple(labels))


def definition(task: Task) -> dict[str, Any]:
    """What a model directory records beside the name of its task; nothing for other tasks."""
    return {"sources": list(task.sources), "labels": list(task.labels)} if task.is_own else {}


def restored(task: Task, saved: Mapping[str, Any]) -> Task:
    """The task of a model directory, from its declaration and what `definition` wrote.

    Raises:
        KeyError, TypeError: it was not written so.
    """
    return replace(task, sources=tuple(saved["sources"]), labels=tuple(saved["labels"])) if task.is_own else task
