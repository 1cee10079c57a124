"""One rank of `test_loader_errors`: at the third step, rank 1 cannot read its samples.

Argument: ``missing`` (the file is gone) or ``slow`` (reading the file never ends).
"""

from __future__ import annotations

import sys
import threading

import numpy as np

from bnb_ds.data.loader import StepLoader
from bnb_ds.data.streams import SampleStream
from bnb_ds.distributed import ranks
from bnb_ds.errors import DataError, run_reporting_errors
from bnb_ds.shards import pread as shard_reader


class Samples:
    def __init__(self, fault: str) -> None:
        self._fault = fault
        self._batches = 0

    def __len__(self) -> int:
        return 100

    def stream(self, seed):
        return SampleStream(100, seed)

    def lengths(self, sample_ids):
        return np.ones_like(sample_ids)

    def batch(self, sample_ids, epochs):
        self._batches += 1
        if self._batches == 3 and ranks.rank() == 1:
            if self._fault == "missing":
                raise DataError("train-00003.tokens.npy: cannot be read: No such file or directory")
            shard_reader._in_flight[threading.get_ident()] = "train-00003.tokens.npy"
            threading.Event().wait()
        return sample_ids


def main() -> None:
    device = ranks.init()
    loader = StepLoader(
        Samples(sys.argv[-1]),
        seed=0,
        micro_batch=2,
        accumulation_steps=1,
        rank=ranks.rank(),
        world_size=2,
        device=device,
        prefetch_steps=2,
        timeout_seconds=2,
    )
    try:
        for step, _ in enumerate(loader.steps(0, 10), start=1):
            # The text and its newline are one write, because the ranks share a pipe.
            print(f"rank {ranks.rank()} has step {step}\n", end="", flush=True)
    finally:
        ranks.shutdown(after_error=True)


if __name__ == "__main__":
    sys.exit(run_reporting_errors("failing_loader", main))
