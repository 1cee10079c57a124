"""The newest evaluations of runs and models, for commands that compare them."""

from __future__ import annotations

import json
import shlex
from contextlib import suppress
from pathlib import Path

from bnb_ds.errors import DataError
from bnb_ds.evaluate.model import RESULTS_FILE

#: where `bnb-ds evaluate` writes: in a model, or in the best model of a run
_PLACES = ("evaluation", "best/evaluation")


def newest_pair(first: Path, second: Path) -> tuple[Path, Path]:
    """The evaluations that two paths stand for: themselves, or the newest ones of a task's split that both have.

    Raises:
        DataError: a run was not evaluated, or the two were not evaluated on one split.
    """
    if all((path / RESULTS_FILE).is_file() or not path.is_dir() for path in (first, second)):
        return first, second
    ours, theirs = _evaluations(first), _evaluations(second)
    for task, split, directory in ours:
        for other_task, other_split, other in theirs:
            if (task, split) == (other_task, other_split):
                return directory, other
    what, other = (", ".join(sorted({f"{task} {split}" for task, split, _ in found})) for found in (ours, theirs))
    raise DataError(f"{second}: was evaluated on {other}, and {first} on {what}; evaluate both on one split of a task")


def _evaluations(path: Path) -> list[tuple[str, str, Path]]:
    """Task, split and directory of the evaluations of a path, the newest first."""
    places = [path] if (path / RESULTS_FILE).is_file() else [d for name in _PLACES for d in (path / name).glob("*")]
    found = []
    for place in places:
        file = place / RESULTS_FILE
        # What cannot be read is told of when it is compared.
        with suppress(OSError, ValueError, LookupError, TypeError):
            results = json.loads(file.read_text(encoding="utf-8"))
            found.append((file.stat().st_mtime_ns, (results["task"], results["split"], place)))
    if not found:
        raise DataError(f"{path}: holds no evaluation; make one with `bnb-ds evaluate {shlex.quote(str(path))}`")
    return [evaluation for _, evaluation in sorted(found, key=lambda pair: pair[0], reverse=True)]
