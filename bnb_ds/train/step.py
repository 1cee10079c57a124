"""One optimizer step: forward and backward over this rank's micro batches, checks, update."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bnb_ds.common.randomness import hash64
from bnb_ds.data.batch import PackedBatch
from bnb_ds.distributed import ranks
from bnb_ds.errors import NonFiniteLossError
from bnb_ds.train.engine import LossScaleExhausted, abandon_step, gradient_norm, take_step
from bnb_ds.train.objectives import Objective
from bnb_ds.train.parameters.unfreezing import Unfreezing
from bnb_ds.train.phases import Phases
from bnb_ds.train.spikes import SpikeDetector

_STREAM_DROPOUT = 0xD209
#: a dynamic loss scale falls from 2^32 to 1 in fewer steps; a static one never falls
_MOST_OVERFLOWS = 100
#: a changed optimizer begins afresh, and its settings may change then only
_WAY_OUT = "lower the learning rate or clip gradients, then continue with --resume auto --resume-weights-only"
_FINGERPRINT_BITS = np.uint64(0xFFFFFF)


@dataclass
class StepStats:
    """Global counts of one step, or sums over several steps."""

    loss_sum: float = 0.0
    count: float = 0.0
    tokens: float = 0.0
    ordinary: float = 0.0
    masked: float = 0.0
    infeasible: float = 0.0
    samples: float = 0.0
    flops: float = 0.0
    #: identifies the set of samples of the step, independent of their order and ranks
    fingerprint: float = 0.0
    #: tokens of the targets that fit into their slots; without any, there is no loss
    targets: float = 0.0
    #: number of ranks that were asked to stop
    stop_requests: float = 0.0
    seconds: float = 0.0

    def __add__(self, other: StepStats) -> StepStats:
        return StepStats(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    @property
    def loss(self) -> float:
        """Nats per target token; NaN if no target fits into its slots."""
        return self.loss_sum / self.count if self.targets else math.nan


class TrainStep:
    """Takes optimizer steps with an engine.

    Args:
        engine: DeepSpeed engine.
        objective: loss of a micro batch.
        batch_flops: matrix FLOPs of training on a micro batch.
        device: device of this rank.
        seed: seed of the run, for dropout.
        phases: measures the parts of a step.
        spikes: detects steps to skip, or None to skip none.
        records: directory for the files that list the sample ids of a bad step.
        unfreezing: holds layers back that have not begun, or None if all have.
    """

    def __init__(
        self,
        engine: Any,
        objective: Objective,
        batch_flops: Callable[[PackedBatch], int],
        *,
        device: torch.device,
        seed: int,
        phases: Phases,
        spikes: SpikeDetector | None,
        records: Path,
        unfreezing: Unfreezing | None = None,
    ) -> None:
        self._engine = engine
        self._objective = objective
        self._batch_flops = batch_flops
        self._device = device
        self._seed = seed
        self._phases = phases
        self._spikes = spikes
        self._records = records
        self._unfreezing = unfreezing
        self._overflows = 0

    def take(self, step: int, batches: list[PackedBatch], *, stop: bool) -> tuple[StepStats, dict[str, float]]:
        """Take one step over this rank's micro batches.

        Args:
            step: number of the step, from 1.
            batches: micro batches of this rank.
            stop: True if this rank was asked to stop; the other ranks see it in ``stop_requests``.

        Returns:
            Global counts of the step, and its measures (tag -> value).

        Raises:
            NonFiniteLossError: the loss or gradient is not finite, in fp16 with the lowest loss scale. The message
                names the step and its samples; the weights are unchanged.
        """
        engine = self._engine
        if self._unfreezing is not None:
            self._unfreezing.begin_step(step)
        with self._phases("counts"):
            global_counts = self._start_global_counts(batches, stop)
        local_sums: list[torch.Tensor] = []
        spike = False
        for micro_step, batch in enumerate(batches):
            last = micro_step == len(batches) - 1
            self._seed_dropout(step, micro_step)
            # DeepSpeed expects a fixed number of micro steps. With a token budget, each step has its own number.
            engine.set_gradient_accumulation_boundary(last)
            part = f"micro step {micro_step + 1} of {len(batches)}"
            with self._phases("forward", step, part):
                loss_sum = self._objective.loss_sum(engine, batch, self._device, step)
                local_sums.append(loss_sum.detach().double())
            if last and self._spikes is not None:
                # Only a run that skips spikes waits here for the device: the backward pass depends on the loss.
                stats, _ = self._read(step, batches, global_counts(), local_sums, None)
                # A step without a target that fits has no loss. A loss of 0 would make every later one a spike.
                spike = stats.targets > 0 and self._spikes.is_spike(stats.loss_sum / max(stats.count, 1))
            with self._phases("backward", step, part):
                # DeepSpeed divides by the accumulation steps and averages over ranks. The scale undoes both and divides
                # by the global count: the loss that is optimised is the global sum divided by the global count.
                scale = engine.gradient_accumulation_steps() * ranks.world_size() / global_counts()[0].clamp(min=1)
                # DeepSpeed skips a step whose gradient is not a number. A spike gets such a gradient.
                factor = scale.to(loss_sum.dtype) * (math.nan if spike else 1.0)
                engine.backward(loss_sum * factor)
            if not last:
                engine.step()  # only counts the micro step; the weights are updated after the last one
        # The host waits for the device here: nothing may be updated from a loss that is not finite.
        stats, norm = self._read(step, batches, global_counts(), local_sums, gradient_norm(engine))
        rates = [rate for rate in engine.get_lr() if rate] or [0.0]  # layers that have not begun have none
        norm = self._update(step, batches, norm)
        if spike:
            abandon_step(engine)
        else:
            self._refuse_infinite_gradient(step, batches, norm)
            if self._spikes is not None and stats.targets > 0:
                self._spikes.accept(stats.loss_sum / max(stats.count, 1))
        return stats, {
            "train/lr": max(rates),
            **({"train/lr_min": min(rates)} if min(rates) < max(rates) else {}),
            "train/grad_norm": math.nan if norm is None else norm,
            **self._skipped(),
        }

    def _seed_dropout(self, step: int, micro_step: int) -> None:
        """Dropout is a pure function of (seed, step, micro step, rank), so checkpoints hold no random state."""
        key = hash64(self._seed, _STREAM_DROPOUT, step, micro_step, ranks.rank())
        torch.manual_seed(int(key[0]) >> 1)

    def _update(self, step: int, batches: list[PackedBatch], norm: float | None) -> float | None:
        """The norm of the gradient, as `take_step` takes and returns it."""
        try:
            with self._phases("optimizer"):
                return take_step(self._engine, norm)
        except LossScaleExhausted:
            record, _ = self._record_bad_step(step, [batch.sample_ids.tolist() for batch in batches])
            scale = float(self._engine.optimizer.loss_scale)
            raise ranks.reported_by_rank_0(
                NonFiniteLossError(
                    f"step {step}: the gradient overflows in fp16 even with the lowest loss scale, {scale:g}; {record}"
                    f" lists the samples of the step; the weights are unchanged; train in bf16 or fp32, or {_WAY_OUT}"
                )
            ) from None

    def _skipped(self) -> dict[str, float]:
        """Numbers of skipped steps so far, and the loss scale; only those that the settings make possible."""
        values = {}
        spikes = 0
        if self._spikes is not None:
            spikes = values["train/skipped_spikes"] = self._spikes.skipped
            values["train/spike_returns"] = len(self._spikes.returned_to)
        if self._engine.fp16_enabled():
            # DeepSpeed's count includes the spikes. (After --resume-weights-only it starts again at 0.)
            values["train/skipped_overflows"] = max(self._engine.skipped_steps - spikes, 0)
            values["train/loss_scale"] = float(self._engine.optimizer.loss_scale)
        return values

    def _start_global_counts(self, batches: list[PackedBatch], stop: bool) -> Callable[[], torch.Tensor]:
        """Begin to add up the counts of a step over micro steps and ranks; the first forward pass runs meanwhile.

        Returns:
            A function that gives, as float64 [10], the fields of `StepStats` from ``count`` to ``stop_requests``.
        """
        local = [
            (
                self._objective.count(b),
                b.num_tokens,
                b.num_ordinary,
                b.num_masked,
                b.num_infeasible,
                b.num_samples,
                self._batch_flops(b),
                int((hash64(b.sample_ids) & _FINGERPRINT_BITS).sum()),
                b.num_targets,
                float(stop and micro_step == 0),
            )
            for micro_step, b in enumerate(batches)
        ]
        counts = torch.tensor(local, dtype=torch.float64).sum(0)
        if self._device.type == "cuda":
            counts = counts.pin_memory()
        return ranks.start_all_sum(counts.to(self._device, non_blocking=True))

    def _read(
        self,
        step: int,
        batches: list[PackedBatch],
        counts: torch.Tensor,
        local_sums: list[torch.Tensor],
        norm: torch.Tensor | None,
    ) -> tuple[StepStats, float | None]:
        """The counts and the loss of the step, and the norm of its gradient, with one wait for the device."""
        total = ranks.all_sum(torch.stack(local_sums).sum())
        on_device = (total[None], counts) if norm is None else (total[None], counts, norm.to(total)[None])
        values = torch.cat(on_device).tolist()
        stats = StepStats(*values[: 1 + counts.numel()])
        if not math.isfinite(stats.loss_sum):
            self._refuse_infinite_loss(step, batches, stats.loss_sum, torch.stack(local_sums))
        return stats, None if norm is None else values[-1]

    def _refuse_infinite_loss(
        self, step: int, batches: list[PackedBatch], total: float, local_sums: torch.Tensor
    ) -> None:
        finite = local_sums.isfinite().tolist()
        bad = [batch.sample_ids.tolist() for batch, good in zip(batches, finite, strict=True) if not good]
        record, by_rank = self._record_bad_step(step, bad)
        rank, samples = next(iter(by_rank.items()))
        raise ranks.reported_by_rank_0(
            NonFiniteLossError(
                f"step {step}: the loss is {total} in the micro batch of samples {samples[0]} on rank {rank}; {record}"
                f" lists all such micro batches; the weights are unchanged; {_WAY_OUT}"
            )
        )

    def _refuse_infinite_gradient(self, step: int, batches: list[PackedBatch], norm: float | None) -> None:
        if norm is None or math.isfinite(norm):
            self._overflows = 0
            return
        found = "the gradient is not finite, but the loss is"
        if self._engine.fp16_enabled():
            # In fp16 an overflow is normal: the loss scaler halves its scale, and the step is skipped.
            self._overflows += 1
            if self._overflows < _MOST_OVERFLOWS:
                return
            found = f"the gradient has overflowed in fp16 at {self._overflows} steps in a row"
        record, _ = self._record_bad_step(step, [batch.sample_ids.tolist() for batch in batches])
        raise ranks.reported_by_rank_0(
            NonFiniteLossError(
                f"step {step}: {found}; {record} lists the samples of the step; the weights are unchanged; {_WAY_OUT}"
            )
        )

    def _record_bad_step(self, step: int, micro_batches: list[list[int]]) -> tuple[Path, dict[int, list[list[int]]]]:
        """Write a file with the samples of a bad step by rank; return its path and the samples.

        Args:
            step: number of the step.
            micro_batches: sample ids of this rank's bad micro batches.
        """
        by_rank = {rank: samples for rank, samples in enumerate(ranks.gather(micro_batches)) if samples}
        record = self._records / f"nonfinite_step_{step:08d}.json"
        if ranks.is_main():
            record.write_text(json.dumps({"step": step, "sample_ids_by_rank": by_rank}), encoding="utf-8")
        return record, by_rank
