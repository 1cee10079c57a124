"""Which samples a rank reads at each step: a pure function of (seed, position), so a resume starts at once.

The stream of samples is one infinite sequence, epoch after epoch, each epoch in its own order. Its state is a single
number, the samples consumed so far; it depends neither on the number of ranks nor on the micro batch.

How the samples of one step are dealt out to micro batches and ranks is in :mod:`bnb_ds.data.micro_batches`; the step's
loss is a sum over its samples, whatever their order.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch

from bnb_ds.common.randomness import hash64, permuted
from bnb_ds.data.batch import PackedBatch
from bnb_ds.data.micro_batches import deal_by_count, deal_by_tokens
from bnb_ds.data.prefetch import prefetched
from bnb_ds.distributed.agreement import agreed
from bnb_ds.shards.pread import files_being_read

_STREAM_ORDER = 0x0DE5
_CPU = torch.device("cpu")


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
    """Micro batches of one rank, step after step, prepared ahead in background threads.

    Args:
        source: makes batches of sample ids.
        seed: of the order.
        micro_batch: samples per micro step on one rank.
        accumulation_steps: micro steps per step.
        rank, world_size: this process among all.
        device: of this rank. For a GPU, batches are put into page-locked memory, from which it copies while computing.
        micro_batch_tokens: with it, a micro batch holds samples of at most that many tokens together instead of
            ``micro_batch`` samples, and a step has as many micro steps as that takes, the same on every rank. The
            samples of a step stay the same.
        workers: threads that prepare steps.
        prefetch_steps: steps that are prepared ahead, at most.
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
        self._stream = SampleStream(len(source), seed)
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

    def steps(self, samples_consumed: int, num_steps: int) -> Iterator[list[PackedBatch]]:
        """``num_steps`` steps from a stream position on.

        Raises:
            DataError: a shard cannot be read, or does not answer in time, on any of the ranks; the message names rank
                and file. Other errors of this rank's threads surface here too.
        """
        prepared = prefetched(
            self.step,
            (samples_consumed + i * self.global_batch for i in range(num_steps)),
            workers=self._workers,
            ahead=self._prefetch_steps,
            timeout_seconds=self._timeout_seconds,
            describe_wait=_what_is_read,
        )
        return agreed(prepared, self._device)


def _what_is_read() -> str:
    files = files_being_read()
    return f"waiting for {', '.join(files)}" if files else "no file is being read, so samples take that long to make"
