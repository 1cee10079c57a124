"""Whether a launch may begin, and from which checkpoint.

A launch, ``--dry-run`` and ``bnb-ds check`` ask the same functions: those of this module, which
:func:`bnb_ds.pretrain.plan.decide` and :func:`bnb_ds.finetune.plan.decide` put in order.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from bnb_ds.checkpoint import store
from bnb_ds.checkpoint.resume import Resume, plan_resume
from bnb_ds.checkpoint.run_dir import RunDir
from bnb_ds.checkpoint.run_lock import RunLock
from bnb_ds.config.deepspeed import DsConfig
from bnb_ds.config.sections import TrainingRecipe
from bnb_ds.distributed import ranks
from bnb_ds.errors import ConfigError, DataError

T = TypeVar("T")
_GIB = 2**30


class Attempt(Protocol):
    """How one part of a decision is made: an error ends a launch, and ``bnb-ds check`` goes on to find more."""

    def __call__(self, subject: str, function: Callable[[], T]) -> T | None:
        """The function's result; None after an error that was noted."""


def at_once(subject: str, function: Callable[[], T]) -> T | None:
    """The `Attempt` of a launch: the first error ends it."""
    return function()


@dataclass(frozen=True)
class Start:
    """Where a launch begins.

    Attributes:
        resume: the checkpoint to go on from; None for a new run.
        notes: lines for the user.
    """

    resume: Resume | None
    notes: list[str]

    def describe(self, ds_config: DsConfig) -> str:
        """One line for the user."""
        if self.resume is None:
            return "; ".join(["a new run: there is no checkpoint in output_dir", *self.notes])
        return "; ".join([f"goes on {self.resume.describe(ds_config)}", *self.notes])


def find_start(
    run: RunDir, total_steps: int, resume: str, *, weights_only: bool = False, extend: bool = False
) -> Start:
    """Find the checkpoint that a launch goes on from; the same on every rank.

    Args:
        run: of this launch.
        total_steps: of the whole run.
        resume, weights_only, extend: the launch's flags, as in `RunDir.find_resume`.

    Raises:
        ConfigError: as in :meth:`bnb_ds.checkpoint.run_dir.RunDir.find_resume`; or the run has done more than
            ``total_steps``, because ``--extend`` made it shorter.
        CheckpointError: there is no such checkpoint, or it cannot be loaded at this ZeRO stage.
    """

    def find() -> Start:
        found, notes = run.find_resume(resume, weights_only=weights_only, extend=extend)
        if found is None:
            return Start(None, notes)
        start = Start(plan_resume(found, run.ds_config, weights_only=weights_only), notes)
        done = store.read_state(found)["step"]
        if done > total_steps:
            raise ConfigError(
                f"steps: the run has done {done} steps, and should end after {total_steps}; give at least as many as it"
                " has done"
            )
        return start

    return ranks.on_main(find)


def check_output(recipe: TrainingRecipe, num_parameters: int | None, num_frozen: int = 0) -> None:
    """Check that the output directory can be written, and has room for the checkpoints.

    Args:
        recipe: names the directory, and how many checkpoints it keeps.
        num_parameters: trainable ones of the model; None: not known, so that room is not checked.
        num_frozen: the others.

    Raises:
        ConfigError, DataError: naming the directory.
    """
    path = Path(recipe.output_dir)

    def check() -> None:
        refuse_unwritable(path)
        if num_parameters is not None:
            size = store.BYTES_PER_PARAMETER * num_parameters + store.BYTES_PER_FROZEN_PARAMETER * num_frozen
            _refuse_small_disk(path, _keeps(recipe), size)

    ranks.on_main(check)


def refuse_unwritable(path: Path) -> None:
    """Raise ConfigError if a run cannot write into an output directory, or make it."""
    place = _existing_part(path)
    if not (place.is_dir() and os.access(place, os.W_OK)):
        raise ConfigError(f"output_dir {path}: {place} is not a writable directory; choose another")


def _refuse_small_disk(path: Path, keeps: int, size: int) -> None:
    # The kept checkpoints, the best one, and the one being written; but for those that lie there already.
    checkpoints = max(keeps + 2 - len(store.whole_checkpoints(path / "checkpoints")), 1)
    needed = checkpoints * size
    free = shutil.disk_usage(_existing_part(path)).free
    if free < needed:
        raise DataError(
            f"output_dir {path}: {checkpoints} checkpoints take about {needed / _GIB:.1f} GiB, but the"
            f" disk has {free / _GIB:.1f} GiB left; free some space, or lower intervals.keep_checkpoints"
        )


def _keeps(recipe: Any) -> int:
    return recipe.intervals.keep_checkpoints


@contextmanager
def briefly_held(path: Path) -> Iterator[None]:
    """Refuse an output directory that another launch is writing in, as a launch would; one that is new stays unmade.

    Raises:
        ConfigError: naming the other launch.
    """
    if not path.is_dir() or not os.access(path, os.W_OK):
        yield
        return
    with RunLock(path):
        yield


def _existing_part(path: Path) -> Path:
    return next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
