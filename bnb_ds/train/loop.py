"""The training loop of pre-training and fine-tuning. It decides when to log, evaluate, save and stop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from bnb_ds.checkpoint import store
from bnb_ds.checkpoint.store import CheckpointWriter
from bnb_ds.config.section import Section
from bnb_ds.data.batch import PackedBatch
from bnb_ds.data.loader import StepLoader
from bnb_ds.distributed import ranks
from bnb_ds.errors import LossSpikeError
from bnb_ds.train.early_stopping import EarlyStopping
from bnb_ds.train.hardware import Peak
from bnb_ds.train.phases import Phases
from bnb_ds.train.spikes import SpikeDetector
from bnb_ds.train.step import StepStats, TrainStep
from bnb_ds.train.tracking import Tracker

#: (step, function to call between batches, on all ranks together) -> scores, tag -> value
Evaluation = Callable[[int, Callable[[], None]], dict[str, float]]


class _AskedToEnd(Exception):
    """A rank was asked to stop while all ranks evaluate."""


@dataclass(frozen=True)
class Intervals:
    """How often the loop logs, evaluates and saves, in steps."""

    log_steps: int
    eval_steps: int
    #: every evaluation also saves a checkpoint
    checkpoint_steps: int
    #: 0 for never
    histogram_steps: int = 0

    @classmethod
    def of(cls, section: Section) -> Intervals:
        """The intervals of a recipe's section, which has fields of the same names."""
        return cls(**{field.name: getattr(section, field.name) for field in fields(cls)})


@dataclass(kw_only=True)
class TrainLoop:
    """Trains on the batches of a loader, step by step."""

    #: DeepSpeed engine
    engine: Any
    #: micro batches of this rank
    loader: StepLoader
    #: takes one step
    train_step: TrainStep
    #: scores the model; every rank calls it
    evaluate: Evaluation
    #: logs the numbers
    tracker: Tracker
    #: writes checkpoints
    writer: CheckpointWriter
    #: measures the phases of the loop
    phases: Phases
    #: the speed of one rank's GPU; None on a CPU
    peak: Peak | None
    intervals: Intervals
    #: steps of the whole run
    total_steps: int
    #: this launch ends after this step, with a checkpoint; equals ``total_steps`` without ``--stop-at``
    stop_step: int
    #: why this rank was asked to stop, or None; called once a step
    stop_reason: Callable[[], str | None] = lambda: None
    #: the detector that ``train_step`` uses; its state goes into checkpoints
    spikes: SpikeDetector | None = None
    #: wraps each step, and traces some of them
    profiler: Callable[[int], AbstractContextManager[None]] = lambda step: nullcontext()
    #: logs histograms; every rank calls it
    histograms: Callable[[int], None] = lambda step: None
    #: saved in every checkpoint
    extra_state: dict[str, Any] = field(default_factory=dict)
    #: scores of an evaluation -> the loss that selects the best checkpoint, lower is better; None without scores
    selection_loss: Callable[[dict[str, float]], float | None] = lambda scores: scores.get("eval/loss")
    #: ends the run if the selection loss no longer improves; its state goes into checkpoints
    early_stopping: EarlyStopping | None = None
    #: after `run`: nothing of the whole run is left to do, evaluations included
    finished: bool = field(default=False, init=False)
    #: after `run`: a rank was asked to stop, which has been said
    stopped: bool = field(default=False, init=False)

    def run(self, start_step: int, samples_consumed: int, *, evaluation_due: bool = False) -> int:
        """Train from ``start_step`` to ``stop_step``, or until a rank is asked to stop; return the step reached.

        The loop ends with a checkpoint of the step reached. A step first updates the weights, then saves a checkpoint,
        then evaluates; the score is added to that checkpoint. So if an evaluation fails, no step is lost.

        Args:
            start_step: number of steps already done.
            samples_consumed: number of samples that those steps have read.
            evaluation_due: True if a launch was stopped before it evaluated the checkpoint of ``start_step``.

        Raises:
            NonFiniteLossError: the loss or gradient of a step is not finite. The message names the step and its
                samples; the weights are unchanged.
            LossSpikeError: too many steps in a row are loss spikes, and the run cannot go back again.
        """
        self.engine.train()  # a model loaded from a checkpoint is in evaluation mode
        step = start_step
        interval = StepStats()
        stopping = evaluation_due and not self._evaluate(step, samples_consumed)
        batches_of_steps = self._steps(samples_consumed, self.stop_step - start_step)
        while step < self.stop_step and not stopping and not self._ended:
            step += 1
            stats, measures, reason = self._take_step(step, batches_of_steps)
            interval += stats
            samples_consumed += self.loader.global_batch
            stopping = stats.stop_requests > 0
            last = step == self.stop_step or stopping
            if step % self.intervals.log_steps == 0 or last:
                self._log(step, stats, interval, measures)
                interval = StepStats()
            self.tracker.advance()
            if self.spikes is not None and self.spikes.livelocked and not stopping:
                step = self._go_back(step)
                batches_of_steps = self._steps(samples_consumed, self.stop_step - step)
                continue
            evaluation_due = step % self.intervals.eval_steps == 0 or step == self.total_steps
            if evaluation_due or last or step % self.intervals.checkpoint_steps == 0:
                self._save(step, samples_consumed, evaluation_due=evaluation_due)
            if stopping:
                # Before a pre-emption, time may suffice only for the checkpoint. The next launch evaluates it.
                self._announce_stop(step, reason)
            elif evaluation_due:
                stopping = not self._evaluate(step, samples_consumed)
        with self.phases("checkpoint"):
            self.writer.finish()
        self.stopped = stopping
        self.finished = not stopping and (step >= self.total_steps or self._ended)
        return step

    def _steps(self, samples_consumed: int, number: int) -> Iterator[list[PackedBatch]]:
        told = {} if self.phases.stragglers is None else {"on_loaded": self.phases.stragglers.loaded}
        return iter(self.loader.steps(samples_consumed, max(number, 0), **told))

    def _go_back(self, step: int) -> int:
        """Load the newest checkpoint from before a row of spikes. Training continues with the samples after them.

        If the run must go back again, it takes an older checkpoint, because the first one did not help.

        Returns:
            The step of the checkpoint.

        Raises:
            LossSpikeError: there is no such checkpoint, or the run has already gone back ``max_returns`` times.
        """
        spikes = self.spikes
        with self.phases("checkpoint", step):
            self.writer.finish()
            found = ranks.on_main(
                lambda: self.writer.newest_before(min([step - spikes.in_row + 1, *spikes.returned_to]))
            )
            if found is None or len(spikes.returned_to) >= spikes.max_returns:
                raise ranks.reported_by_rank_0(
                    LossSpikeError(
                        f"step {step}: the last {spikes.in_row} steps are loss spikes, and the run has gone back"
                        f" {len(spikes.returned_to)} times; lower the learning rate, then continue from an older"
                        " checkpoint with --resume PATH --resume-weights-only (intervals.keep_checkpoints keeps more)"
                    )
                )
            store.load(self.engine, found)
        state = store.read_state(found)
        spikes.go_back(state["step"], state.get("spikes", {}).get("recent", ()))
        if self.early_stopping is not None:
            self.early_stopping.restore(state.get("early_stopping"))
        self.tracker.go_back(state["step"])
        self.tracker.say(
            f"spikes       too many in a row at step {step}; the run goes back to {found} and skips the samples read"
            f" since then (return {len(spikes.returned_to)} of {spikes.max_returns})"
        )
        self.engine.train()
        return state["step"]

    @property
    def _ended(self) -> bool:
        return self.early_stopping is not None and self.early_stopping.ended

    def _take_step(
        self, step: int, batches_of_steps: Iterator[list[PackedBatch]]
    ) -> tuple[StepStats, dict[str, float], str | None]:
        """Take one step. Returns its counts, its measures, and why this rank was asked to stop (or None)."""
        clock = time.perf_counter()
        with self.phases("data", step):
            batches = next(batches_of_steps)
        with self.profiler(step):
            reason = self.stop_reason()
            stats, measures = self.train_step.take(step, batches, stop=reason is not None)
        # The time of a step includes waiting for data, but not evaluations and checkpoints.
        stats.seconds = time.perf_counter() - clock
        if self.phases.stragglers is not None:
            for line in self.phases.stragglers.step_done(step, stats.seconds):
                self.tracker.say(line)
        return stats, measures, reason

    def _evaluate(self, step: int, samples_consumed: int) -> bool:
        """Score the checkpoint of a step. Returns False if a rank was asked to stop first; it is then still due."""
        try:
            with self.phases("evaluation", step):
                scores = self.evaluate(step, lambda: self._check_in(step))
        except _AskedToEnd:
            self._announce_stop(step, self.stop_reason())
            return False
        self.tracker.evaluation(step, scores)
        if self.intervals.histogram_steps and step % self.intervals.histogram_steps == 0:
            self.histograms(step)
        selection_loss = self.selection_loss(scores)
        is_scored = selection_loss is not None
        if selection_loss is not None and not math.isfinite(selection_loss):
            selection_loss = None  # such a checkpoint is never the best, and JSON cannot hold the number
        if is_scored and self.early_stopping is not None:
            self.early_stopping.observe(selection_loss)
        with self.phases("checkpoint", step):
            self.writer.score(step, self._state(samples_consumed, evaluation_due=False, selection_loss=selection_loss))
        if self._ended:
            self.tracker.say(f"ends early   at step {step}: the last evaluations brought no better score")
        return True

    def _check_in(self, step: int) -> None:
        """Note progress between two batches of an evaluation, and end it if a rank was asked to stop.

        All ranks call this together.
        """
        self.phases.note("evaluation", step)
        asked = torch.tensor([float(self.stop_reason() is not None)], device=self.phases.device)
        if float(ranks.all_sum(asked)) > 0:
            raise _AskedToEnd

    def _log(self, step: int, last: StepStats, interval: StepStats, measures: dict[str, float]) -> None:
        tokens_per_second = interval.tokens / interval.seconds
        steps_left = self.stop_step - step
        seconds_left = steps_left * interval.seconds * last.samples / interval.samples
        speeds, mfu = {"usage/tokens_per_second": tokens_per_second}, ""
        if self.peak is not None:
            speeds["usage/mfu"] = interval.flops / interval.seconds / (self.peak.flops * ranks.world_size())
            mfu = f"  MFU {speeds['usage/mfu']:.1%}"
        lowest = f"{measures['train/lr_min']:.3g} to " if "train/lr_min" in measures else ""
        line = (
            f"loss {last.loss:.4g}  lr {lowest}{measures['train/lr']:.3g}  {tokens_per_second:,.0f} tokens/s{mfu}"
            f"  ETA {_duration(seconds_left)}"
        )
        for name in ("skipped_overflows", "skipped_spikes", "spike_returns"):
            if measures.get(f"train/{name}"):
                line += f"  {name} {measures[f'train/{name}']:g}"
        values = {
            "train/loss": last.loss,
            **measures,
            **speeds,
            "train/mask_fraction": interval.masked / max(interval.ordinary, 1),
            "train/ctc_infeasible_fraction": interval.infeasible / interval.samples,
            **self.phases.read(),
        }
        self.tracker.scalars(step, values, line, record={"sample_fingerprint": int(last.fingerprint)})

    def _state(self, samples_consumed: int, *, evaluation_due: bool, selection_loss: float | None) -> dict[str, Any]:
        """The state of the loop that a checkpoint saves for the next launch."""
        state = {
            "samples_consumed": samples_consumed,
            "evaluation_due": evaluation_due,
            "selection_loss": selection_loss,
            **self.extra_state,
        }
        if self.spikes is not None:
            state["spikes"] = self.spikes.state()
        if self.early_stopping is not None:
            state["early_stopping"] = self.early_stopping.state()
        return state

    def _save(self, step: int, samples_consumed: int, *, evaluation_due: bool) -> None:
        with self.phases("checkpoint", step):
            state = self._state(samples_consumed, evaluation_due=evaluation_due, selection_loss=None)
            path = self.writer.save(step, state)
        self.tracker.say(f"step {step}  checkpoint {path}")

    def _announce_stop(self, step: int, reason: str | None) -> None:
        reasons = {rank: why for rank, why in enumerate(ranks.gather(reason)) if why}
        told = ", ".join(f"{why} on rank {rank}" for rank, why in reasons.items())
        self.tracker.say(f"stopped      at step {step} ({told}); continue with --resume auto")


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
