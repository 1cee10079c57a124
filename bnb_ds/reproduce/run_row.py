"""``bnb-ds reproduce --run``: train one row of the paper's tables, and score its best model on the table's split."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bnb_ds.errors import DataError
from bnb_ds.evaluate.model import Evaluation, evaluate_model
from bnb_ds.finetune.launching import run_finetuning
from bnb_ds.reproduce.paper_rows import Row
from bnb_ds.systems.base import TASK_FILE
from bnb_ds.systems.model_dir import BEST


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
    """
    output = runs / row.output_dir
    if not (output / BEST / TASK_FILE).is_file():
        own = [override for override in row.overrides if not override.startswith("output_dir=")]
        settings = [*own, *overrides, f"output_dir={output}"]
        code = run_finetuning(row.recipe_path, settings, ds_config or row.ds_config, num_gpus)
        if code:
            raise DataError(
                f"{row.name}: fine-tuning ended with exit code {code}; see above, then repeat this command to go on"
                f" (it needs {row.needs})"
            )
    return evaluate_model(output, split=row.split)
