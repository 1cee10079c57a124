"""How long sources and targets may be, and how a source of two texts is cut."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

from bnb_ds.errors import ConfigError
from bnb_ds.tasks.data_section import TaskDataSection
from bnb_ds.tasks.task import Cut, Task


@dataclass(frozen=True)
class Lengths:
    """Most tokens of a source and of a target, special tokens included, and how two source texts are cut."""

    source: int
    target: int
    cut: Cut = "longest"

    @classmethod
    def of(cls, task: Task, data: TaskDataSection) -> Lengths:
        """The lengths of the recipe, or else of the task.

        Raises:
            ConfigError: ``data.cut`` for a task whose sources are single texts.
        """
        if data.cut is not None and len(task.sources) == 1:
            raise ConfigError(
                f"data.cut {data.cut}: is for two source texts, and task {task.name} reads one; remove it"
            )
        return cls(
            data.max_source_length or task.max_source_length,
            data.max_target_length or task.max_target_length,
            data.cut or task.cut,
        )

    @classmethod
    def restored(cls, task: Task, saved: Mapping[str, Any]) -> Lengths:
        """The lengths of a model, from the fields that were saved with it.

        Raises:
            TypeError, ValueError: they were not saved so.
        """
        # Models that were saved without a way of cutting lost the ends of passages.
        lengths = cls(**{"cut": "last" if task.cut == "around" else task.cut, **saved})
        if lengths.cut not in get_args(Cut):
            raise ValueError(f"no way to cut: {lengths.cut!r}")
        return lengths
