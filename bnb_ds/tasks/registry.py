"""All tasks by name."""

from __future__ import annotations

from bnb_ds.errors import ConfigError, nearest
from bnb_ds.tasks.glue_tasks import GLUE
from bnb_ds.tasks.task import Task
from bnb_ds.tasks.text_tasks import GENERATION

TASKS: dict[str, Task] = {task.name: task for task in (*GLUE, *GENERATION)}


def get_task(name: str) -> Task:
    """The task of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in TASKS:
        raise ConfigError(f"task {name!r}: no such task; {nearest(name, TASKS)}")
    return TASKS[name]
