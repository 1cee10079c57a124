"""``bnb-ds reproduce --run``: train one row of the paper's tables, and score its best model on the table's split."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bnb_ds.errors import ConfigError, DataError
from bnb_ds.evaluate.model import Evaluation, evaluate_model
from bnb_ds.finetune.launching import run_finetuning
from bnb_ds.reproduce.paper_rows import Row
from bnb_ds.systems.base import TASK_FILE
from bnb_ds.systems.model_dir import BEST

#: settings that make a row what it is -> the way to have others
_OF_THE_ROW = {"output_dir": "give --runs DIRECTORY", "task": "give the row of that task to --run"}


def run_row(
    row: Row, runs: Path, *, num_gpus: int, ds_config: str | None = None, overrides: Sequence[str] = ()
) -> Evaluation:
    """Fine-tune the row's model unless that is done, then evaluate it. What was begun is resumed.

    Args:
        row: the row.
        runs: directory of the runs; the tables read the results there.
        num_gpus: ranks on this host.
        ds_config: DeepSpeed JSON; default: the row's.
        overrides: further overrides of the recipe, for example other data.

    Raises:
        DataError: the fine-tuning has failed; its own message stands above.
        CheckpointError, ConfigError: the best model cannot be evaluated.
        ConfigError: an override replaces the row's task or directory, or the row is trained already and would not
            change by what is given.
    """
    output = runs / row.output_dir
    for override in overrides:
        key = override.partition("=")[0]
        if key in _OF_THE_ROW:
            raise ConfigError(f"--set {override}: {row.name} decides {key}; {_OF_THE_ROW[key]}")
    changes = [
        *(f"--set {override}" for override in overrides),
        *([f"--deepspeed-config {ds_config}"] * bool(ds_config)),
    ]
    if not (output / BEST / TASK_FILE).is_file():
        own = [override for override in row.overrides if not override.startswith("output_dir=")]
        settings = [*own, *overrides, f"output_dir={output}"]
        code = run_finetuning(row.recipe_path, settings, ds_config or row.ds_config, num_gpus)
        if code:
            raise DataError(
                f"{row.name}: fine-tuning ended with exit code {code}; see above, then repeat this command to go on"
                f" (it needs {row.needs})"
            )
    elif changes:
        raise ConfigError(
            f"{changes[0]}: {row.name} is trained already in {output}, and its model would stay as it is; leave it"
            " out to score that model, or give other --runs to train another one"
        )
    return evaluate_model(output, split=row.split)
