"""Run a training job: process group, engine, loop, tracking, checkpoints.

:mod:`bnb_ds.pretrain.run` and :mod:`bnb_ds.finetune.run` put a job together. This module runs it.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bnb_ds.checkpoint import store
from bnb_ds.checkpoint.lasting import lasting_ds_config, lasting_recipe
from bnb_ds.checkpoint.resume import Resume, load_resumed
from bnb_ds.checkpoint.run_dir import RunDir
from bnb_ds.checkpoint.run_lock import RunLock
from bnb_ds.checkpoint.start import Start, refuse_unwritable
from bnb_ds.checkpoint.store import CheckpointWriter
from bnb_ds.checkpoint.weights import read_weights
from bnb_ds.common.files import disk_errors
from bnb_ds.config.deepspeed import DsConfig
from bnb_ds.config.loading import flattened
from bnb_ds.config.sections import FaultSection, TrainingRecipe
from bnb_ds.data.batch import PackedBatch
from bnb_ds.data.loader import SampleSource, StepLoader
from bnb_ds.distributed import ranks
from bnb_ds.distributed.stopping import StopRequest
from bnb_ds.distributed.stragglers import Stragglers
from bnb_ds.distributed.watchdog import Watchdog
from bnb_ds.loggers.choice import find_loggers
from bnb_ds.loggers.logger import RunInfo
from bnb_ds.train.early_stopping import EarlyStopping
from bnb_ds.train.engine import build_engine
from bnb_ds.train.hardware import Peak, peak_of
from bnb_ds.train.heartbeat import Heartbeat
from bnb_ds.train.launch import Launch
from bnb_ds.train.loop import Evaluation, Intervals, TrainLoop
from bnb_ds.train.objectives import Objective
from bnb_ds.train.parameters.groups import ALIKE, Rates
from bnb_ds.train.parameters.unfreezing import Beginnings, Unfreezing
from bnb_ds.train.phases import Phases
from bnb_ds.train.profiling import StepProfiler
from bnb_ds.train.schedule import learning_rate_multiplier
from bnb_ds.train.spikes import SpikeDetector
from bnb_ds.train.step import TrainStep
from bnb_ds.train.tracking import Tracker, log_histograms

#: time-out of a collective operation. It is a backstop only: the watchdog normally ends a job that hangs.
_COLLECTIVE_TIMEOUT = timedelta(days=7)


@dataclass(frozen=True)
class Process:
    """This rank's part in a job."""

    device: torch.device
    watchdog: Watchdog
    stop: StopRequest
    #: closed when the job is over; keeps the lock of the output directory until then
    held: ExitStack


@dataclass(frozen=True)
class Job:
    """The parts of a training job: model, data, objective, evaluation."""

    recipe: TrainingRecipe
    ds_config: DsConfig
    run: RunDir
    model: nn.Module
    objective: Objective
    train: SampleSource
    total_steps: int
    intervals: Intervals
    #: matrix FLOPs of training on a micro batch
    batch_flops: Callable[[PackedBatch], int]
    #: engine, tracker -> the function that scores the model
    evaluation: Callable[[Any, Tracker], Evaluation]
    #: writes the files that an export needs besides the weights; called on rank 0
    save_model_files: Callable[[], None]
    #: lines that describe the run, for the user
    lines: Iterable[str] = ()
    #: scores -> the loss that selects the best checkpoint, lower is better; None without scores
    selection_loss: Callable[[dict[str, float]], float | None] = lambda scores: scores.get("eval/loss")
    early_stopping: EarlyStopping | None = None
    #: whether some weights of the model keep their values
    has_frozen: bool = False
    #: how the optimizer's parameters are grouped
    rates: Rates = ALIKE
    #: when layers begin to learn; needs rates by height. None: at the first step
    beginnings: Beginnings | None = None


def run_process(faults: FaultSection, body: Callable[[Process], None]) -> None:
    """Join the process group, start the watchdog, call ``body``, and leave the group."""
    # This comes before any slow work, so that an early request to stop takes effect at the first step.
    with StopRequest() as stop:
        # The watchdog ends a job that makes no progress, and names the rank that causes this. A rank may wait much
        # longer than `hang_seconds` for a rank that makes progress, for example while rank 0 tokenises.
        device = ranks.init(timedelta(seconds=faults.hang_seconds), _COLLECTIVE_TIMEOUT)
        try:
            with Watchdog(faults.silence_seconds, faults.hang_seconds) as watchdog, ExitStack() as held:
                body(Process(device, watchdog, stop, held))
        except BaseException:
            ranks.shutdown(after_error=True)
            raise
    ranks.shutdown()


def hold(path: Path, process: Process) -> None:
    """Lock the output directory until the job is over.

    Raises:
        ConfigError: it cannot be written, or another launch is writing there.
    """

    def lock() -> None:
        refuse_unwritable(path)
        process.held.enter_context(RunLock(path))

    ranks.on_main(lock)


def run_job(job: Job, launch: Launch, process: Process, start: Start) -> bool:
    """Train, and return whether the run is finished. ``start`` is where `bnb_ds.checkpoint.start` lets it begin."""
    run, total_steps, resume = job.run, job.total_steps, start.resume
    engine, kernels, state = _build_and_load(job, process.device, resume)
    if job.early_stopping is not None:
        job.early_stopping.restore(state.get("early_stopping"))
    stop_step = min(launch.stop_at or total_steps, total_steps)
    ranks.on_main(lambda: _prepare_run_dir(job, state["step"], launch.weights_only))
    ranks.require_shared(run.path)
    # A step that does not train all weights does less than the FLOPs that MFU counts.
    peak = None if job.has_frozen else peak_of(process.device, job.ds_config.precision)
    evaluation_due = state.get("evaluation_due", False)
    tracker = _open_tracker(job, state["step"], evaluation_due)
    origin = f", {resume.describe(job.ds_config)}" if resume else ""
    for line in (
        *start.notes,
        *job.lines,
        f"kernels      {kernels}",
        *([f"peak         {peak.flops / 1e12:.3g} TFLOP/s per rank ({peak.source})"] if peak else []),
        f"start        step {state['step']}{origin}; this launch ends at step {stop_step}",
    ):
        tracker.say(line)
    profiler = StepProfiler(*launch.profile_steps or (0, -1), run.path / "profile", tracker.say)
    stragglers = Stragglers(process.device, **job.recipe.stragglers.model_dump())
    phases = Phases(process.device, process.watchdog.mark, stragglers)
    loop = _build_loop(
        job, engine, state, tracker, phases, stop_step=stop_step, peak=peak, stop=process.stop, profiler=profiler
    )
    try:
        with Heartbeat(tracker, phases):
            reached = loop.run(state["step"], state["samples_consumed"], evaluation_due=evaluation_due)
        profiler.close()
    except BaseException:
        tracker.close("failed")
        raise
    curves = ""
    if "tensorboard" in job.recipe.tracking.loggers:
        curves = f"; see the curves: tensorboard --logdir {shlex.quote(str(run.tensorboard))}"
    if not loop.stopped:
        tracker.say(f"done         step {reached} of {total_steps}{curves}")
    tracker.close("done" if loop.finished else "stopped")
    return loop.finished


def _open_tracker(job: Job, start_step: int, evaluation_due: bool) -> Tracker:
    """The tracker of this rank. If a logger of rank 0 cannot start, every rank raises its error."""
    tracking, opened = job.recipe.tracking, []
    run = RunInfo(
        job.run.path,
        tracking.name or job.run.path.absolute().name,
        tracking.project,
        settings=_settings(job, job.recipe.values()),
        # How rows are read is no setting that runs are compared by.
        chosen=frozenset(_settings(job, job.recipe.model_dump(exclude_defaults=True, exclude={"data"}))),
    )
    options = {"start_step": start_step, "total_steps": job.total_steps, "evaluation_due": evaluation_due}

    def open_on_main() -> None:
        opened.append(Tracker(job.run.tensorboard, **options, loggers=find_loggers(tracking.loggers), run=run))

    ranks.on_main(open_on_main)
    return opened[0] if opened else Tracker(job.run.tensorboard, **options)


def _settings(job: Job, recipe: dict[str, Any]) -> dict[str, Any]:
    """What loggers show beside the scores: the settings of a recipe and of the JSON that the training depends on."""
    return {**flattened(lasting_recipe(recipe)), **flattened(lasting_ds_config(job.ds_config.values))}


def _build_and_load(job: Job, device: torch.device, resume: Resume | None) -> tuple[Any, str, dict[str, Any]]:
    """The engine, a description of its kernels, and the state of the loop (from the checkpoint, or of a new run)."""
    state = {"step": 0, "samples_consumed": 0}
    if resume is not None:
        state = store.read_state(resume.checkpoint)
    if resume is not None and (resume.way == "weights only" or (resume.way == "universal" and job.has_frozen)):
        # A universal checkpoint of DeepSpeed holds no frozen weights.
        job.model.load_state_dict(read_weights(resume.checkpoint))
    if resume is not None and resume.way == "weights only":
        # The fresh optimizer counts its updates from 0, but the schedule continues.
        state["rate_offset"] = state["step"]
    multiplier = learning_rate_multiplier(job.total_steps, **job.recipe.schedule.model_dump())
    offset = state.get("rate_offset", 0)
    engine, kernels = build_engine(
        job.model,
        job.ds_config,
        device,
        lambda step: multiplier(step + offset),
        rates=job.rates,
        load_universal=resume is not None and resume.way == "universal",
    )
    if resume is not None and resume.way != "weights only":
        load_resumed(engine, resume)
    return engine, kernels, state


def _build_loop(
    job: Job,
    engine: Any,
    state: dict[str, Any],
    tracker: Tracker,
    phases: Phases,
    *,
    stop_step: int,
    peak: Peak | None,
    stop: StopRequest,
    profiler: StepProfiler,
) -> TrainLoop:
    recipe = job.recipe
    spikes = None
    if recipe.spikes.factor is not None:
        spikes = SpikeDetector(**recipe.spikes.model_dump(), **state.get("spikes", {}))
    train_step = TrainStep(
        engine,
        job.objective,
        job.batch_flops,
        device=phases.device,
        seed=recipe.seed,
        phases=phases,
        spikes=spikes,
        records=job.run.path,
        unfreezing=None if job.beginnings is None else Unfreezing(engine, job.beginnings),
    )
    intervals = recipe.intervals
    writer = CheckpointWriter(
        engine, job.run.checkpoints, intervals.keep_checkpoints, background=intervals.background_checkpoints
    )
    return TrainLoop(
        engine=engine,
        loader=_loader(job, phases.device),
        train_step=train_step,
        evaluate=job.evaluation(engine, tracker),
        tracker=tracker,
        writer=writer,
        phases=phases,
        peak=peak,
        intervals=job.intervals,
        total_steps=job.total_steps,
        stop_step=stop_step,
        stop_reason=lambda: stop.reason,
        spikes=spikes,
        profiler=profiler,
        histograms=lambda step: log_histograms(engine, tracker, step),
        extra_state={"rate_offset": state.get("rate_offset", 0)},
        selection_loss=job.selection_loss,
        early_stopping=job.early_stopping,
    )


def _loader(job: Job, device: torch.device) -> StepLoader:
    return StepLoader(
        job.train,
        seed=job.recipe.seed,
        micro_batch=job.ds_config.micro_batch,
        accumulation_steps=job.ds_config.accumulation_steps,
        rank=ranks.rank(),
        world_size=job.ds_config.world_size,
        device=device,
        **job.recipe.loader.model_dump(),
    )


def _prepare_run_dir(job: Job, start_step: int, weights_only: bool) -> None:
    with disk_errors(job.run.path):
        job.save_model_files()
    job.run.record_launch(start_step, weights_only=weights_only)
