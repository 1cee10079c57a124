"""A pre-training run: put the job together from its plan, and run it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from bnb_ds.checkpoint.pooler import keep_pooler
from bnb_ds.checkpoint.run_dir import RunDir
from bnb_ds.config.sections import PretrainRecipe
from bnb_ds.data.batch import PackedBatch
from bnb_ds.data.samples import PretrainSamples
from bnb_ds.data.tokenization import save_tokenizer
from bnb_ds.model.configuration import BnbConfig
from bnb_ds.model.flops import TRAINING_FACTOR, forward_flops
from bnb_ds.model_factory import build_model
from bnb_ds.pretrain.evaluation import evaluate, shown_reconstructions
from bnb_ds.pretrain.plan import PretrainPlan, decide, describe_plan, model_class, run_directory
from bnb_ds.train import estimates
from bnb_ds.train.job import Job, Process, hold, run_job, run_process
from bnb_ds.train.launch import Launch
from bnb_ds.train.loop import Evaluation, Intervals
from bnb_ds.train.objectives import Glancing, Objective, ObjectiveSettings, Reconstruction, ReconstructionAndEncoderMlm
from bnb_ds.train.tracking import Tracker


def pretrain(plan: PretrainPlan, launch: Launch) -> None:
    """Pre-train. This process is one of ``plan.ds_config.world_size`` ranks."""
    run_process(plan.recipe.faults, lambda process: _pretrain(plan, launch, process))


def _pretrain(plan: PretrainPlan, launch: Launch, process: Process) -> None:
    recipe = plan.recipe
    process.watchdog.mark("start")
    run = run_directory(plan)
    hold(run.path, process)
    decision = decide(plan, launch, progress=process.watchdog.tick)
    assert decision is not None  # the first error has ended the launch
    train, heldout = decision.train, decision.heldout
    # The weights of a new run are a pure function of the seed, the same on every rank.
    torch.manual_seed(recipe.seed)
    model = build_model(recipe.model, plan.train_shards, recipe.data.max_length, model_class(recipe.objective))
    total_steps = plan.total_steps(len(train))
    num_parameters = estimates.count_parameters(model)  # before ZeRO stage 3 partitions the parameters
    config = model.config
    job = Job(
        recipe=recipe,
        ds_config=plan.ds_config,
        run=run,
        model=model,
        objective=_objective(recipe, total_steps),
        train=train,
        total_steps=total_steps,
        intervals=Intervals.of(recipe.intervals),
        batch_flops=_training_flops(config),
        evaluation=lambda engine, tracker: _evaluation(engine, heldout, plan, process.device, tracker),
        save_model_files=lambda: _save_model_files(run, recipe, config, plan.tokenizer),
        lines=[*describe_plan(plan, config, num_parameters, train), *decision.about_slots],
    )
    run_job(job, launch, process, decision.start)


def _objective(recipe: PretrainRecipe, total_steps: int) -> Objective:
    ratio = None
    if recipe.glancing is not None:
        ratio = Glancing(partial(recipe.glancing.ratio, total_steps=total_steps), recipe.glancing.mask_predict)
    settings = ObjectiveSettings(ratio, mixed_training=recipe.mixed_training)
    if recipe.objective.encoder_mlm_weight:
        return ReconstructionAndEncoderMlm(recipe.objective.encoder_mlm_weight, settings)
    return Reconstruction(settings)


def _evaluation(
    engine: Any, heldout: PretrainSamples, plan: PretrainPlan, device: torch.device, tracker: Tracker
) -> Evaluation:
    intervals = plan.recipe.intervals

    def run_evaluation(step: int, check_in: Callable[[], None]) -> dict[str, float]:
        def show(batch: PackedBatch, outputs: list[list[int]]) -> None:
            texts = shown_reconstructions(batch, outputs[: intervals.reconstructions], plan.tokenizer)
            tracker.text(step, "eval/reconstructions", texts)

        return evaluate(
            engine,
            heldout,
            num_samples=intervals.eval_samples,
            micro_batch=plan.ds_config.micro_batch,
            device=device,
            tokenizer=plan.tokenizer,
            show=show if intervals.reconstructions else None,
            check_in=check_in,
        )

    return run_evaluation


def _training_flops(config: BnbConfig) -> Callable[[PackedBatch], int]:
    def training_flops(batch: PackedBatch) -> int:
        return TRAINING_FACTOR * forward_flops(config, batch.source_lengths, batch.decoder_lengths)

    return training_flops


def _save_model_files(
    run: RunDir, recipe: PretrainRecipe, config: BnbConfig, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Save the configuration, the tokenizer and BERT's pooler, so that an export needs no shards and no checkpoint."""
    config.save_pretrained(run.model)
    save_tokenizer(tokenizer, run.model)
    keep_pooler(recipe.model, run.model)
