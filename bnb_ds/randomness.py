"""Counter-based randomness in NumPy: every draw is a pure function of integers, never of what was drawn before.

The order of samples and the corruption of each sample must not depend on the number of ranks, on workers or on how
often a run was stopped, nor on the version of NumPy, whose generators may change their streams between releases.
Hence a fixed 64-bit hash (the finalizer of SplitMix64: Steele, Lea and Flood, OOPSLA 2014) and, for the order of an
epoch, a Feistel permutation built on it, which needs no memory and no start-up whatever the size of the corpus. Draws
for every token of a batch come from a 32-bit hash (the constants are those of Wellons' "lowbias32", found by search for
the least bias), since NumPy computes with 32-bit words several times faster.
"""

from __future__ import annotations

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_GOLDEN32 = np.uint32(0x9E3779B9)
_FEISTEL_ROUNDS = 6

#: draws of :func:`packed_draws` and :func:`draws_at` are below this
DRAWS = 2**31


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


def packed_draws(keys: np.ndarray, cu_seqlens: np.ndarray) -> np.ndarray:
    """One draw for every token of a packed batch: uint32 [N] in ``[0, DRAWS)``.

    Args:
        keys: uint64 [B], one stream for each sequence.
        cu_seqlens: int [B + 1], where each sequence begins; token i of a sequence gets draw number i of its stream.
    """
    lengths = np.diff(cu_seqlens)
    # Token n of the row has counter n - start: the start's share goes into the key, and one addition serves the row.
    offsets = keys.astype(np.uint32) - cu_seqlens[:-1].astype(np.uint32) * _GOLDEN32
    words = np.arange(int(cu_seqlens[-1]), dtype=np.uint32)
    words *= _GOLDEN32
    words += np.repeat(offsets, lengths)
    return _mix_with(words, np.repeat((keys >> np.uint64(32)).astype(np.uint32), lengths))


def draws_at(keys: np.ndarray, counters: np.ndarray) -> np.ndarray:
    """Single draws of the same streams: uint32 in ``[0, DRAWS)``, number ``counters[i]`` of stream ``keys[i]``."""
    words = keys.astype(np.uint32) + counters.astype(np.uint32) * _GOLDEN32
    return _mix_with(words, (keys >> np.uint64(32)).astype(np.uint32))


def _mix_with(words: np.ndarray, salt: np.ndarray) -> np.ndarray:
    """Scramble uint32 words, in place; the salt enters half-way, so that no two streams are shifts of each other."""
    shifted = words >> np.uint32(16)
    words ^= shifted
    words *= np.uint32(0x21F0AAAD)
    words ^= salt
    np.right_shift(words, np.uint32(15), out=shifted)
    words ^= shifted
    words *= np.uint32(0xD35A2D97)
    np.right_shift(words, np.uint32(15), out=shifted)
    words ^= shifted
    words >>= np.uint32(1)  # 31 bits: a probability of 1 is then a threshold that fits the word
    return words


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
    # Positions of few epochs share few keys: each is hashed once per round.
    distinct, which = np.unique(keys, return_inverse=True)
    round_keys = [hash64(distinct, round_number) for round_number in range(_FEISTEL_ROUNDS)]
    pending = np.arange(values.size)
    while pending.size:
        left, right = values[pending] >> half_bits, values[pending] & mask
        for round_key in round_keys:
            left, right = right, left ^ (mix64((round_key[which[pending]] ^ right) + _GOLDEN) & mask)
        values[pending] = (left << half_bits) | right
        pending = pending[values[pending] >= size]
    return values.astype(np.int64).reshape(np.shape(positions))
