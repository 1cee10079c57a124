"""The table of all tasks by name."""

from __future__ import annotations

from bnb_ds.errors import ConfigError, nearest
from bnb_ds.tasks.glue_tasks import GLUE
from bnb_ds.tasks.own_tasks import OWN
from bnb_ds.tasks.task import Task
from bnb_ds.tasks.text_tasks import GENERATION

TASKS: dict[str, Task] = {task.name: task for task in (*GLUE, *GENERATION, *OWN)}


def get_task(name: str) -> Task:
    """Return the task with this name.

    Raises:
        ConfigError: there is no such task.
    """
    if name not in TASKS:
        raise ConfigError(f"task {name!r}: no such task; {nearest(name, TASKS)}")
    return TASKS[name]
