"""Scores of the paper's rows that were measured here."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bnb_ds.errors import CheckpointError, DataError
from bnb_ds.evaluate.conditions import is_of_other_outputs, other_data
from bnb_ds.reproduce.paper_rows import Row

#: settings of a run that change neither its model nor its scores
_FREE = ("output_dir", "intervals", "faults", "stragglers", "tracking", "loader", "data.cache_dir")
_RATE = "optimizer.params.lr"


@dataclass(frozen=True)
class Measured:
    """What an evaluation of a row's run has found.

    Attributes:
        main_score: the name of the score that decides.
        scores: name -> value; None: no number.
        differs: in what training or evaluation was another than the row's; empty: in nothing that is known.
    """

    main_score: str
    scores: dict[str, float | None]
    differs: tuple[str, ...] = ()


def measured(row: Row, runs: Path) -> dict[str, Measured]:
    """Split -> what was found, of every evaluation of a row's run.

    Raises:
        CheckpointError: the recipe or the DeepSpeed configuration of the run cannot be read.
        DataError: a results file cannot be read.
    """
    found = {}
    run = runs / row.output_dir
    for path in sorted(run.glob("best/evaluation/*/eval_results.json")):
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            task, split, main, scores = values["task"], values["split"], values["main_score"], dict(values["scores"])
            if main not in scores:
                raise KeyError(main)
            # With the references' lengths, or decoded otherwise than the model was saved, it is not the row's result.
            is_of_row = task == row.task and not is_of_other_outputs(values)
            changes = [f"scored with {change}" for change in other_data(values)]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}: cannot be read as results ({error}); run bnb-ds evaluate again") from None
        if is_of_row:
            found[split] = Measured(main, scores, (*other_training(row, run), *changes))
    return found


def other_training(row: Row, run: Path) -> list[str]:
    """``SETTING VALUE, not VALUE`` for each setting in which the training of a run was another than the row's.

    Where a run has kept no recipe or no DeepSpeed configuration, nothing is known of it.

    Raises:
        CheckpointError: they cannot be read.
    """
    # Imported here: a list of rows without results loads no model code.
    from bnb_ds.checkpoint.lasting import lasting_ds_config
    from bnb_ds.checkpoint.run_dir import read_ds_config, with_defaults
    from bnb_ds.config.deepspeed import load_ds_config
    from bnb_ds.config.loading import flattened, load_recipe
    from bnb_ds.finetune.recipe import FinetuneRecipe
    from bnb_ds.systems.model_dir import BEST, RECIPE_FILE

    ours: dict[str, Any] = {}
    theirs: dict[str, Any] = {}
    recipe = run / BEST / RECIPE_FILE
    if recipe.is_file():
        ours |= flattened(load_recipe(row.recipe_path, list(row.overrides), FinetuneRecipe).values())
        theirs |= flattened(with_defaults(_read_recipe(recipe), FinetuneRecipe))
    if (run / "ds_config.resolved.json").is_file():
        ours |= flattened(lasting_ds_config(load_ds_config(row.ds_config, world_size=1).values))
        theirs |= flattened(lasting_ds_config(read_ds_config(run)))
    if theirs.get(_RATE) in row.rates:
        ours[_RATE] = theirs[_RATE]
    changed = [key for key in sorted({*ours, *theirs}) if ours.get(key) != theirs.get(key)]
    return [
        f"{key} {_shown(theirs.get(key))}, not {_shown(ours.get(key))}"
        for key in changed
        if not any(key == free or key.startswith(f"{free}.") for free in _FREE)
    ]


def _shown(value: Any) -> str:
    return "none" if value is None else str(value)


def _read_recipe(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise CheckpointError(f"{path}: cannot be read ({' '.join(str(error).split())}); restore it") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: cannot be read (it is no recipe); restore it")
    return values
