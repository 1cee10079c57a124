"""A fine-tuning run: put the job together from its plan, run it, and export the best model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bnb_ds.checkpoint.run_dir import RunDir
from bnb_ds.common.files import disk_errors, write_atomic
from bnb_ds.distributed import ranks
from bnb_ds.evaluate.split import evaluate_split, shown_outputs
from bnb_ds.export.finetuned import export_best
from bnb_ds.finetune.plan import (
    FinetunePlan,
    beginnings,
    decide,
    describe_plan,
    make_objective,
    run_directory,
)
from bnb_ds.model.flops import TRAINING_FACTOR
from bnb_ds.systems.task_samples import TaskSamples
from bnb_ds.tasks.tokenised import Tokenised
from bnb_ds.train.early_stopping import EarlyStopping
from bnb_ds.train.job import Job, Process, hold, run_job, run_process
from bnb_ds.train.launch import Launch
from bnb_ds.train.loop import Evaluation, Intervals
from bnb_ds.train.parameters.chosen import choose
from bnb_ds.train.parameters.groups import Rates
from bnb_ds.train.tracking import Tracker


def finetune(plan: FinetunePlan, launch: Launch) -> None:
    """Fine-tune, and export the best model. This process is one of ``plan.ds_config.world_size`` ranks."""
    run_process(plan.recipe.faults, lambda process: _finetune(plan, launch, process))


def _finetune(plan: FinetunePlan, launch: Launch, process: Process) -> None:
    recipe, system = plan.recipe, plan.system
    process.watchdog.mark("data")
    hold(Path(recipe.output_dir), process)
    decision = decide(plan, launch, progress=process.watchdog.tick)
    assert decision is not None  # the first error has ended the launch
    splits = decision.splits
    run = run_directory(plan, splits)
    # The weights of a new run are a pure function of the seed, the same on every rank.
    torch.manual_seed(recipe.seed)
    model = system.build()
    trained = choose(model, recipe)
    total_steps = plan.total_steps(len(splits["train"]))
    config = model.config
    patience = recipe.selection.patience
    job = Job(
        recipe=recipe,
        ds_config=plan.ds_config,
        run=run,
        model=model,
        objective=make_objective(plan, total_steps, model),
        train=TaskSamples(splits["train"], system, recipe.seed),
        total_steps=total_steps,
        intervals=_intervals(plan, len(splits["train"]), total_steps),
        batch_flops=lambda batch: TRAINING_FACTOR * system.flops(config, batch),
        evaluation=lambda engine, tracker: _evaluation(plan, engine, splits, process.device, tracker),
        save_model_files=lambda: _save_files(plan, run, config, splits),
        lines=[*describe_plan(plan, splits, trained), *decision.about_slots],
        selection_loss=_selection_loss(plan),
        early_stopping=EarlyStopping(patience) if patience else None,
        has_frozen=trained.frozen > 0,
        rates=Rates(recipe.layerwise_decay, by_height=recipe.unfreezing is not None),
        beginnings=beginnings(plan, trained, len(splits["train"])),
    )
    if run_job(job, launch, process, decision.start):
        process.watchdog.mark("export")
        line = ranks.on_main(lambda: export_best(run.path))
        if ranks.is_main():
            print(line, flush=True)


def _intervals(plan: FinetunePlan, num_samples: int, total_steps: int) -> Intervals:
    intervals = plan.recipe.intervals
    eval_steps = intervals.eval_steps or max(round(num_samples / plan.ds_config.global_batch), 1)
    # Only a saved model can be selected, so each evaluation has a checkpoint.
    return Intervals(intervals.log_steps, eval_steps, intervals.checkpoint_steps or eval_steps)


def _selection_loss(plan: FinetunePlan) -> Callable[[dict[str, float]], float | None]:
    name = plan.recipe.selection.score or plan.task.main_score

    def selection_loss(scores: dict[str, float]) -> float | None:
        if not scores:
            return None
        value = scores[f"eval/{name}"]
        return value if name == "loss" else -value

    return selection_loss


def _evaluation(
    plan: FinetunePlan, engine: Any, splits: dict[str, Tokenised], device: torch.device, tracker: Tracker
) -> Evaluation:
    def run_evaluation(step: int, check_in: Callable[[], None]) -> dict[str, float]:
        values = {}
        for name in plan.scored_splits:
            split = splits[name]
            results = evaluate_split(
                plan.system,
                engine,
                split,
                batch_size=plan.recipe.intervals.eval_batch_size,
                device=device,
                check_in=check_in,
            )
            group = plan.tag_group(name)
            values |= {f"{group}/loss": results.loss, f"{group}/loss_samples": results.loss_samples}
            values |= {f"{group}/{score}": value for score, value in results.scores.values.items()}
            if plan.recipe.intervals.outputs and ranks.is_main():
                shown = shown_outputs(split, plan.system, results, plan.recipe.intervals.outputs)
                tracker.text(step, f"{group}/outputs", shown)
        return values

    return run_evaluation


def _save_files(plan: FinetunePlan, run: RunDir, config: Any, splits: dict[str, Tokenised]) -> None:
    plan.system.save_files(config, run.model)
    if plan.recipe.data.split is None:
        return
    # A split by hash is made by this run only. Its ids are written, so that others can use the same split.
    directory = run.path / "splits"
    with disk_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
    for name, split in splits.items():
        write_atomic(directory / f"{name}.ids.txt", "".join(f"{i}\n" for i in split.row_ids()))
