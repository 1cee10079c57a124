"""Loads the samples of each step. They are a pure function of (seed, position), so a resumed run starts at once.

:mod:`bnb_ds.data.streams` orders the samples. :mod:`bnb_ds.data.micro_batches` deals the samples of one step out to
micro batches and ranks. The loss of a step is a sum over its samples, so their order within the step does not matter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
import torch

from bnb_ds.data.batch import PackedBatch
from bnb_ds.data.micro_batches import deal_by_count, deal_by_tokens
from bnb_ds.data.prefetch import prefetched
from bnb_ds.data.streams import Stream
from bnb_ds.distributed.agreement import agreed
from bnb_ds.shards.pread import files_being_read

_CPU = torch.device("cpu")


class SampleSource(Protocol):
    """The samples of a task, as the loader needs them."""

    def __len__(self) -> int:
        """Samples in one epoch."""

    def lengths(self, sample_ids: np.ndarray) -> np.ndarray:
        """int64 [B], tokens of each sample, without reading it."""

    def stream(self, seed: int) -> Stream:
        """The order in which samples are read."""

    def batch(self, sample_ids: np.ndarray, epochs: np.ndarray) -> PackedBatch:
        """The batch of these samples, each in the given epoch; int64 [B] both."""


class StepLoader:
    """The micro batches of one rank, step after step. Background threads prepare them ahead.

    Args:
        source: makes batches from sample ids.
        seed: seed of the order of the samples.
        micro_batch: samples per micro step on one rank.
        accumulation_steps: micro steps per step.
        rank: number of this process.
        world_size: number of processes.
        device: device of this rank. For a GPU, batches are put into page-locked memory, from which the GPU copies while
            it computes.
        micro_batch_tokens: most tokens of a micro batch; None: a micro batch has ``micro_batch`` samples. With it, a
            step has as many micro steps as it needs, the same number on every rank. The samples of a step stay the
            same.
        workers: number of threads that prepare steps.
        prefetch_steps: most steps that are prepared ahead.
        timeout_seconds: longest wait for a step.
    """

    def __init__(
        self,
        source: SampleSource,
        *,
        seed: int,
        micro_batch: int,
        accumulation_steps: int,
        rank: int,
        world_size: int,
        device: torch.device = _CPU,
        micro_batch_tokens: int | None = None,
        workers: int = 1,
        prefetch_steps: int = 1,
        timeout_seconds: float = 300.0,
    ) -> None:
        self._source = source
        self._stream = source.stream(seed)
        self._micro_batch = micro_batch
        self._accumulation_steps = accumulation_steps
        self._rank = rank
        self._world_size = world_size
        self._device = device
        self._micro_batch_tokens = micro_batch_tokens
        self._workers = workers
        self._prefetch_steps = prefetch_steps
        self._timeout_seconds = timeout_seconds

    @property
    def global_batch(self) -> int:
        """Samples per step over all ranks."""
        return self._micro_batch * self._accumulation_steps * self._world_size

    def step(self, samples_consumed: int) -> list[PackedBatch]:
        """This rank's micro batches of the step that begins at a stream position."""
        sample_ids, epochs = self._stream.read(samples_consumed, self.global_batch)
        lengths = self._source.lengths(sample_ids)
        if self._micro_batch_tokens is None:
            groups = deal_by_count(lengths, self._micro_batch)
        else:
            groups = deal_by_tokens(lengths, self._micro_batch_tokens, self._world_size)
        batches = [self._source.batch(sample_ids[g], epochs[g]) for g in groups[self._rank :: self._world_size]]
        return [batch.pinned() for batch in batches] if self._device.type == "cuda" else batches

    def steps(
        self, samples_consumed: int, num_steps: int, on_loaded: Callable[[float], None] = lambda seconds: None
    ) -> Iterator[list[PackedBatch]]:
        """``num_steps`` steps from a stream position on. ``on_loaded``: see `bnb_ds.distributed.agreement.agreed`.

        Raises:
            DataError: on some rank a shard cannot be read, or not in time. The message names the rank and the file.
                Other errors of this rank's threads are raised here too.
        """
        prepared = prefetched(
            self.step,
            (samples_consumed + i * self.global_batch for i in range(num_steps)),
            workers=self._workers,
            ahead=self._prefetch_steps,
            timeout_seconds=self._timeout_seconds,
            describe_wait=_what_is_read,
        )
        return agreed(prepared, self._device, on_loaded)


def _what_is_read() -> str:
    files = files_being_read()
    return (
        f"waiting for {', '.join(files)}" if files else "no file is being read, so making the samples takes that long"
    )
