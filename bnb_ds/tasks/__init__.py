"""Downstream tasks: their declarations, and the steps from rows to examples to token ids.

Face: `TASKS`, `HubData`, `Task`, `get_task`.
"""

from bnb_ds.tasks.registry import TASKS, get_task
from bnb_ds.tasks.task import HubData, Task

__all__ = ["TASKS", "HubData", "Task", "get_task"]
