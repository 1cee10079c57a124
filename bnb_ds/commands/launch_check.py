"""``bnb-ds check``: decide about a launch as the launch itself does, but report all errors at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from bnb_ds.checkpoint.start import briefly_held, check_output
from bnb_ds.config.deepspeed import DsConfig, load_ds_config
from bnb_ds.config.loading import load_recipe, recipe_values
from bnb_ds.config.sections import PretrainRecipe, TrainingRecipe
from bnb_ds.errors import BnbError, ConfigError
from bnb_ds.finetune import plan as finetune
from bnb_ds.finetune.recipe import FinetuneRecipe
from bnb_ds.loggers.choice import find_loggers
from bnb_ds.pretrain import plan as pretrain
from bnb_ds.train.launch import NEW_RUN, Launch

T = TypeVar("T")


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


def check(
    recipe_path: str, overrides: list[str], ds_config_path: str, world_size: int, launch: Launch = NEW_RUN
) -> Findings:
    """Check a launch: recipe, DeepSpeed JSON, data, model, output directory and the checkpoint to go on from.

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
        decide = _decide_pretraining if schema is PretrainRecipe else _decide_finetuning
        findings.attempt("no other launch", lambda: _try_lock(Path(recipe.output_dir)))
        decide(findings, recipe, ds_config, launch)
    return findings


def _schema(recipe_path: str, overrides: list[str]) -> type[TrainingRecipe]:
    try:
        is_finetuning = "task" in recipe_values(recipe_path, overrides)
    except ConfigError:  # `check` reports it when it loads the recipe
        is_finetuning = False
    return FinetuneRecipe if is_finetuning else PretrainRecipe


def _try_lock(output_dir: Path) -> None:
    with briefly_held(output_dir):
        pass


def _decide_finetuning(findings: Findings, recipe: FinetuneRecipe, ds_config: DsConfig | None, launch: Launch) -> None:
    made = findings.attempt(f"model kind {recipe.model.kind}", lambda: finetune.make_system(recipe))
    if ds_config is None or made is None:
        findings.attempt(f"output_dir {recipe.output_dir}", lambda: check_output(recipe, None))
        return
    plan = finetune.FinetunePlan(recipe, ds_config, *made)
    decision = finetune.decide(plan, launch, findings.attempt)
    if decision is not None:
        findings.lines += _indented(finetune.describe_decision(plan, decision))


def _decide_pretraining(findings: Findings, recipe: PretrainRecipe, ds_config: DsConfig | None, launch: Launch) -> None:
    opened = findings.attempt(f"shards {recipe.data.shards}", lambda: pretrain.open_shards(recipe))
    if ds_config is None or opened is None:
        findings.attempt(f"output_dir {recipe.output_dir}", lambda: check_output(recipe, None))
        return
    plan = pretrain.PretrainPlan(recipe, ds_config, *opened)
    decision = pretrain.decide(plan, launch, findings.attempt)
    if decision is not None:
        findings.lines += _indented(pretrain.describe_decision(plan, decision))


def _indented(lines: Iterable[str]) -> list[str]:
    return [f"       {line}" for line in lines]
