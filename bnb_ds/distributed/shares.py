"""How ranks share out the samples of an evaluation."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from bnb_ds.distributed import ranks


def rounds(samples: np.ndarray, batch_size: int) -> Iterator[tuple[np.ndarray, bool]]:
    """This rank's batches of int64 [N] sample ids, as many on every rank, and whether each counts.

    ZeRO stage 3 gathers weights in every forward pass, so all ranks must make the same number of them. A rank without
    a share of the last round reads the first sample again and does not count it.
    """
    world_size, rank = ranks.world_size(), ranks.rank()
    for begin in range(0, samples.size, batch_size * world_size):
        ids = samples[begin + rank * batch_size : begin + (rank + 1) * batch_size]
        yield (ids, True) if ids.size else (samples[:1], False)
