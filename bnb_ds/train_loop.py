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
from bnb_ds.engine import gradient_norm_after_step, gradient_norm_before_step
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
    targets: float = 0.0
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
        objective: loss of a micro batch, as sum and count.
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
        for step, batches in zip(steps, self._loader.steps(samples_consumed, len(steps)), strict=True):
            stats, measures = self._step(step, batches)
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
        return settings.stop_step

    def _step(self, step: int, batches: list[PackedBatch]) -> tuple[StepStats, dict[str, float]]:
        """One optimizer step over this rank's micro batches."""
        start = time.perf_counter()
        engine = self._engine
        counts = self._global_counts(batches)
        # DeepSpeed divides by the accumulation steps and averages over ranks; undo both, and divide by the global
        # count, so that what is optimised is the global sum over the global count.
        scale = engine.gradient_accumulation_steps() * distributed.world_size() / counts["targets"].clamp(min=1)
        local_sums = []
        for micro_step, batch in enumerate(batches):
            # Dropout is a pure function of (seed, step, micro step, rank): nothing of it needs to be saved.
            key = hash64(self._settings.seed, _STREAM_DROPOUT, step, micro_step, distributed.rank())
            torch.manual_seed(int(key[0] >> 1))
            loss = self._objective(engine, batch, self._device)
            local_sums.append(loss.sum.detach().double())
            engine.backward(loss.sum * scale.to(loss.sum.dtype))
            if micro_step == len(batches) - 1:
                loss_sum = self._finite_global_sum(step, batches, torch.stack(local_sums))
                norm_before = gradient_norm_before_step(engine)
                learning_rate = engine.get_lr()[0]
            engine.step()
        measures = {
            "train/lr": learning_rate,
            "train/grad_norm": gradient_norm_after_step(engine) if norm_before is None else norm_before,
        }
        numbers = {name: float(value) for name, value in counts.items()}
        return StepStats(loss_sum=loss_sum, seconds=time.perf_counter() - start, **numbers), measures

    def _global_counts(self, batches: list[PackedBatch]) -> dict[str, torch.Tensor]:
        local = {
            "targets": sum(batch.num_targets for batch in batches),
            "tokens": sum(batch.num_tokens for batch in batches),
            "ordinary": sum(batch.num_ordinary for batch in batches),
            "masked": sum(batch.num_masked for batch in batches),
            "infeasible": sum(batch.num_infeasible for batch in batches),
            "samples": sum(batch.num_samples for batch in batches),
            "flops": sum(self._batch_flops(batch) for batch in batches),
        }
        total = distributed.all_sum(torch.tensor(list(local.values()), dtype=torch.float64, device=self._device))
        return dict(zip(local, total, strict=True))

    def _finite_global_sum(self, step: int, batches: list[PackedBatch], local_sums: torch.Tensor) -> float:
        total = float(distributed.all_sum(local_sums.sum()))
        if math.isfinite(total):
            return total
        finite = local_sums.isfinite().tolist()
        bad = [batch.sample_ids.tolist() for batch, good in zip(batches, finite, strict=True) if not good]
        by_rank = {rank: samples for rank, samples in enumerate(distributed.gather(bad)) if samples}
        record = self._checkpoints.parent / f"nonfinite_step_{step:08d}.json"
        if distributed.is_main():
            record.write_text(json.dumps({"step": step, "sample_ids_by_rank": by_rank}), encoding="utf-8")
        rank, samples = next(iter(by_rank.items()))
        raise NonFiniteLossError(
            f"step {step}: the loss is {total} in the batch of samples {samples[0]} on rank {rank}; all are in"
            f" {record}; the weights were not changed: lower the learning rate or clip gradients, then --resume auto"
        )

    def _training_scalars(self, last: StepStats, interval: StepStats) -> dict[str, float]:
        peak = self._peak_flops * distributed.world_size()
        return {
            "train/loss": last.loss_sum / max(last.targets, 1),
            "perf/tokens_per_second": interval.tokens / interval.seconds,
            "perf/mfu": interval.flops / interval.seconds / peak,
            "data/mask_fraction": interval.masked / max(interval.ordinary, 1),
            "data/ctc_infeasible_fraction": interval.infeasible / interval.samples,
        }

    def _save(self, step: int, samples_consumed: int) -> None:
        state = {"samples_consumed": samples_consumed}
        path = checkpoint.save(self._engine, self._checkpoints, step, state, self._settings.keep_checkpoints)
        self._tracker.say(f"step {step}  checkpoint {path}")
