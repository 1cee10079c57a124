"""Counter-based randomness in NumPy: every draw is a pure function of integers, never of what was drawn before.

The order of samples and the corruption of each sample must not depend on the number of ranks, on workers or on how
often a run was stopped, nor on the version of NumPy, whose generators may change their streams between releases.
Hence a fixed 64-bit hash (the finalizer of SplitMix64: Steele, Lea and Flood, OOPSLA 2014) and, for the order of an
epoch, a Feistel permutation built on it, which needs no memory and no start-up whatever the size of the corpus.
"""

from __future__ import annotations

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FEISTEL_ROUNDS = 6


def mix64(words: np.ndarray) -> np.ndarray:
    """Scramble uint64 words: a bijection in which every input bit changes half of the output bits."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def hash64(*keys: int | np.ndarray) -> np.ndarray:
    """Hash non-negative integers (or arrays of them, broadcast) into uint64 words, order mattering."""
    state = np.zeros(1, dtype=np.uint64)
    for key in keys:
        state = mix64((state ^ np.asarray(key, dtype=np.uint64)) + _GOLDEN)
    return state


def uniform(keys: np.ndarray, counters: np.ndarray) -> np.ndarray:
    """Float64 draws in [0, 1): number ``counters[i]`` of the stream that ``keys[i]`` (uint64) names."""
    words = mix64(keys + (counters.astype(np.uint64) + np.uint64(1)) * _GOLDEN)
    return (words >> np.uint64(11)) * 2.0**-53


def permuted(positions: np.ndarray, size: int, key: int | np.ndarray) -> np.ndarray:
    """Images of ``positions`` under the permutation of ``range(size)`` that ``key`` selects.

    A balanced Feistel network over the next even number of bits, walked until the value falls inside the range
    (Black and Rogaway, CT-RSA 2002), evaluated for all positions at once; fewer than four passes on average.

    Args:
        positions: integers in [0, size), any shape.
        size: length of the permuted range.
        key: integer, or an array of them broadcast against ``positions``.

    Returns:
        int64 array of the shape of ``positions``; distinct positions under one key have distinct images.
    """
    half_bits = np.uint64(max((size - 1).bit_length() + 1, 2) // 2)
    mask = (np.uint64(1) << half_bits) - np.uint64(1)
    values = np.array(positions, dtype=np.uint64).reshape(-1)
    keys = np.broadcast_to(np.asarray(key, dtype=np.uint64), np.shape(positions)).reshape(-1)
    pending = np.arange(values.size)
    while pending.size:
        left, right = values[pending] >> half_bits, values[pending] & mask
        for round_number in range(_FEISTEL_ROUNDS):
            left, right = right, left ^ (hash64(keys[pending], round_number, right) & mask)
        values[pending] = (left << half_bits) | right
        pending = pending[values[pending] >= size]
    return values.astype(np.int64).reshape(np.shape(positions))
