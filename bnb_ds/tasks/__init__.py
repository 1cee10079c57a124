"""Downstream tasks: declarations, rows, examples, token ids.

Face: `TASKS`, `HubData`, `Task`, `get_task`.
"""

from bnb_ds.tasks.registry import TASKS, get_task
from bnb_ds.tasks.task import HubData, Task

__all__ = ["TASKS", "HubData", "Task", "get_task"]
