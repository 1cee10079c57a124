"""The order of samples: an infinite sequence that is a pure function of (seed, position).

Every stream is read epoch after epoch, and each epoch has its own order. The state of a stream is a single number, the
samples consumed so far. It depends neither on the number of ranks nor on the micro batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Protocol

import numpy as np

from bnb_ds.common.randomness import hash64, permuted
from bnb_ds.errors import ConfigError

_STREAM_ORDER = 0x0DE5


class Stream(Protocol):
    """The interface of all streams."""

    def read(self, position: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Sample ids and epochs, int64 [count] each, at stream positions ``position, position + 1, ...``."""


class SampleStream:
    """The infinite shuffled stream over ``num_samples`` samples."""

    def __init__(self, num_samples: int, seed: int) -> None:
        self._num_samples = num_samples
        self._seed = seed

    def read(self, position: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """As `Stream.read`."""
        epochs, offsets = np.divmod(np.arange(position, position + count), self._num_samples)
        return permuted(offsets, self._num_samples, hash64(self._seed, _STREAM_ORDER, epochs)), epochs


class MixedStream:
    """The infinite shuffled stream over several corpora, each with a fixed share of every epoch.

    An epoch of the mixture has as many samples as all corpora together, and a corpus takes its share of them, to the
    sample: `quotas`. Where they stand is one permutation of the epoch. Each corpus is a shuffled stream of its own, so
    all its samples are seen once before any is seen again.

    Args:
        sizes: samples of each corpus. Sample ids count through the corpora in this order.
        weights: of each corpus, above 0.
        seed: of the order.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float], seed: int) -> None:
        self._sizes = [int(size) for size in sizes]
        self._quotas = quotas(sum(self._sizes), weights)
        self._seed = seed

    def read(self, position: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """As `Stream.read`. The epoch of a sample is that of its corpus: how often it has been seen before."""
        total = sum(self._sizes)
        epochs, offsets = np.divmod(np.arange(position, position + count), total)
        places = permuted(offsets, total, hash64(self._seed, _STREAM_ORDER, epochs))
        ids = np.empty(count, dtype=np.int64)
        first_place = first_id = 0
        for corpus, (size, quota) in enumerate(zip(self._sizes, self._quotas, strict=True)):
            mine = (places >= first_place) & (places < first_place + quota)
            consumed = epochs[mine] * quota + (places[mine] - first_place)
            epochs[mine], own_offsets = np.divmod(consumed, size)
            ids[mine] = first_id + permuted(own_offsets, size, hash64(self._seed, _STREAM_ORDER, corpus, epochs[mine]))
            first_place, first_id = first_place + quota, first_id + size
        return ids, epochs


def shares_of(total: int, weights: Sequence[float]) -> list[int]:
    """Whole numbers in the proportions of ``weights`` that add up to ``total``, by largest remainders."""
    exact = [Fraction(weight) for weight in weights]
    wanted = [total * weight / sum(exact) for weight in exact]
    found = [int(share) for share in wanted]
    by_remainder = sorted(range(len(wanted)), key=lambda i: (found[i] - wanted[i], i))
    for i in by_remainder[: total - sum(found)]:
        found[i] += 1
    return found


def quotas(total: int, weights: Sequence[float]) -> list[int]:
    """`shares_of` an epoch.

    Raises:
        ConfigError: a weight is so small that nothing is left for it.
    """
    found = shares_of(total, weights)
    for weight, number in zip(weights, found, strict=True):
        if number == 0:
            raise ConfigError(
                f"data.shards: the weight {weight:g} gives its directory none of {total:,} samples; raise it, or leave"
                " the directory out"
            )
    return found
