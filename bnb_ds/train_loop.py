"""One loop for pre-training and fine-tuning."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bnb_ds import checkpoint, distributed
from bnb_ds.batch import PackedBatch
from bnb_ds.engine import take_step
from bnb_ds.errors import NonFiniteLossError
from bnb_ds.loader import StepLoader
from bnb_ds.objectives import Objective
from bnb_ds.randomness import hash64
from bnb_ds.tracking import Tracker

_STREAM_DROPOUT = 0xD209


@dataclass(frozen=True)
class LoopSettings:
    """When the loop does what; all in steps."""

    total_steps: int
    #: this launch ends here (with a checkpoint); ``total_steps`` unless the launch is time-limited
    stop_step: int
    log_steps: int
    eval_steps: int
    checkpoint_steps: int
    keep_checkpoints: int
    seed: int


@dataclass
class StepStats:
    """Global counts of one step or of several added up."""

    loss_sum: float = 0.0
    count: float = 0.0
    tokens: float = 0.0
    ordinary: float = 0.0
    masked: float = 0.0
    infeasible: float = 0.0
    samples: float = 0.0
    flops: float = 0.0
    seconds: float = 0.0

    def __add__(self, other: StepStats) -> StepStats:
        return StepStats(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))


class TrainLoop:
    """Runs an engine over a loader's steps.

    Args:
        engine: DeepSpeed engine.
        loader: micro batches of this rank.
        objective: loss of a micro batch.
        evaluate: called between steps; returns tag -> value; every rank calls it.
        tracker: where numbers go.
        checkpoints: directory of the run's checkpoints.
        device: of this rank.
        batch_flops: matrix FLOPs of training on a micro batch.
        peak_flops: FLOP/s of one rank's device.
    """

    def __init__(
        self,
        engine: Any,
        loader: StepLoader,
        objective: Objective,
        evaluate: Callable[[], dict[str, float]],
        tracker: Tracker,
        settings: LoopSettings,
        *,
        checkpoints: Path,
        device: torch.device,
        batch_flops: Callable[[PackedBatch], int],
        peak_flops: float,
    ) -> None:
        self._engine = engine
        self._loader = loader
        self._objective = objective
        self._evaluate = evaluate
        self._tracker = tracker
        self._settings = settings
        self._checkpoints = checkpoints
        self._device = device
        self._batch_flops = batch_flops
        self._peak_flops = peak_flops

    def run(self, start_step: int, samples_consumed: int) -> int:
        """Train from ``start_step`` to the stop step; return the step reached.

        Raises:
            NonFiniteLossError: naming step and samples; the weights are those before the step.
        """
        settings = self._settings
        interval = StepStats()
        self._engine.train()  # a model made from a checkpoint comes in evaluation mode
        steps = range(start_step + 1, settings.stop_step + 1)
        clock = time.perf_counter()
        for step, batches in zip(steps, self._loader.steps(samples_consumed, len(steps)), strict=True):
            stats, measures = self._step(step, batches)
            # Waiting for data counts, evaluation and checkpoints do not.
            stats.seconds = time.perf_counter() - clock
            interval += stats
            samples_consumed += self._loader.global_batch
            last = step == settings.stop_step
            if step % settings.log_steps == 0 or last:
                self._tracker.scalars(step, {**self._training_scalars(stats, interval), **measures})
                interval = StepStats()
            self._tracker.advance()
            if step % settings.eval_steps == 0 or step == settings.total_steps:
                self._tracker.scalars(step, self._evaluate())
            if step % settings.checkpoint_steps == 0 or last:
                self._save(step, samples_consumed)
            clock = time.perf_counter()
        return max(start_step, settings.stop_step)

    def _step(self, step: int, batches: list[PackedBatch]) -> tuple[StepStats, dict[str, float]]:
        """One optimizer step over this rank's micro batches."""
        engine = self._engine
        counts = self._global_counts(batches)
        # DeepSpeed divides by the accumulation steps and averages over ranks; undo both, and divide by the global
        # count, so that what is optimised is the global sum over the global count.
        scale = engine.gradient_accumulation_steps() * distributed.world_size() / counts[0].clamp(min=1)
        local_sums = []
        for micro_step, batch in enumerate(batches):
            # Dropout is a pure function of (seed, step, micro step, rank): nothing of it needs to be saved.
            key = hash64(self._settings.seed, _STREAM_DROPOUT, step, micro_step, distributed.rank())
            torch.manual_seed(int(key[0]) >> 1)
            # DeepSpeed would count to its own number of micro steps; with token budgets a step has its own.
            engine.set_gradient_accumulation_boundary(micro_step == len(batches) - 1)
            loss_sum = self._objective.loss_sum(engine, batch, self._device)
            local_sums.append(loss_sum.detach().double())
            engine.backward(loss_sum * scale.to(loss_sum.dtype))
            if micro_step < len(batches) - 1:
                engine.step()  # counts the micro step; nothing is updated yet
        global_sum = self._finite_global_sum(step, batches, torch.stack(local_sums))
        learning_rate = engine.get_lr()[0]
        norm = take_step(engine)
        self._refuse_infinite_gradient(step, batches, norm)
        return StepStats(global_sum, *counts.tolist()), {
            "train/lr": learning_rate,
            "train/grad_norm": math.nan if norm is None else norm,
        }

    def _global_counts(self, batches: list[PackedBatch]) -> torch.Tensor:
        """float64 [7], the numbers of `StepStats` from ``count`` to ``flops``, summed over micro steps and ranks."""
        local = [
            (
                self._objective.count(b),
                b.num_tokens,
                b.num_ordinary,
                b.num_masked,
                b.num_infeasible,
                b.num_samples,
                flops,
            )
            for b, flops in zip(batches, map(self._batch_flops, batches), strict=True)
        ]
        return distributed.all_sum(torch.tensor(local, dtype=torch.float64).sum(0).to(self._device))

    def _finite_global_sum(self, step: int, batches: list[PackedBatch], local_sums: torch.Tensor) -> float:
        total = float(distributed.all_sum(local_sums.sum()))
        if math.isfinite(total):
            return total
        finite = local_sums.isfinite().tolist()
        bad = [batch.sample_ids.tolist() for batch, good in zip(batches, finite, strict=True) if not good]
        record, by_rank = self._record_bad_step(step, bad)
        rank, samples = next(iter(by_rank.items()))
        raise NonFiniteLossError(
            f"step {step}: the loss is {total} in the batch of samples {samples[0]} on rank {rank}; all are in"
            f" {record}; the weights were not changed: lower the learning rate or clip gradients, then --resume auto"
        )

    def _refuse_infinite_gradient(self, step: int, batches: list[PackedBatch], norm: float | None) -> None:
        # In fp16 an overflow is ordinary: the loss scaler halves its scale and the step is skipped.
        if norm is None or math.isfinite(norm) or self._engine.fp16_enabled():
            return
        record, _ = self._record_bad_step(step, [batch.sample_ids.tolist() for batch in batches])
        raise NonFiniteLossError(
            f"step {step}: the gradient is not finite although the loss is; the step's samples are in {record}; the"
            " weights were not changed: lower the learning rate, then --resume auto"
        )

    def _record_bad_step(self, step: int, micro_batches: list[list[int]]) -> tuple[Path, dict[int, list[list[int]]]]:
        """Write down which samples of which rank were in a bad step."""
        by_rank = {rank: samples for rank, samples in enumerate(distributed.gather(micro_batches)) if samples}
        record = self._checkpoints.parent / f"nonfinite_step_{step:08d}.json"
        if distributed.is_main():
            record.write_text(json.dumps({"step": step, "sample_ids_by_rank": by_rank}), encoding="utf-8")
        return record, by_rank

    def _training_scalars(self, last: StepStats, interval: StepStats) -> dict[str, float]:
        peak = self._peak_flops * distributed.world_size()
        return {
            "train/loss": last.loss_sum / max(last.count, 1),
            "perf/tokens_per_second": interval.tokens / interval.seconds,
            "perf/mfu": interval.flops / interval.seconds / peak,
            "data/mask_fraction": interval.masked / max(interval.ordinary, 1),
            "data/ctc_infeasible_fraction": interval.infeasible / interval.samples,
        }

    def _save(self, step: int, samples_consumed: int) -> None:
        state = {"samples_consumed": samples_consumed}
        path = checkpoint.save(self._engine, self._checkpoints, step, state, self._settings.keep_checkpoints)
        self._tracker.say(f"step {step}  checkpoint {path}")
