"""Export a checkpoint of a fine-tuning run as a model directory that is independent of the run."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from bnb_ds.checkpoint import store
from bnb_ds.checkpoint.merging import plain_weights
from bnb_ds.common.files import disk_errors, new_directory, sha256_file
from bnb_ds.errors import CheckpointError
from bnb_ds.export.model_card import (
    METRICS,
    add_results,
    command_of,
    front_matter,
    hub_data,
    metadata,
    read_history,
    results,
    usage,
    versions_and_recipe,
)
from bnb_ds.systems.base import System
from bnb_ds.systems.model_dir import BEST, EVALUATION, RECIPE_FILE, load_system
from bnb_ds.tasks.task import Task
from bnb_ds.train.tracking import METRICS_FILE, read_metrics


def export_best(run: Path) -> str:
    """Write the best checkpoint of a run to ``run/best``, replacing an older one; return one line for the user.

    If the model is the same as before, its evaluations stay.

    Raises:
        CheckpointError: the run has no whole checkpoint.
    """
    found = best_of(run)
    output, new = run / BEST, run / f"{BEST}.new"
    with disk_errors(run):
        shutil.rmtree(new, ignore_errors=True)
    export_task_model(run, found, new)
    with disk_errors(run):
        if (output / EVALUATION).is_dir() and _weights(output) == _weights(new):
            (output / EVALUATION).rename(new / EVALUATION)
        if output.exists():
            shutil.rmtree(output)
        new.rename(output)
    unscored = ", the newest: no evaluation gave a number" if store.selection_loss(found) is None else ""
    score = f"bnb-ds evaluate {shlex.quote(str(output))} --split SPLIT"
    return f"best         {found.name}{unscored} -> {output}; score it with: {score}"


def _weights(directory: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in directory.glob("*.safetensors")}


def best_of(run: Path) -> Path:
    """The best checkpoint of a run, or the newest if none was scored.

    Raises:
        CheckpointError: the run has no whole checkpoint, or the best one is damaged.
    """
    whole = store.whole_checkpoints(run / "checkpoints")
    if not whole:
        raise CheckpointError(f"{run}: no whole checkpoint here; train longer, or name another run")
    found = store.best_checkpoint(whole) or whole[-1]
    damage = store.find_damage(found)
    if damage:
        raise CheckpointError(f"{found}: {damage}; restore it, or export another checkpoint by its path")
    return found


def export_task_model(run: Path, found: Path, output: Path, weights: dict[str, Tensor] | None = None) -> None:
    """Write one checkpoint of a fine-tuning run as a model directory.

    Args:
        run: output directory of the run.
        found: the checkpoint.
        output: a directory that does not exist yet, or is empty.
        weights: what to write in the place of the checkpoint's own weights.

    Raises:
        CheckpointError: files of the run or of the checkpoint cannot be read.
        DataError: ``output`` exists already.
    """
    system = load_system(run / "model")
    config = system.load_config(run / "model")
    model = system.empty(config)
    model.load_state_dict(weights or plain_weights(found))
    with new_directory(output) as directory:
        model.save_pretrained(directory)
        system.save_files(config, directory)
        shutil.copyfile(run / "config.resolved.yaml", directory / RECIPE_FILE)
        card = _card(run, found, system, scores={} if weights else _scores(run, found))
        (directory / "README.md").write_text(card, encoding="utf-8")


def _card(run: Path, found: Path, system: System, *, scores: dict[str, float]) -> str:
    """The README. ``scores`` are what the run logged at this checkpoint, tag -> value."""
    task = system.task
    recipe, (first, *_) = read_history(run)
    whole = store.whole_checkpoints(run / "checkpoints")
    best = f", the best on `{recipe['selection']['split']}`" if found == store.best_checkpoint(whole) else ""
    data = metadata(recipe, task=task, kind=system.kind)
    hub = hub_data(task, recipe.get("data", {}))
    for split, group in _groups(task, recipe["selection"]["split"]):
        values = {name: scores.get(f"{group}/{name}") for name in METRICS}
        add_results(data, f"{task.title} ({system.kind})", results(task, split, values, hub))
    return f"""{front_matter(data)}# {task.title}

Fine-tuned for {task.title}; step {store.step_of(found):,}{best}.
Score it with `bnb-ds evaluate`.

{usage(task, system.kind)}

- command: `{command_of(first)}`
- data fingerprint: `{first["data_fingerprint"]}`; git revision {first["git_revision"] or "unknown"}

{versions_and_recipe(first, recipe)}"""


def _groups(task: Task, selecting: str) -> Iterator[tuple[str, str]]:
    """Splits, and what the tags of their scores begin with: in earlier releases the split, later ``eval``."""
    if selecting == "validation" and selecting not in task.validation_splits:
        selecting = task.validation_splits[0]
    for split in dict.fromkeys((selecting, *task.validation_splits)):
        yield split, split
        yield split, "eval" if split == selecting else f"eval_{split.removeprefix('validation_')}"


def _scores(run: Path, found: Path) -> dict[str, float]:
    """What a run logged at a checkpoint; nothing if there is no log."""
    rows = read_metrics(run / METRICS_FILE) if (run / METRICS_FILE).is_file() else []
    scores: dict[str, float] = {}
    for row in rows:
        scores |= row if row.get("step") == store.step_of(found) else {}
    return scores
