"""``bnb-ds check``: check a launch without its machines, and report all errors at once."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from bnb_ds.checkpoint.resume import plan_resume
from bnb_ds.checkpoint.run_dir import RunDir
from bnb_ds.checkpoint.store import BYTES_PER_PARAMETER
from bnb_ds.config.deepspeed import DsConfig, load_ds_config
from bnb_ds.config.loading import load_recipe, recipe_values
from bnb_ds.config.sections import PretrainRecipe, TrainingRecipe
from bnb_ds.errors import BnbError, ConfigError, DataError
from bnb_ds.finetune import plan as finetune
from bnb_ds.finetune.recipe import FinetuneRecipe
from bnb_ds.loggers.choice import find_loggers
from bnb_ds.pretrain import plan as pretrain
from bnb_ds.tasks.tokenised import Tokenised

T = TypeVar("T")
_GIB = 2**30


@dataclass
class Findings:
    """The results of a check."""

    #: lines for the user, in order
    lines: list[str] = field(default_factory=list)
    #: messages of the errors that the launch would raise
    errors: list[str] = field(default_factory=list)

    def attempt(self, subject: str, function: Callable[[], T]) -> T | None:
        """Call a function, and add an ok line or its error; return its result, or None after an error."""
        try:
            result = function()
        except BnbError as error:
            self.errors.append(str(error))
            self.lines.append(f"error  {subject}: {' '.join(str(error).split())}")
            return None
        self.lines.append(f"ok     {subject}")
        return result


def check(recipe_path: str, overrides: list[str], ds_config_path: str, world_size: int) -> Findings:
    """Check a recipe, a DeepSpeed JSON, the data, the model, the output directory and a possible resume.

    A recipe that names a task is for fine-tuning. Its data is tokenised, and the run then reads it from the cache.
    """
    findings = Findings()
    schema = _schema(recipe_path, overrides)
    recipe = findings.attempt(f"recipe {recipe_path}", lambda: load_recipe(recipe_path, overrides, schema))
    ds_config = findings.attempt(
        f"DeepSpeed JSON {ds_config_path}, {world_size} ranks", lambda: load_ds_config(ds_config_path, world_size)
    )
    if recipe is not None:
        loggers = recipe.tracking.loggers
        findings.attempt(f"loggers {', '.join(loggers) or 'none'}", lambda: find_loggers(loggers))
        (_check_pretraining if schema is PretrainRecipe else _check_finetuning)(findings, recipe, ds_config)
    return findings


def _schema(recipe_path: str, overrides: list[str]) -> type[TrainingRecipe]:
    try:
        is_finetuning = "task" in recipe_values(recipe_path, overrides)
    except ConfigError:  # `check` reports it when it loads the recipe
        is_finetuning = False
    return FinetuneRecipe if is_finetuning else PretrainRecipe


def _check_finetuning(findings: Findings, recipe: FinetuneRecipe, ds_config: DsConfig | None) -> None:
    system = findings.attempt(f"model kind {recipe.model.kind}", lambda: finetune.make_system(recipe))
    findings.attempt(f"output_dir {recipe.output_dir}", lambda: _check_output(Path(recipe.output_dir)))
    if ds_config is None or system is None:
        return
    num_parameters = finetune.count_parameters(system)
    plan = finetune.FinetunePlan(recipe, ds_config, system)
    splits = findings.attempt(f"data of task {recipe.task}", lambda: finetune.tokenise_splits(plan))
    if splits is not None:
        about_slots = findings.attempt("decoder slots", lambda: _check_slots(plan, splits))
        run = finetune.run_directory(plan, splits)
        _check_resume(findings, run, ds_config)
        findings.lines += _indented([*finetune.describe_plan(plan, splits, num_parameters), *(about_slots or [])])
    findings.attempt("disk space", lambda: _check_space(recipe, num_parameters))


def _check_slots(plan: finetune.FinetunePlan, splits: dict[str, Tokenised]) -> list[str]:
    finetune.check_if_new(plan)
    return finetune.targets_that_do_not_fit(plan, splits)


def _check_pretraining(findings: Findings, recipe: PretrainRecipe, ds_config: DsConfig | None) -> None:
    shards = findings.attempt(f"shards {recipe.data.shards}", lambda: pretrain.open_shards(recipe))
    config = None
    if shards is not None:
        name = recipe.model.checkpoint or recipe.model.encoder or "random weights"
        config = findings.attempt(f"model from {name}", lambda: pretrain.configuration(recipe, shards[0]))
    findings.attempt(f"output_dir {recipe.output_dir}", lambda: _check_output(Path(recipe.output_dir)))
    if ds_config is None or shards is None:
        return
    run = RunDir(recipe, ds_config, shards[0].fingerprint)
    _check_resume(findings, run, ds_config)
    if config is not None:
        plan = pretrain.PretrainPlan(recipe, ds_config, *shards)
        described = findings.attempt("decoder slots", lambda: pretrain.describe_dry_run(plan))
        findings.lines += _indented(described or [])
        num_parameters = pretrain.count_parameters(recipe.objective, config)
        findings.attempt("disk space", lambda: _check_space(recipe, num_parameters))


def _indented(lines: Iterable[str]) -> list[str]:
    return [f"       {line}" for line in lines]


def _check_output(path: Path) -> None:
    place = _existing_part(path)
    if not (place.is_dir() and os.access(place, os.W_OK)):
        raise ConfigError(f"output_dir {path}: {place} is not a writable directory; choose another")


def _existing_part(path: Path) -> Path:
    return next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())


def _check_resume(findings: Findings, run: RunDir, ds_config: DsConfig) -> None:
    described = findings.attempt("resume", lambda: _describe_resume(run, ds_config))
    if described is not None:
        findings.lines += _indented([described])


def _describe_resume(run: RunDir, ds_config: DsConfig) -> str:
    found, notes = run.find_resume("auto")
    if found is None:
        return "a new run: there is no checkpoint in output_dir"
    resume = plan_resume(found, ds_config, weights_only=False)
    return "; ".join([f"--resume auto continues {resume.describe(ds_config)}", *notes])


def _check_space(recipe: PretrainRecipe | FinetuneRecipe, num_parameters: int) -> None:
    # The kept checkpoints, the best one, and the one being written.
    checkpoints = recipe.intervals.keep_checkpoints + 2
    needed = checkpoints * BYTES_PER_PARAMETER * num_parameters
    free = shutil.disk_usage(_existing_part(Path(recipe.output_dir))).free
    if free < needed:
        raise DataError(
            f"output_dir {recipe.output_dir}: {checkpoints} checkpoints take about {needed / _GIB:.1f} GiB, but the"
            f" disk has {free / _GIB:.1f} GiB left; free some space, or lower intervals.keep_checkpoints"
        )
