"""Which samples a rank reads at each step: a pure function of (seed, position), so a resume starts at once.

The stream of samples is one infinite sequence, epoch after epoch, each epoch in its own order. Its state is a single
number, the samples consumed so far; it depends neither on the number of ranks nor on the micro batch.

The samples of one step are dealt out by length, so that a micro batch holds sequences of about one length and the ranks
work on like ones at the same time: little padding where padding is needed (attention and the CTC recursion on devices
without kernels for packed rows), little waiting. The step's loss is a sum over its samples, whatever their order.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np

from bnb_ds.batch import PackedBatch
from bnb_ds.randomness import hash64, permuted

_STREAM_ORDER = 0x0DE5


class SampleSource(Protocol):
    """What a task gives the loader."""

    def __len__(self) -> int: ...

    def lengths(self, sample_ids: np.ndarray) -> np.ndarray:
        """int64 [B], tokens of samples, without reading them."""

    def batch(self, sample_ids: np.ndarray, epochs: np.ndarray) -> PackedBatch: ...


class SampleStream:
    """The infinite shuffled stream over ``num_samples`` samples."""

    def __init__(self, num_samples: int, seed: int) -> None:
        self._num_samples = num_samples
        self._seed = seed

    def read(self, position: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Sample ids and epochs, int64 [count] each, at stream positions ``position, position + 1, ...``."""
        epochs, offsets = np.divmod(np.arange(position, position + count), self._num_samples)
        return permuted(offsets, self._num_samples, hash64(self._seed, _STREAM_ORDER, epochs)), epochs


class StepLoader:
    """Micro batches of one rank, step after step, prepared one step ahead in a background thread.

    Args:
        source: makes batches of sample ids.
        seed: of the order.
        micro_batch: samples per micro step on one rank.
        accumulation_steps: micro steps per step.
        rank, world_size: this process among all.
        pin_memory: put batches into page-locked memory, from which a GPU copies while it computes.
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
        pin_memory: bool = False,
    ) -> None:
        self._source = source
        self._stream = SampleStream(len(source), seed)
        self._micro_batch = micro_batch
        self._accumulation_steps = accumulation_steps
        self._rank = rank
        self._world_size = world_size
        self._pin_memory = pin_memory

    @property
    def global_batch(self) -> int:
        """Samples per step over all ranks."""
        return self._micro_batch * self._accumulation_steps * self._world_size

    def step(self, samples_consumed: int) -> list[PackedBatch]:
        """This rank's micro batches of the step that begins at a stream position."""
        sample_ids, epochs = self._stream.read(samples_consumed, self.global_batch)
        by_length = np.argsort(self._source.lengths(sample_ids), kind="stable")
        batches = []
        for micro_step in range(self._accumulation_steps):
            begin = (micro_step * self._world_size + self._rank) * self._micro_batch
            chosen = by_length[begin : begin + self._micro_batch]
            batch = self._source.batch(sample_ids[chosen], epochs[chosen])
            batches.append(batch.pinned() if self._pin_memory else batch)
        return batches

    def steps(self, samples_consumed: int, num_steps: int) -> Iterator[list[PackedBatch]]:
        """``num_steps`` steps from a stream position on; errors of the background thread surface here."""
        positions = iter([samples_consumed + i * self.global_batch for i in range(num_steps)])
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="loader") as pool:
            ahead = [pool.submit(self.step, position) for position in itertools.islice(positions, 1)]
            while ahead:
                ready = ahead.pop()
                ahead = [pool.submit(self.step, position) for position in itertools.islice(positions, 1)]
                yield ready.result()
