"""One loop for pre-training and fine-tuning: when to step, log, evaluate, save and end."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from bnb_ds.checkpoint.store import CheckpointWriter
from bnb_ds.data.loader import StepLoader
from bnb_ds.distributed import ranks
from bnb_ds.train.early_stopping import EarlyStopping
from bnb_ds.train.phases import Phases
from bnb_ds.train.spikes import SpikeDetector
from bnb_ds.train.step import StepStats, TrainStep
from bnb_ds.train.tracking import Tracker


@dataclass(frozen=True)
class LoopSettings:
    """When the loop does what; all in steps."""

    total_steps: int
    #: this launch ends here (with a checkpoint); ``total_steps`` unless the launch is time-limited
    stop_step: int
    log_steps: int
    eval_steps: int
    checkpoint_steps: int
    #: 0 for never
    histogram_steps: int = 0


class TrainLoop:
    """Runs a training step over a loader's batches.

    Args:
        engine: DeepSpeed engine.
        loader: micro batches of this rank.
        train_step: takes one step.
        evaluate: called between steps with the step; returns tag -> value; every rank calls it.
        tracker: where numbers go.
        writer: writes checkpoints.
        phases: told what is going on.
        peak_flops: FLOP/s of one rank's device.
        stop_reason: why this rank is asked to end, or None; asked once a step.
        spikes: the detector that ``train_step`` uses; its state goes into checkpoints.
        profiler: around each step; traces some of them.
        extra_state: goes into every checkpoint.
        histograms: called where histograms are due; every rank calls it.
        badness: scores of an evaluation -> what the best checkpoint is chosen by, lower being better.
        early_stopping: ends the run where that no longer improves; its state goes into checkpoints.
    """

    def __init__(
        self,
        engine: Any,
        loader: StepLoader,
        train_step: TrainStep,
        evaluate: Callable[[int], dict[str, float]],
        tracker: Tracker,
        settings: LoopSettings,
        writer: CheckpointWriter,
        *,
        phases: Phases,
        peak_flops: float,
        stop_reason: Callable[[], str | None] = lambda: None,
        spikes: SpikeDetector | None = None,
        profiler: Callable[[int], AbstractContextManager[None]] = lambda step: nullcontext(),
        histograms: Callable[[int], None] = lambda step: None,
        extra_state: dict[str, Any] | None = None,
        badness: Callable[[dict[str, float]], float | None] = lambda scores: scores.get("eval/loss"),
        early_stopping: EarlyStopping | None = None,
    ) -> None:
        self._engine = engine
        self._loader = loader
        self._train_step = train_step
        self._evaluate = evaluate
        self._tracker = tracker
        self._settings = settings
        self._writer = writer
        self._phases = phases
        self._peak_flops = peak_flops
        self._stop_reason = stop_reason
        self._spikes = spikes
        self._profiler = profiler
        self._histograms = histograms
        self._extra_state = extra_state or {}
        self._badness = badness
        self._early_stopping = early_stopping

    def run(self, start_step: int, samples_consumed: int) -> int:
        """Train from ``start_step`` to the stop step, or until a rank is asked to end; return the step reached.

        Either way a checkpoint has been written.

        Raises:
            NonFiniteLossError: naming step and samples; the weights are those before the step.
        """
        settings = self._settings
        interval = StepStats()
        self._engine.train()  # a model made from a checkpoint comes in evaluation mode
        num_steps = max(settings.stop_step - start_step, 0)
        batches_of_steps = iter(self._loader.steps(samples_consumed, num_steps))
        step = start_step
        ended = self._early_stopping is not None and self._early_stopping.ended
        while step < settings.stop_step and not ended:
            step += 1
            clock = time.perf_counter()
            with self._phases("data"):
                batches = next(batches_of_steps)
            with self._profiler(step):
                reason = self._stop_reason()
                stats, measures = self._train_step.take(step, batches, stop=reason is not None)
            # Waiting for data counts, evaluation and checkpoints do not.
            stats.seconds = time.perf_counter() - clock
            interval += stats
            samples_consumed += self._loader.global_batch
            stopping = stats.stop_requests > 0
            last = step == settings.stop_step or stopping
            if step % settings.log_steps == 0 or last:
                self._log(step, stats, interval, measures)
                interval = StepStats()
            self._tracker.advance()
            badness = self._badness(self._scores(step, stopping))
            if badness is not None and self._early_stopping is not None:
                ended = self._early_stopping.observe(badness)
            if step % settings.checkpoint_steps == 0 or last or ended:
                self._save(step, samples_consumed, badness)
            if ended:
                self._tracker.say(f"stopped      at step {step}: no better score in the last evaluations")
            if stopping:
                self._announce_stop(step, reason)
                break
        with self._phases("checkpoint"):
            self._writer.finish()
        return step

    def _scores(self, step: int, stopping: bool) -> dict[str, float]:
        settings = self._settings
        # The time of grace before a pre-emption is for the checkpoint.
        if stopping or not (step % settings.eval_steps == 0 or step == settings.total_steps):
            return {}
        with self._phases("evaluation"):
            scores = self._evaluate(step)
        self._tracker.scalars(step, scores)
        if settings.histogram_steps and step % settings.histogram_steps == 0:
            self._histograms(step)
        return scores

    def _log(self, step: int, last: StepStats, interval: StepStats, measures: dict[str, float]) -> None:
        tokens_per_second = interval.tokens / interval.seconds
        mfu = interval.flops / interval.seconds / (self._peak_flops * ranks.world_size())
        steps_left = self._settings.stop_step - step
        seconds_left = steps_left * interval.seconds * last.samples / interval.samples
        line = (
            f"loss {last.loss:.4g}  lr {measures['train/lr']:.3g}  {tokens_per_second:,.0f} tokens/s"
            f"  MFU {mfu:.1%}  ETA {_duration(seconds_left)}"
        )
        for name in ("skipped_overflows", "skipped_spikes"):
            if measures.get(f"train/{name}"):
                line += f"  {name} {measures[f'train/{name}']:g}"
        values = {
            "train/loss": last.loss,
            **measures,
            "perf/tokens_per_second": tokens_per_second,
            "perf/mfu": mfu,
            "data/mask_fraction": interval.masked / max(interval.ordinary, 1),
            "data/ctc_infeasible_fraction": interval.infeasible / interval.samples,
            **self._phases.read(),
        }
        self._tracker.scalars(step, values, line, record={"sample_fingerprint": int(last.fingerprint)})

    def _save(self, step: int, samples_consumed: int, badness: float | None) -> None:
        state = {"samples_consumed": samples_consumed, "badness": badness, **self._extra_state}
        if self._spikes is not None:
            state["spikes"] = self._spikes.state()
        if self._early_stopping is not None:
            state["early_stopping"] = self._early_stopping.state()
        with self._phases("checkpoint"):
            path = self._writer.save(step, state)
        self._tracker.say(f"step {step}  checkpoint {path}")

    def _announce_stop(self, step: int, reason: str | None) -> None:
        reasons = {rank: why for rank, why in enumerate(ranks.gather(reason)) if why}
        told = ", ".join(f"{why} on rank {rank}" for rank, why in reasons.items())
        self._tracker.say(f"stopped      at step {step} ({told}); continue with --resume auto")


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
