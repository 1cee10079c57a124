"""``bnb-ds glue``: several tasks times several seeds, and the paper's Table 1 of them."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bnb_ds.checkpoint.lasting import lasting_ds_config, lasting_recipe
from bnb_ds.checkpoint.run_dir import read_ds_config, read_recipe, with_defaults
from bnb_ds.common.files import refuse_directory, refuse_output, write_atomic
from bnb_ds.common.markdown import markdown_table
from bnb_ds.common.shipped import expand_recipes
from bnb_ds.config.deepspeed import load_ds_config
from bnb_ds.config.loading import differences, load_recipe, recipe_values
from bnb_ds.errors import ConfigError, DataError
from bnb_ds.evaluate.model import evaluate_model
from bnb_ds.evaluate.scoring import finite_or_none
from bnb_ds.finetune.goal import goal_of
from bnb_ds.finetune.launching import run_finetuning
from bnb_ds.finetune.recipe import FinetuneRecipe
from bnb_ds.systems.base import TASK_FILE
from bnb_ds.systems.model_dir import BEST
from bnb_ds.tasks.registry import get_task
from bnb_ds.tasks.task import Task
from bnb_ds.tune.places import free_places
from bnb_ds.tune.space import DEEPSPEED, Dimension, Settings
from bnb_ds.tune.study import Search, read_ds_values, search

TABLE_FILE = "glue.md"
FIGURES_FILE = "glue.json"
_SWEEP = "learning_rate"
_CORRELATIONS = ("matthews_correlation", "pearson", "spearman")
#: the eight rows that the paper averages, as Devlin et al. (2019) do without WNLI; of MNLI the matched split
AVERAGED = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte")
_NOT_AVERAGED_SPLITS = ("validation_mismatched",)


@dataclass(frozen=True)
class Row:
    """A task's scores on a validation split, over seeds; all in percent. A score that is not a number never wins.

    Attributes:
        task: name.
        split: scored.
        score: name of the main score.
        by_seed: seed -> main score.
        others: name -> seed -> score, of the task's other scores.
    """

    task: str
    split: str
    score: str
    by_seed: dict[int, float]
    others: dict[str, dict[int, float]] = field(default_factory=dict)

    @property
    def is_averaged(self) -> bool:
        """Whether the row is one of the eight in the average."""
        return self.task in AVERAGED and self.split not in _NOT_AVERAGED_SPLITS

    @property
    def title(self) -> str:
        title = get_task(self.task).title.partition("-m/mm")[0]
        return title + {"validation_matched": "-m", "validation_mismatched": "-mm"}.get(self.split, "")

    @property
    def best(self) -> float:
        """NaN if no seed has a score."""
        return max(_finite(self.by_seed), default=math.nan)

    @property
    def mean(self) -> float:
        """Of the seeds with a score."""
        return statistics.fmean(_finite(self.by_seed) or [math.nan])

    @property
    def deviation(self) -> float:
        """Standard deviation over seeds; 0 for a single one."""
        scores = _finite(self.by_seed)
        return statistics.stdev(scores) if len(scores) > 1 else 0.0


def _finite(by_seed: dict[int, float]) -> list[float]:
    return [score for score in by_seed.values() if math.isfinite(score)]


def run_glue(
    recipes: Sequence[str],
    overrides: Sequence[str],
    ds_config: str,
    *,
    seeds: Sequence[int],
    output: Path,
    num_gpus: int,
    learning_rates: Sequence[float] = (),
) -> str:
    """Fine-tune every recipe with every seed, score the best models on validation, write the table; returns it.

    What an earlier call has finished is not done again, what it has begun is resumed. With ``learning_rates``, each
    task is first fine-tuned with every one of them and the first seed, and takes the one with the best score.

    Raises:
        ConfigError: two recipes of one task, a recipe of a task without labels, or a finished run of other settings.
        DataError: a run has failed.
    """
    refuse_directory(output)
    for name in (TABLE_FILE, FIGURES_FILE):
        refuse_output(output / name, makes_parents=True)
    tasks = {}
    for path in expand_recipes(recipes):
        task = load_recipe(path, overrides, FinetuneRecipe).declared_task
        if task.is_generation or task.name in tasks:
            reason = "asks for texts" if task.is_generation else f"is that of {tasks[task.name]} too"
            raise ConfigError(f"{path}: its task {task.name} {reason}; give one recipe for each GLUE task")
        tasks[task.name] = path
    rows, rates = [], {}
    for name, path in tasks.items():
        ds_config_of_task: str | Path = ds_config
        if learning_rates:
            rates[name], ds_config_of_task = _sweep(
                path, [*overrides, f"seed={seeds[0]}"], ds_config, learning_rates, output / name / _SWEEP
            )
        runs = {seed: output / name / f"seed-{seed}" for seed in seeds}
        for seed, run in runs.items():
            settings = [*overrides, f"seed={seed}", f"output_dir={run}"]
            if (run / BEST / TASK_FILE).is_file():
                recipe = load_recipe(path, settings, FinetuneRecipe)
                _refuse_other_settings(run, recipe, ds_config_of_task, num_gpus)
            else:
                _finetune(path, settings, str(ds_config_of_task), num_gpus)
        task = get_task(name)
        for split in task.validation_splits:
            rows.append(
                _row(task, split, {seed: evaluate_model(run, split=split).scores for seed, run in runs.items()})
            )
    table = table_of(rows)
    if rates:
        table += _about_rates(rates, learning_rates)
    write_atomic(output / TABLE_FILE, table)
    write_atomic(output / FIGURES_FILE, json.dumps([_figures(row) for row in rows], indent=1, allow_nan=False) + "\n")
    return table


def _sweep(
    recipe: str, overrides: Sequence[str], ds_config: str, rates: Sequence[float], output: Path
) -> tuple[float, Path]:
    """The learning rate with the best score on validation, and a DeepSpeed JSON with it."""
    settings = Settings(recipe_values(recipe, overrides), read_ds_values(ds_config))
    goal = goal_of(load_recipe(recipe, overrides, FinetuneRecipe))
    space = [Dimension(DEEPSPEED, "optimizer.params.lr", tuple(rates))]
    best = search(Search(settings, space, goal, output, free_places()))
    return best.settings.deepspeed["optimizer"]["params"]["lr"], best.ds_config


def _about_rates(chosen: dict[str, float], rates: Sequence[float]) -> str:
    each = ", ".join(f"{get_task(name).title} {rate:g}" for name, rate in chosen.items())
    return f"Learning rates, chosen on validation among {', '.join(f'{rate:g}' for rate in rates)}: {each}.\n"


def _refuse_other_settings(run: Path, recipe: FinetuneRecipe, ds_config: str | Path, num_gpus: int) -> None:
    """A finished run is not done again, so that its scores would pass for those of other settings."""
    if not (run / "config.resolved.yaml").is_file():
        return
    ours, theirs = recipe.values(), with_defaults(read_recipe(run), FinetuneRecipe)
    changes = list(differences(*(lasting_recipe(values) for values in (ours, theirs))))
    ds_values = (load_ds_config(ds_config, num_gpus).values, read_ds_config(run))
    changes += differences(*(lasting_ds_config(values) for values in ds_values))
    if changes:
        raise ConfigError(
            f"{run}: is finished, but with other settings: {'; '.join(changes)}; restore them, or choose another"
            " --output"
        )


def _figures(row: Row) -> dict[str, Any]:
    others = {name: finite_or_none(values) for name, values in row.others.items()}
    return {**asdict(row), "by_seed": finite_or_none(row.by_seed), "others": others}


def _row(task: Task, split: str, by_seed: dict[int, dict[str, float]]) -> Row:
    scores: dict[str, dict[int, float]] = {}
    for seed, values in by_seed.items():
        for name, value in values.items():
            if name != "loss":
                scores.setdefault(name, {})[seed] = value * (100 if name in _CORRELATIONS else 1)
    main = scores.pop(task.main_score)
    return Row(task.name, split, task.main_score, main, scores)


def table_of(rows: Sequence[Row]) -> str:
    """Markdown: a line for each task and split, the average over the paper's eight rows, and what it leaves out."""
    seeds = len(rows[0].by_seed)
    lines = []
    for row in rows:
        mean = f"{row.mean:.1f} ± {row.deviation:.1f}"
        if len(_finite(row.by_seed)) < len(row.by_seed):
            mean += f" ({len(_finite(row.by_seed))} of {len(row.by_seed)} seeds; the others gave no number)"
        others = "; ".join(
            f"{name} {max(_finite(values), default=math.nan):.1f}, "
            f"{statistics.fmean(_finite(values) or [math.nan]):.1f}"
            for name, values in row.others.items()
        )
        lines.append((row.title, row.score, f"{row.best:.1f}", mean, others, "yes" if row.is_averaged else "no"))
    averaged = [row for row in rows if row.is_averaged]
    if averaged:
        best, mean = (statistics.fmean(getattr(row, name) for row in averaged) for name in ("best", "mean"))
        lines.append((f"average of {len(averaged)}", "", f"{best:.1f}", f"{mean:.1f}", "", ""))
    header = ("task", "score", f"best of {seeds}", "mean ± sd", "other scores: best, mean", "in the average")
    return markdown_table(header, lines) + "\n" + _about_average(averaged) + "\n"


def _about_average(averaged: Sequence[Row]) -> str:
    missing = [get_task(name).title for name in AVERAGED if name not in {row.task for row in averaged}]
    said = "The average is over the paper's eight rows: " + ", ".join(get_task(name).title for name in AVERAGED)
    said = said.replace("MNLI-m/mm", "MNLI-m") + "."
    return said + (f" Not there yet: {', '.join(missing).replace('MNLI-m/mm', 'MNLI-m')}." if missing else "")


def _finetune(recipe: str, settings: Sequence[str], ds_config: str, num_gpus: int) -> None:
    """One run: a job of its own, whose failure leaves this one alive."""
    code = run_finetuning(recipe, settings, ds_config, num_gpus)
    if code:
        raise DataError(
            f"{recipe} ({' '.join(settings[-2:])}): fine-tuning ended with exit code {code}; see above,"
            " then repeat this command to go on"
        )
