"""The plan of a fine-tuning run, made from its recipe and DeepSpeed JSON before any GPU is used."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bnb_ds.checkpoint.run_dir import RunDir
from bnb_ds.checkpoint.start import Attempt, Start, at_once, briefly_held, check_output, find_start
from bnb_ds.config.deepspeed import DsConfig, load_ds_config
from bnb_ds.config.loading import load_recipe
from bnb_ds.data.misfits import count_misfits, length_lines, misfit_lines, refuse_misfits
from bnb_ds.distributed import ranks
from bnb_ds.evaluate.split import ceilings
from bnb_ds.finetune.layer_distillation import MatchedTeacher, match_teacher
from bnb_ds.finetune.recipe import FinetuneRecipe
from bnb_ds.loggers.choice import find_loggers
from bnb_ds.model.configuration import BnbConfig
from bnb_ds.model.students.layer_choice import depth_line
from bnb_ds.systems.base import OneSlotPerToken, System
from bnb_ds.systems.bnb import BnbGenerator
from bnb_ds.systems.kinds import system_class
from bnb_ds.systems.shown_targets import refuse_refinement, why_not_refined
from bnb_ds.systems.task_samples import TaskSamples
from bnb_ds.tasks.own_tasks import resolved
from bnb_ds.tasks.task import Task
from bnb_ds.tasks.text_lengths import Lengths
from bnb_ds.tasks.tokenised import Tokenised, rows_lines, tokenise
from bnb_ds.train import estimates
from bnb_ds.train.launch import NEW_RUN, Launch
from bnb_ds.train.objectives import Glancing, Objective, ObjectiveSettings, Reconstruction, WithTerms
from bnb_ds.train.parameters.chosen import Trained, choose
from bnb_ds.train.parameters.unfreezing import Beginnings

#: samples of a split whose ceiling a launch works out; an evaluation takes all
_CEILING_SAMPLES = 1000


@dataclass(frozen=True)
class FinetunePlan:
    """Checked settings. The data has not been read, and no model exists yet."""

    recipe: FinetuneRecipe
    ds_config: DsConfig
    system: System
    #: from which the model learns layer by layer, if the recipe names one
    teacher: MatchedTeacher | None

    @property
    def task(self) -> Task:
        return self.system.task

    @property
    def scored_splits(self) -> tuple[str, ...]:
        """Splits that are scored during training. The scores of the first one select the best checkpoint."""
        chosen = self.recipe.selection.split
        if chosen == "validation" and chosen not in self.task.validation_splits:
            return self.task.validation_splits
        return (chosen, *(split for split in self.task.validation_splits[1:] if split != chosen))

    def tag_group(self, split: str) -> str:
        """What the tags of a split's scores begin with: ``eval`` for the split that selects, as in pre-training."""
        return "eval" if split == self.scored_splits[0] else f"eval_{split.removeprefix('validation_')}"

    def total_steps(self, samples_per_epoch: int) -> int:
        """Optimizer steps of the whole run."""
        return self.recipe.total_steps(samples_per_epoch, self.ds_config.global_batch)


def make_plan(recipe_path: str, overrides: list[str], ds_config_path: str, world_size: int) -> FinetunePlan:
    """Load and check all settings. The data is not read.

    Raises:
        ConfigError, DataError, CheckpointError: a setting is wrong, or a file that it names cannot be used. The message
            names file and field.
    """
    recipe = load_recipe(recipe_path, overrides, FinetuneRecipe)
    find_loggers(recipe.tracking.loggers)
    return FinetunePlan(recipe, load_ds_config(ds_config_path, world_size), *make_system(recipe))


def make_system(recipe: FinetuneRecipe) -> tuple[System, MatchedTeacher | None]:
    """The system that a recipe trains, and the teacher of its layers. No weights are read.

    Raises:
        ConfigError, DataError, CheckpointError: as in `make_plan`.
    """
    task = resolved(recipe.declared_task, recipe.data)
    chosen = system_class(recipe.model.kind, task)
    codec = chosen.make_codec(task, recipe.model, recipe.data)
    if task.is_generation and recipe.data.target_spacing == "pieces":
        codec.use_exact_targets()
    system = chosen(task, Lengths.of(task, recipe.data), codec, recipe.model)
    system.use_romanian(recipe.data)
    config = system.config()  # checks the settings of the model
    if isinstance(system, BnbGenerator) and config.decoding.get("refinement"):
        why_not = why_not_refined(system.kind, recipe.model_dump())
        refuse_refinement(config.decoding["refinement"], why_not, "model.decoding.refinement")
    _objective(system, recipe, 1)  # checks that the model can be trained so
    return system, None if recipe.layer_distillation is None else match_teacher(recipe.layer_distillation, system)


def make_objective(plan: FinetunePlan, total_steps: int, model: Any) -> Objective:
    """The loss that a run of ``total_steps`` optimises. A teacher's weights are read.

    Args:
        plan: the plan of the run.
        total_steps: optimizer steps of the whole run.
        model: the model of the run, before a checkpoint is loaded into it.
    """
    objective, terms = _objective(plan.system, plan.recipe, total_steps), plan.system.terms(model)
    if plan.teacher is not None:
        terms.append(plan.teacher.load())
    if not terms:
        return objective
    assert isinstance(objective, Reconstruction), "only models of such a loss have further terms"
    return WithTerms(objective, terms)


def _objective(system: System, recipe: FinetuneRecipe, total_steps: int) -> Objective:
    glancing = None
    if recipe.glancing is not None:
        ratio = partial(recipe.glancing.ratio, total_steps=total_steps)
        glancing = Glancing(ratio, recipe.glancing.mask_predict)
    return system.objective(ObjectiveSettings(glancing, recipe.ngram_size, recipe.mixed_training))


@dataclass(frozen=True)
class Decision:
    """A launch that may begin.

    Attributes:
        start: where it begins.
        splits: split name -> tokenised data.
        trained: numbers of parameters of the model.
        about_slots: lines for the user.
    """

    start: Start
    splits: dict[str, Tokenised]
    trained: Trained
    about_slots: list[str]


def decide(
    plan: FinetunePlan, launch: Launch, attempt: Attempt = at_once, progress: Callable[[], None] = lambda: None
) -> Decision | None:
    """Decide whether a launch may begin; the same on every rank. The data is tokenised, and a run uses the result.

    Args:
        plan: the plan of the run.
        launch: the flags.
        attempt: how each part is decided.
        progress: called now and then on rank 0, while the other ranks wait.

    Returns:
        The decision; None after an error that ``attempt`` noted.

    Raises:
        ConfigError, DataError, CheckpointError: the launch may not begin; the message says why.
    """
    recipe = plan.recipe
    trained = attempt("weights to train", lambda: choose_trained(plan))
    sizes = (None,) if trained is None else (trained.trained, trained.frozen)
    attempt(f"output_dir {recipe.output_dir}", lambda: check_output(recipe, *sizes))
    splits = attempt(f"data of task {recipe.task}", lambda: tokenise_splits(plan, progress))
    if splits is None:
        return None
    about_slots = attempt("decoder slots", lambda: targets_that_do_not_fit(plan, splits, progress))
    run, total_steps = run_directory(plan, splits), plan.total_steps(len(splits["train"]))
    start = attempt("resume", lambda: find_start(run, total_steps, **launch.resume_flags))
    if start is not None and start.resume is None:
        attempt("settings of a new model", plan.system.check_new)
    if start is None or about_slots is None or trained is None:
        return None
    return Decision(start, splits, trained, about_slots)


def describe_dry_run(plan: FinetunePlan, launch: Launch = NEW_RUN) -> list[str]:
    """Lines that describe a run. No GPU is used. The data is tokenised, and a later run uses the result.

    Raises:
        ConfigError, DataError, CheckpointError: the launch would be refused, with this message.
    """
    with briefly_held(Path(plan.recipe.output_dir)):
        decision = decide(plan, launch)
    assert decision is not None  # the first error has ended it
    return describe_decision(plan, decision)


def describe_decision(plan: FinetunePlan, decision: Decision) -> list[str]:
    """The same lines, of a launch that may begin."""
    return [
        *describe_plan(plan, decision.splits, decision.trained),
        *decision.about_slots,
        f"start        {decision.start.describe(plan.ds_config)}",
    ]


def choose_trained(plan: FinetunePlan) -> Trained:
    """What the recipe trains of the system's model. No weights are allocated.

    Raises:
        ConfigError: as `bnb_ds.train.parameters.chosen.choose`.
    """
    with torch.device("meta"):
        return choose(plan.system.empty(plan.system.config()), plan.recipe)


def run_directory(plan: FinetunePlan, splits: dict[str, Tokenised]) -> RunDir:
    """The directory of the run, ``output_dir`` of its recipe."""
    fingerprint = hashlib.sha256(" ".join(split.fingerprint for split in splits.values()).encode()).hexdigest()
    teacher = "" if plan.teacher is None else plan.teacher.fingerprint()
    return RunDir(plan.recipe, plan.ds_config, fingerprint, teacher)


def tokenise_splits(plan: FinetunePlan, progress: Callable[[], None] = lambda: None) -> dict[str, Tokenised]:
    """Tokenise the splits of the run on rank 0, and open them on every rank. Returns split name -> data.

    ``progress`` is called now and then on rank 0, while the other ranks wait.
    """
    data, task, codec = plan.recipe.data, plan.task, plan.system.codec
    names = ("train", *plan.scored_splits)
    directories = ranks.on_main(lambda: [str(tokenise(task, data, name, codec, progress).directory) for name in names])
    splits = {name: Tokenised(Path(path)) for name, path in zip(names, directories, strict=True)}
    # What the targets of this run look like decides how its outputs are written.
    codec.spacing = splits["train"].spacing()
    return splits


def targets_that_do_not_fit(
    plan: FinetunePlan, splits: dict[str, Tokenised], progress: Callable[[], None] = lambda: None
) -> list[str]:
    """Lines that say how many targets of each split do not fit into the decoder's slots; the same on every rank.

    There are no such lines for labels, nor for models that write one token after the other. All samples are looked at,
    on rank 0, which calls ``progress`` now and then.

    Raises:
        ConfigError: more than half of the targets of a split do not fit.
    """
    if not plan.task.is_generation or isinstance(plan.system.target_rules, OneSlotPerToken):
        return []

    def lines() -> list[str]:
        found, lengths = {}, {}
        for name, split in splits.items():
            samples = TaskSamples(split, plan.system)
            found[name] = count_misfits(samples.num_infeasible, len(split), progress=progress)
            lengths[name] = count_misfits(samples.num_without_length, len(split), progress=progress)
        refuse_misfits(found)
        return [*misfit_lines(found), *length_lines(lengths)]

    return ranks.on_main(lines)


def describe_plan(plan: FinetunePlan, splits: dict[str, Tokenised], trained: Trained) -> list[str]:
    """Lines that describe a run.

    Args:
        plan: the plan of the run.
        splits: split name -> tokenised data.
        trained: numbers of parameters of the model.
    """
    ds_config, recipe = plan.ds_config, plan.recipe
    samples = ", ".join(f"{name} {len(split):,}" for name, split in splits.items())
    lines = [
        f"task         {plan.task.title} ({plan.task.name}), model kind {recipe.model.kind}",
        *_lines_of_weights(plan, trained, plan.total_steps(len(splits["train"])), len(splits["train"])),
        *_depth_lines(plan.system),
        *([] if plan.teacher is None else [plan.teacher.line()]),
        f"data         {samples} samples",
    ]
    for name, split in splits.items():
        lines += [f"             {name}: {line}" for line in rows_lines(split.info)]
    if ranks.is_main():
        lines += _ceiling_lines(plan, splits)
    selection = f"best {recipe.selection.score or plan.task.main_score} on {plan.scored_splits[0]}"
    if recipe.selection.patience:
        selection += f"; the run ends after {recipe.selection.patience} evaluations without a better score"
    return [
        *lines,
        estimates.batch_line(ds_config, recipe.loader),
        estimates.steps_line(ds_config, len(splits["train"]), plan.total_steps(len(splits["train"]))),
        f"selection    {selection}",
    ]


def _depth_lines(system: System) -> list[str]:
    config = system.config()
    line = depth_line(config) if isinstance(config, BnbConfig) and system.task.is_generation else None
    return [] if line is None else [line]


def _lines_of_weights(plan: FinetunePlan, trained: Trained, total_steps: int, num_samples: int) -> list[str]:
    """How many weights there are, which of them are trained, when and at which rates."""
    recipe = plan.recipe
    line = f"model        {trained.total / 1e6:.2f}M parameters"
    if trained.frozen:
        line += f", of which {trained.trained / 1e6:.3g}M are trained"
    lines = [line]
    if recipe.lora is not None:
        lora = recipe.lora
        lines.append(
            f"lora         rank {lora.rank}, scale {lora.scale:g}, on {trained.adapted} matrices"
            f" ({', '.join(lora.targets)}); trained too: {', '.join(lora.also) or 'nothing'}"
        )
    if recipe.freeze:
        lines.append(f"frozen       {', '.join(recipe.freeze)}")
    if recipe.layerwise_decay is not None:
        lowest, highest = (recipe.layerwise_decay**height for height in (trained.heights[-1], trained.heights[0]))
        lines.append(f"rates        {lowest:.3g} to {highest:.3g} times the peak rate, by layer")
    begin = beginnings(plan, trained, num_samples)
    return lines if begin is None else [*lines, begin.describe(trained.heights, total_steps)]


def beginnings(plan: FinetunePlan, trained: Trained, num_samples: int) -> Beginnings | None:
    """When each layer begins to learn; None: at the first step."""
    unfreezing = plan.recipe.unfreezing
    if unfreezing is None:
        return None
    interval = unfreezing.interval(num_samples, plan.ds_config.global_batch)
    return Beginnings(interval, unfreezing.layers, trained.heights[0])


def _ceiling_lines(plan: FinetunePlan, splits: dict[str, Tokenised]) -> list[str]:
    """The best scores that the tokenizers allow."""
    lines = []
    for name in plan.scored_splits:
        found = ceilings(plan.system, splits[name], _CEILING_SAMPLES)
        if found:
            scores = ", ".join(f"{score} {value:.2f}" for score, value in found.items())
            lines.append(f"ceiling      {name}: {scores} (its references, tokenised and decoded again)")
    return lines
