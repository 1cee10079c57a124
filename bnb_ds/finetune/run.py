"""A fine-tuning run, put together from its recipe and its DeepSpeed JSON."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bnb_ds.checkpoint.run_dir import RunDir
from bnb_ds.common.files import disk_errors
from bnb_ds.config.deepspeed import DsConfig, load_ds_config
from bnb_ds.config.loading import load_recipe
from bnb_ds.distributed import ranks
from bnb_ds.evaluate.split import evaluate_split, outputs_table
from bnb_ds.export.finetuned import export_best
from bnb_ds.finetune.recipe import FinetuneRecipe
from bnb_ds.model.flops import TRAINING_FACTOR
from bnb_ds.systems import System, system_class
from bnb_ds.systems.samples import TaskSamples
from bnb_ds.tasks.task import Task
from bnb_ds.tasks.tokenised import Lengths, Tokenised, tokenise
from bnb_ds.train import estimates
from bnb_ds.train.early_stopping import EarlyStopping
from bnb_ds.train.job import Intervals, Job, Launch, Process, choose_resume, run_job, run_process
from bnb_ds.train.tracking import Tracker


@dataclass(frozen=True)
class FinetunePlan:
    """Everything that follows from the settings before a model exists."""

    recipe: FinetuneRecipe
    ds_config: DsConfig
    system: System

    @property
    def task(self) -> Task:
        return self.recipe.declared_task

    @property
    def scored_splits(self) -> tuple[str, ...]:
        """Splits that are scored while training; the one that chooses comes first."""
        chosen = self.recipe.selection.split
        if chosen == "validation" and chosen not in self.task.validation_splits:
            return self.task.validation_splits
        return (chosen, *(split for split in self.task.validation_splits[1:] if split != chosen))


def make_finetune_plan(recipe_path: str, overrides: list[str], ds_config_path: str, world_size: int) -> FinetunePlan:
    """Load and check all settings but the data itself.

    Raises:
        ConfigError, DataError, CheckpointError: naming file and field, before any GPU is touched.
    """
    recipe = load_recipe(recipe_path, overrides, FinetuneRecipe)
    return FinetunePlan(recipe, load_ds_config(ds_config_path, world_size), make_system(recipe))


def make_system(recipe: FinetuneRecipe) -> System:
    """What a recipe trains; no weights are read yet.

    Raises:
        ConfigError, DataError, CheckpointError: as `make_finetune_plan`.
    """
    task = recipe.declared_task
    chosen = system_class(recipe.model.kind, task)
    codec = chosen.make_codec(task, recipe.model, recipe.data)
    system = chosen(task, Lengths.of(task, recipe.data), codec, recipe.model)
    system.config()  # for its checks
    return system


def describe_finetune_dry_run(plan: FinetunePlan) -> list[str]:
    """What a run would do, without touching a GPU; the data is tokenised, which a run then finds done."""
    return describe_plan(plan, tokenise_splits(plan))


def describe_plan(plan: FinetunePlan, splits: dict[str, Tokenised]) -> list[str]:
    """What a run would do with these splits."""
    total_steps = plan.recipe.total_steps(len(splits["train"]), plan.ds_config.global_batch)
    return _derived(plan, splits, count_parameters(plan.system), total_steps)


def count_parameters(system: System) -> int:
    """Of its model, without making any weights."""
    with torch.device("meta"):
        return estimates.count_parameters(system.empty(system.config()))


def finetune(plan: FinetunePlan, launch: Launch) -> None:
    """Run fine-tuning in this process, one of ``plan.ds_config.world_size`` ranks; write the best model."""
    run_process(plan.recipe.faults, lambda process: _finetune(plan, launch, process))


def _finetune(plan: FinetunePlan, launch: Launch, process: Process) -> None:
    recipe, system = plan.recipe, plan.system
    process.watchdog.mark("data")
    splits = tokenise_splits(plan)
    run = run_directory(plan, splits)
    resume, notes = choose_resume(run, launch)
    # The weights of a new run are a pure function of the seed, the same on every rank.
    torch.manual_seed(recipe.seed)
    model = system.build()
    total_steps = recipe.total_steps(len(splits["train"]), plan.ds_config.global_batch)
    config, num_parameters = model.config, estimates.count_parameters(model)
    patience = recipe.selection.patience
    job = Job(
        recipe=recipe,
        ds_config=plan.ds_config,
        run=run,
        model=model,
        objective=system.objective,
        train=TaskSamples(splits["train"], system),
        total_steps=total_steps,
        intervals=_intervals(plan, len(splits["train"]), total_steps),
        batch_flops=lambda batch: TRAINING_FACTOR * system.flops(config, batch),
        evaluation=lambda engine, tracker: _evaluation(plan, engine, splits, process.device, tracker),
        save_model_files=lambda: _save_files(plan, run, config, splits),
        lines=_derived(plan, splits, num_parameters, total_steps),
        badness=_badness(plan),
        early_stopping=EarlyStopping(patience) if patience else None,
    )
    reached = run_job(job, launch, process, resume, notes)
    ended = reached >= total_steps or (job.early_stopping is not None and job.early_stopping.ended)
    if ended:
        process.watchdog.mark("export")
        line = ranks.on_main(lambda: export_best(run.path))
        if ranks.is_main():
            print(line, flush=True)


def run_directory(plan: FinetunePlan, splits: dict[str, Tokenised]) -> RunDir:
    """The run's own, which its recipe names."""
    fingerprint = hashlib.sha256(" ".join(split.fingerprint for split in splits.values()).encode()).hexdigest()
    return RunDir(plan.recipe, plan.ds_config, fingerprint)


def tokenise_splits(plan: FinetunePlan) -> dict[str, Tokenised]:
    """The splits of the run: rank 0 makes them, all open them."""
    data, task, codec = plan.recipe.data, plan.task, plan.system.codec
    names = ("train", *plan.scored_splits)
    directories = ranks.on_main(lambda: [str(tokenise(task, data, name, codec).directory) for name in names])
    return {name: Tokenised(Path(path)) for name, path in zip(names, directories, strict=True)}


def _intervals(plan: FinetunePlan, num_samples: int, total_steps: int) -> Intervals:
    intervals = plan.recipe.intervals
    eval_steps = intervals.eval_steps or max(round(num_samples / plan.ds_config.global_batch), 1)
    # A model can only be chosen where it was saved: each evaluation has its checkpoint.
    return Intervals(intervals.log_steps, eval_steps, intervals.checkpoint_steps or eval_steps)


def _badness(plan: FinetunePlan) -> Callable[[dict[str, float]], float | None]:
    split, name = plan.scored_splits[0], plan.recipe.selection.score or plan.task.main_score

    def badness(scores: dict[str, float]) -> float | None:
        if not scores:
            return None
        value = scores[f"{split}/{name}"]
        return value if name == "loss" else -value

    return badness


def _evaluation(
    plan: FinetunePlan, engine: Any, splits: dict[str, Tokenised], device: torch.device, tracker: Tracker
) -> Callable[[int], dict[str, float]]:
    def run_evaluation(step: int) -> dict[str, float]:
        values = {}
        for name in plan.scored_splits:
            split = splits[name]
            results = evaluate_split(
                plan.system, engine, split, batch_size=plan.recipe.intervals.eval_batch_size, device=device
            )
            values[f"{name}/loss"] = results.loss
            values |= {f"{name}/{score}": value for score, value in results.scores.values.items()}
            if plan.recipe.intervals.outputs and ranks.is_main():
                shown = outputs_table(split, plan.system, results, plan.recipe.intervals.outputs)
                tracker.text(step, f"{name}/outputs", shown)
        return values

    return run_evaluation


def _save_files(plan: FinetunePlan, run: RunDir, config: Any, splits: dict[str, Tokenised]) -> None:
    plan.system.save_files(config, run.model)
    if plan.recipe.data.split is None:
        return
    # Nobody else can know a split by hash: its ids are part of the result.
    directory = run.path / "splits"
    with disk_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
        for name, split in splits.items():
            (directory / f"{name}.ids.txt").write_text("".join(f"{i}\n" for i in split.row_ids()), encoding="utf-8")


def _derived(plan: FinetunePlan, splits: dict[str, Tokenised], num_parameters: int, total_steps: int) -> list[str]:
    """Lines that say what a run will do."""
    ds_config, recipe = plan.ds_config, plan.recipe
    samples = ", ".join(f"{name} {len(split):,}" for name, split in splits.items())
    lines = [
        f"task         {plan.task.title} ({plan.task.name}), model kind {recipe.model.kind}",
        f"model        {num_parameters / 1e6:.2f}M parameters",
        f"data         {samples} samples",
    ]
    for name, split in splits.items():
        left_out = {key: number for key, number in split.info.items() if key in _LEFT_OUT and number}
        lines += [f"             {name}: {number:,} {_LEFT_OUT[key]}" for key, number in left_out.items()]
    cut = f"{ds_config.micro_batch} x {ds_config.accumulation_steps} micro steps x {ds_config.world_size} ranks"
    if recipe.loader.micro_batch_tokens is not None:
        cut = f"micro batches of at most {recipe.loader.micro_batch_tokens:,} tokens on {ds_config.world_size} ranks"
    steps_per_epoch = len(splits["train"]) / ds_config.global_batch
    selection = f"best {recipe.selection.score or plan.task.main_score} on {plan.scored_splits[0]}"
    if recipe.selection.patience:
        selection += f"; ends after {recipe.selection.patience} evaluations without a better one"
    return [
        *lines,
        f"batch        {ds_config.global_batch} samples = {cut}",
        f"steps        {total_steps:,} = {total_steps / steps_per_epoch:.3g} epochs of {steps_per_epoch:,.1f} steps",
        f"selection    {selection}",
    ]


_LEFT_OUT = {
    "num_sources_cut": "sources cut to the longest length",
    "num_targets_cut": "targets cut to the longest length",
    "num_rows_skipped": "rows left out",
}
