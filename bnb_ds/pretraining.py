"""A pre-training run, put together from its recipe and its DeepSpeed JSON."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch

from bnb_ds import checkpoint, distributed, elastic, report
from bnb_ds.batch import PackedBatch
from bnb_ds.checkpoint import CheckpointWriter
from bnb_ds.config import ObjectiveSection, PretrainRecipe
from bnb_ds.ds_config import DsConfig
from bnb_ds.elastic import Resume, plan_resume
from bnb_ds.engine import build_engine
from bnb_ds.evaluation import evaluate
from bnb_ds.export import read_weights
from bnb_ds.flops import TRAINING_FACTOR, forward_flops
from bnb_ds.hardware import peak_flops
from bnb_ds.loader import StepLoader
from bnb_ds.model_factory import build_model
from bnb_ds.modeling import BnbConfig, BnbForConditionalGeneration
from bnb_ds.objectives import Objective, Reconstruction, ReconstructionAndEncoderMlm
from bnb_ds.outputs import disk_errors
from bnb_ds.phases import Phases
from bnb_ds.plan import Plan, model_class
from bnb_ds.profiling import StepProfiler
from bnb_ds.run_dir import RunDir
from bnb_ds.samples import PretrainSamples
from bnb_ds.schedule import learning_rate_multiplier
from bnb_ds.shards import TokenShards
from bnb_ds.spikes import SpikeDetector
from bnb_ds.stopping import StopRequest
from bnb_ds.tokenization import load_tokenizer, save_tokenizer
from bnb_ds.tracking import Tracker
from bnb_ds.train_loop import LoopSettings, TrainLoop
from bnb_ds.train_step import TrainStep
from bnb_ds.watchdog import Watchdog
from bnb_ds.watching import log_histograms, reconstruction_table

_TIMEOUT_MARGIN_SECONDS = 30


@dataclass(frozen=True)
class Launch:
    """What one launch is asked to do, beyond the settings of the run."""

    #: ``never``, ``auto`` or a path; see :meth:`bnb_ds.run_dir.RunDir.find_resume`
    resume: str = "never"
    #: start from the weights of the checkpoint with a fresh optimizer
    weights_only: bool = False
    #: end after that step, with a checkpoint; the schedule stays that of the whole run
    stop_at: int | None = None
    #: first and last step to trace
    profile_steps: tuple[int, int] | None = None


def pretrain(plan: Plan, launch: Launch) -> None:
    """Run pre-training in this process, one of ``plan.ds_config.world_size`` ranks."""
    faults = plan.recipe.faults
    # Before anything slow: a request to end that comes early is honoured at the first step.
    with StopRequest() as stop:
        # The guardians, who can tell which rank is the cause, come before the time-out of the collective operations.
        device = distributed.init(timedelta(seconds=faults.hang_seconds + _TIMEOUT_MARGIN_SECONDS))
        try:
            with Watchdog(faults.silence_seconds, faults.hang_seconds) as watchdog:
                run_in_job(plan, launch, device, watchdog, stop)
        except BaseException:
            distributed.shutdown(after_error=True)
            raise
    distributed.shutdown()


def run_in_job(plan: Plan, launch: Launch, device: torch.device, watchdog: Watchdog, stop: StopRequest) -> None:
    """Pre-train in a process group that exists already."""
    recipe = plan.recipe
    watchdog.mark("start")
    run = RunDir(recipe, plan.ds_config, plan.train_shards.fingerprint)
    resume, notes = distributed.on_main(lambda: _choose_resume(run, plan.ds_config, launch))
    # The weights of a new run are a pure function of the seed, the same on every rank.
    torch.manual_seed(recipe.seed)
    model = build_model(recipe.model, plan.train_shards, recipe.data.max_length, model_class(recipe.objective))
    train, heldout = (plan.samples(shards, model.config) for shards in (plan.train_shards, plan.heldout_shards))
    total_steps = plan.total_steps(len(train))
    num_parameters = report.count_parameters(model)  # before ZeRO stage 3 takes them apart
    engine, kernels, state = _build_and_load(plan, model, device, total_steps, resume)
    stop_step = min(launch.stop_at or total_steps, total_steps)
    distributed.on_main(lambda: _prepare_run_dir(run, model, plan.train_shards, state["step"], launch.weights_only))
    distributed.require_shared(run.path)
    peak, peak_source = peak_flops(device, plan.ds_config.precision)
    tracker = Tracker(run.tensorboard, start_step=state["step"], total_steps=total_steps)
    origin = f", {resume.describe(plan.ds_config)}" if resume else ""
    for line in (
        *notes,
        *report.derived(plan, model.config, num_parameters, len(train), total_steps),
        f"kernels      {kernels}",
        f"peak         {peak / 1e12:.3g} TFLOP/s per rank ({peak_source})",
        f"start        step {state['step']}{origin}; this launch ends at step {stop_step}",
    ):
        tracker.say(line)
    profiler = StepProfiler(*launch.profile_steps or (0, -1), run.path / "profile", tracker.say)
    loop = _build_loop(
        plan,
        _loop_settings(recipe, total_steps, stop_step),
        run,
        engine,
        state,
        tracker,
        Phases(device, watchdog.mark),
        samples=(train, heldout),
        peak=peak,
        stop=stop,
        profiler=profiler,
    )
    reached = loop.run(state["step"], state["samples_consumed"])
    profiler.close()
    tracker.say(f"done         step {reached} of {total_steps}; watch with: tensorboard --logdir {run.tensorboard}")
    tracker.close()


def _objective(section: ObjectiveSection) -> Objective:
    if section.encoder_mlm_weight:
        return ReconstructionAndEncoderMlm(section.encoder_mlm_weight)
    return Reconstruction()


def _choose_resume(run: RunDir, ds_config: DsConfig, launch: Launch) -> tuple[Resume | None, list[str]]:
    found, notes = run.find_resume(launch.resume, weights_only=launch.weights_only)
    if found is None:
        return None, notes
    return plan_resume(found, ds_config, weights_only=launch.weights_only), notes


def _build_and_load(
    plan: Plan, model: BnbForConditionalGeneration, device: torch.device, total_steps: int, resume: Resume | None
) -> tuple[Any, str, dict[str, Any]]:
    """The engine, its kernels in words, and the loop's state: that of the checkpoint, or of a new run."""
    state = {"step": 0, "samples_consumed": 0}
    if resume is not None:
        state = checkpoint.read_state(resume.checkpoint)
    if resume is not None and resume.way == "weights only":
        model.load_state_dict(read_weights(resume.checkpoint))
        # The optimizer's count of updates begins anew; the schedule goes on.
        state["rate_offset"] = state["step"]
    multiplier = learning_rate_multiplier(total_steps, **plan.recipe.schedule.model_dump())
    offset = state.get("rate_offset", 0)
    engine, kernels = build_engine(
        model,
        plan.ds_config,
        device,
        lambda step: multiplier(step + offset),
        load_universal=resume is not None and resume.way == "universal",
    )
    if resume is not None and resume.way != "weights only":
        elastic.load(engine, resume)
    return engine, kernels, state


def _build_loop(
    plan: Plan,
    settings: LoopSettings,
    run: RunDir,
    engine: Any,
    state: dict[str, Any],
    tracker: Tracker,
    phases: Phases,
    *,
    samples: tuple[PretrainSamples, PretrainSamples],
    peak: float,
    stop: StopRequest,
    profiler: StepProfiler,
) -> TrainLoop:
    recipe = plan.recipe
    intervals = recipe.intervals
    train, heldout = samples
    spikes = None
    if recipe.spikes.factor is not None:
        spikes = SpikeDetector(recipe.spikes.factor, recipe.spikes.window_steps, **state.get("spikes", {}))
    train_step = TrainStep(
        engine,
        _objective(recipe.objective),
        _training_flops(engine.module.config),
        device=phases.device,
        seed=recipe.seed,
        phases=phases,
        spikes=spikes,
        records=run.path,
    )
    return TrainLoop(
        engine,
        _loader(train, plan, phases.device),
        train_step,
        _evaluation(engine, heldout, plan, phases.device, tracker),
        tracker,
        settings,
        CheckpointWriter(
            engine, run.checkpoints, intervals.keep_checkpoints, background=intervals.background_checkpoints
        ),
        phases=phases,
        peak_flops=peak,
        stop_reason=lambda: stop.reason,
        spikes=spikes,
        profiler=profiler,
        histograms=lambda step: log_histograms(engine, tracker, step),
        extra_state={"rate_offset": state.get("rate_offset", 0)},
    )


def _loader(train: PretrainSamples, plan: Plan, device: torch.device) -> StepLoader:
    return StepLoader(
        train,
        seed=plan.recipe.seed,
        micro_batch=plan.ds_config.micro_batch,
        accumulation_steps=plan.ds_config.accumulation_steps,
        rank=distributed.rank(),
        world_size=plan.ds_config.world_size,
        device=device,
        **plan.recipe.loader.model_dump(),
    )


def _evaluation(
    engine: Any, heldout: PretrainSamples, plan: Plan, device: torch.device, tracker: Tracker
) -> Callable[[int], dict[str, float]]:
    intervals = plan.recipe.intervals
    tokenizer = load_tokenizer(plan.train_shards.tokenizer_dir)

    def run_evaluation(step: int) -> dict[str, float]:
        def show(batch: PackedBatch, outputs: list[list[int]]) -> None:
            texts = reconstruction_table(batch, outputs[: intervals.reconstructions], tokenizer)
            tracker.text(step, "eval/reconstructions", texts)

        return evaluate(
            engine,
            heldout,
            num_samples=intervals.eval_samples,
            micro_batch=plan.ds_config.micro_batch,
            device=device,
            show=show if intervals.reconstructions else None,
        )

    return run_evaluation


def _loop_settings(recipe: PretrainRecipe, total_steps: int, stop_step: int) -> LoopSettings:
    intervals = recipe.intervals
    return LoopSettings(
        total_steps=total_steps,
        stop_step=stop_step,
        log_steps=intervals.log_steps,
        eval_steps=intervals.eval_steps,
        checkpoint_steps=intervals.checkpoint_steps,
        histogram_steps=intervals.histogram_steps,
    )


def _training_flops(config: BnbConfig) -> Callable[[PackedBatch], int]:
    def training_flops(batch: PackedBatch) -> int:
        return TRAINING_FACTOR * forward_flops(config, batch.source_lengths, batch.decoder_lengths)

    return training_flops


def _prepare_run_dir(
    run: RunDir, model: BnbForConditionalGeneration, shards: TokenShards, start_step: int, weights_only: bool
) -> None:
    with disk_errors(run.path):
        # What an export needs besides the weights, so that it needs no shards.
        model.config.save_pretrained(run.model)
        save_tokenizer(load_tokenizer(shards.tokenizer_dir), run.model)
    run.record_launch(start_step, weights_only=weights_only)
