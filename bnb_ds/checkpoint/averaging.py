"""The mean of the weights of several checkpoints."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch

from bnb_ds.checkpoint import store
from bnb_ds.checkpoint.merging import plain_weights
from bnb_ds.checkpoint.run_dir import holds_run, locate_checkpoint, read_recipe, run_of
from bnb_ds.errors import CheckpointError


def choose_checkpoints(source: Path, *, last: int | None = None, best: int | None = None) -> list[Path]:
    """The newest ``last`` or the ``best`` whole checkpoints of a run, best by the score that selects its best one.

    Args:
        source: output directory of a run, or its checkpoints directory.
        last: number of checkpoints; give this or ``best``.
        best: number of checkpoints that were evaluated.

    Raises:
        CheckpointError: the run has fewer such checkpoints, or one of them is damaged.
    """
    whole = store.whole_checkpoints(source / "checkpoints") or store.whole_checkpoints(source)
    if best is not None:
        scores = {path: store.selection_loss(path) for path in whole}
        whole = sorted((path for path, score in scores.items() if score is not None), key=lambda path: scores[path])
        chosen, found = whole[:best], f"{len(whole)} evaluated checkpoints, but --best is {best}"
    else:
        assert last is not None
        chosen, found = whole[-last:], f"{len(whole)} whole checkpoints, but --last is {last}"
    if len(chosen) < (best or last or 1):
        raise CheckpointError(
            f"{source}: has {found}; give a smaller number, or train with a larger intervals.keep_checkpoints"
        )
    for path in chosen:
        damage = store.find_damage(path)
        if damage:
            raise CheckpointError(f"{path}: {damage}; restore it, or give a smaller number")
    return chosen


def average_weights(checkpoints: list[Path]) -> dict[str, torch.Tensor]:
    """The mean of each weight, summed in float64, as float32. Adapters are merged before.

    Raises:
        CheckpointError: the checkpoints are not of one model: their configurations differ, or the random weights that
            they began with, or names or shapes of weights; or one of them cannot be read.
    """
    first = checkpoints[0]
    sums = {name: weight.double() for name, weight in plain_weights(first).items()}
    for path in checkpoints[1:]:
        _refuse_another_model(first, path)
        weights = plain_weights(path)
        different = sorted(set(weights) ^ set(sums))
        different += [name for name in weights if name in sums and weights[name].shape != sums[name].shape]
        if different:
            raise CheckpointError(
                f"{path}: its model is not that of {first}, for example in {different[0]}; average checkpoints of one"
                " model"
            )
        for name, weight in weights.items():
            sums[name] += weight
    return {name: (total / len(checkpoints)).float() for name, total in sums.items()}


def _refuse_another_model(first: Path, other: Path) -> None:
    runs = [run_of(first), run_of(other)]
    configs = []
    for run in runs:
        file = run / "model" / "config.json"
        try:
            configs.append(json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError):
            raise CheckpointError(f"{file}: cannot be read; restore it from a copy of the run") from None
    names = [name for name in sorted({*configs[0], *configs[1]}) if configs[0].get(name) != configs[1].get(name)]
    if names:
        raise CheckpointError(
            f"{other}: its model is not that of {first}: {', '.join(names)} differ; average checkpoints of one model"
        )
    if _random_start(runs[0]) != _random_start(runs[1]):
        raise CheckpointError(
            f"{other}: its run and that of {first} began with other random weights, whose mean is no model; average "
            "checkpoints of one run, or of runs with one seed or one model.checkpoint"
        )


def _random_start(run: Path) -> int | None:
    """The seed of the weights that a run began with; None if they were trained before."""
    recipe = read_recipe(run)
    model = recipe.get("model") or {}
    began_trained = any(model.get(name) is not None for name in ("checkpoint", "encoder", "decoder"))
    return None if began_trained or model.get("size") is None else recipe.get("seed")


def find_checkpoints(sources: list[Path], *, last: int | None = None, best: int | None = None) -> list[Path]:
    """The checkpoints to average, of runs (``last`` or ``best`` of each) or named one by one.

    Raises:
        CheckpointError: as `choose_checkpoints`; or a source holds no checkpoint.
    """
    found = []
    for source in sources:
        if (source / "checkpoints").is_dir() or store.whole_checkpoints(source):
            found += choose_checkpoints(source, last=last, best=best)
        else:
            found.append(locate_checkpoint(source)[0])
    return found


def run_at(source: Path) -> Path:
    """The run that a source of `find_checkpoints` belongs to, so that nothing is written into its checkpoints."""
    whole = Path(os.path.abspath(source))
    return next((place for place in (source, whole.parent, whole.parent.parent) if holds_run(place)), source)
