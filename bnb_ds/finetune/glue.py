"""``bnb-ds glue``: several tasks times several seeds, and the paper's Table 1 of them."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bnb_ds.common.files import write_atomic
from bnb_ds.common.markdown import markdown_table
from bnb_ds.config.loading import load_recipe
from bnb_ds.errors import ConfigError, DataError
from bnb_ds.evaluate.model import evaluate_model
from bnb_ds.finetune.recipe import FinetuneRecipe
from bnb_ds.systems.base import TASK_FILE
from bnb_ds.systems.model_dir import BEST
from bnb_ds.tasks.registry import get_task

TABLE_FILE = "glue.md"
_CORRELATIONS = ("matthews_correlation", "pearson", "spearman")


@dataclass(frozen=True)
class Row:
    """A task's scores on a validation split, over seeds; all in percent."""

    task: str
    split: str
    score: str
    by_seed: dict[int, float]

    @property
    def best(self) -> float:
        return max(self.by_seed.values())

    @property
    def mean(self) -> float:
        return statistics.fmean(self.by_seed.values())

    @property
    def deviation(self) -> float:
        """Standard deviation over seeds; 0 for a single one."""
        return statistics.stdev(self.by_seed.values()) if len(self.by_seed) > 1 else 0.0


def run_glue(
    recipes: Sequence[str],
    overrides: Sequence[str],
    ds_config: str,
    *,
    seeds: Sequence[int],
    output: Path,
    num_gpus: int,
) -> str:
    """Fine-tune every recipe with every seed, score the best models on validation, write the table; returns it.

    What an earlier call has finished is not done again, what it has begun is resumed.

    Raises:
        ConfigError: two recipes of one task, or a recipe of a task without labels.
        DataError: a run has failed.
    """
    tasks = {}
    for path in recipes:
        task = load_recipe(path, overrides, FinetuneRecipe).declared_task
        if task.is_generation or task.name in tasks:
            reason = "asks for texts" if task.is_generation else f"is that of {tasks[task.name]} too"
            raise ConfigError(f"{path}: its task {task.name} {reason}; give one recipe for each GLUE task")
        tasks[task.name] = path
    rows = []
    for name, path in tasks.items():
        runs = {seed: output / name / f"seed-{seed}" for seed in seeds}
        for seed, run in runs.items():
            if not (run / BEST / TASK_FILE).is_file():
                settings = [*overrides, f"seed={seed}", f"output_dir={run}"]
                _finetune(path, settings, ds_config, num_gpus)
        task = get_task(name)
        for split in task.validation_splits:
            scale = 100 if task.main_score in _CORRELATIONS else 1
            scores = {
                seed: scale * evaluate_model(run, split=split).scores[task.main_score] for seed, run in runs.items()
            }
            rows.append(Row(name, split, task.main_score, scores))
    table = table_of(rows)
    write_atomic(output / TABLE_FILE, table)
    write_atomic(output / "glue.json", json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    return table


def table_of(rows: Sequence[Row]) -> str:
    """Markdown: a line for each task and split, and the average over them."""
    lines = []
    for row in rows:
        title = get_task(row.task).title.partition("-m/mm")[0]
        suffix = {"validation_matched": "-m", "validation_mismatched": "-mm"}.get(row.split, "")
        lines.append((title + suffix, row.score, f"{row.best:.1f}", f"{row.mean:.1f} ± {row.deviation:.1f}"))
    best, mean = (statistics.fmean(getattr(row, name) for row in rows) for name in ("best", "mean"))
    lines.append(("average", "", f"{best:.1f}", f"{mean:.1f}"))
    return markdown_table(("task", "score", f"best of {len(rows[0].by_seed)}", "mean ± sd"), lines) + "\n"


def _finetune(recipe: str, settings: Sequence[str], ds_config: str, num_gpus: int) -> None:
    """One run through the launcher: a job of its own, whose failure leaves this one alive."""
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_gpus", str(num_gpus), "--module"]
    script = ["bnb_ds.finetune.main", recipe, *settings, "--deepspeed_config", ds_config, "--resume", "auto"]
    result = subprocess.run([*launcher, *script], check=False)
    if result.returncode:
        raise DataError(
            f"{recipe} ({' '.join(settings[-2:])}): fine-tuning ended with exit code {result.returncode}; see above,"
            " then repeat this command to go on"
        )
