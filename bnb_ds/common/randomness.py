"""Counter-based randomness in NumPy: every draw is a pure function of integers, never of earlier draws.

The order of samples and the corruption of each sample must not depend on the number of ranks, on workers or on how
often a run was stopped. Nor may they depend on the version of NumPy, whose generators may change between releases. So
this module has three fixed functions:

- a 64-bit hash, the finalizer of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014);
- a Feistel permutation built on that hash, for the order of an epoch. It needs no memory and no set-up, however large
  the corpus is;
- a 32-bit hash with the constants of Wellons' "lowbias32", for draws for every token of a batch. NumPy computes with
  32-bit words several times faster than with 64-bit words.
"""

from __future__ import annotations

import math

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FACTOR_1, _FACTOR_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_SHIFT_30, _SHIFT_27, _SHIFT_31 = np.uint64(30), np.uint64(27), np.uint64(31)
_GOLDEN32 = np.uint32(0x9E3779B9)
_FEISTEL_ROUNDS = 6

#: draws of :func:`packed_draws` and :func:`draws_at` are below this number
DRAWS = 2**31


def mix64(words: np.ndarray) -> np.ndarray:
    """Scramble uint64 words by a bijection in which every input bit changes about half of the output bits."""
    words = words ^ (words >> _SHIFT_30)
    words *= _FACTOR_1
    words ^= words >> _SHIFT_27
    words *= _FACTOR_2
    words ^= words >> _SHIFT_31
    return words


def hash64(*keys: int | np.ndarray) -> np.ndarray:
    """Hash non-negative integers (or arrays of them, broadcast) into uint64 words. The order of the keys matters."""
    state = np.zeros(1, dtype=np.uint64)
    for key in keys:
        state = mix64((state ^ np.asarray(key, dtype=np.uint64)) + _GOLDEN)
    return state


def stream_keys(keys: np.ndarray, stream: int) -> np.ndarray:
    """Keys of one of several independent streams of draws. ``keys`` (uint64, any shape) must already be hashes."""
    return mix64(keys + np.uint64((stream + 1) * int(_GOLDEN) % 2**64))


def packed_draws(keys: np.ndarray, cu_seqlens: np.ndarray) -> np.ndarray:
    """One draw for every token of a packed batch: uint32 [N] in ``[0, DRAWS)``.

    Args:
        keys: uint64 [B], the stream of each sequence.
        cu_seqlens: int [B + 1], where each sequence begins. Token i of a sequence gets draw number i of its stream.
    """
    lengths = np.diff(cu_seqlens)
    # Token n of the row has counter n - start. The part of start goes into the key, so one addition serves the row.
    offsets = keys.astype(np.uint32) - cu_seqlens[:-1].astype(np.uint32) * _GOLDEN32
    words = np.arange(int(cu_seqlens[-1]), dtype=np.uint32)
    words *= _GOLDEN32
    words += np.repeat(offsets, lengths)
    return _mix_with(words, np.repeat((keys >> np.uint64(32)).astype(np.uint32), lengths))


def draws_at(keys: np.ndarray, counters: np.ndarray) -> np.ndarray:
    """Single draws of the same streams, uint32 in ``[0, DRAWS)``: draw number ``counters[i]`` of stream ``keys[i]``."""
    words = keys.astype(np.uint32) + counters.astype(np.uint32) * _GOLDEN32
    return _mix_with(words, (keys >> np.uint64(32)).astype(np.uint32))


def _mix_with(words: np.ndarray, salt: np.ndarray) -> np.ndarray:
    """Scramble uint32 words in place. The salt enters half-way, so that no two streams are shifts of each other."""
    shifted = words >> np.uint32(16)
    words ^= shifted
    words *= np.uint32(0x21F0AAAD)
    words ^= salt
    np.right_shift(words, np.uint32(15), out=shifted)
    words ^= shifted
    words *= np.uint32(0xD35A2D97)
    np.right_shift(words, np.uint32(15), out=shifted)
    words ^= shifted
    words >>= np.uint32(1)  # 31 bits, so that the threshold of probability 1 fits into the word
    return words


def permuted(positions: np.ndarray, size: int, key: int | np.ndarray) -> np.ndarray:
    """Images of ``positions`` under the permutation of ``range(size)`` that ``key`` selects.

    This is a generalised Feistel network (Black and Rogaway, CT-RSA 2002, section 5) over pairs of numbers below a and
    b, both close to the square root of ``size``. It is applied to all positions at once, and again to each position
    whose value is outside the range. As a * b is only a little above ``size``, few positions need a second pass.

    Args:
        positions: integers in [0, size), any shape.
        size: length of the permuted range, below 2**62.
        key: integer, or an array of them broadcast against ``positions``.

    Returns:
        int64 array of the shape of ``positions``; distinct positions under one key have distinct images.
    """
    num_left = math.isqrt(size - 1) + 1
    num_right = -(-size // num_left)
    values = np.array(positions, dtype=np.uint64).reshape(-1)
    keys = np.broadcast_to(np.asarray(key, dtype=np.uint64), np.shape(positions)).reshape(-1)
    # The positions have few distinct keys, one per epoch. Each key is hashed once per round.
    distinct, which = np.unique(keys, return_inverse=True)
    round_keys = [hash64(distinct, round_number) for round_number in range(_FEISTEL_ROUNDS)]
    pending = np.arange(values.size)
    while pending.size:
        left, right = np.divmod(values[pending], np.uint64(num_right))
        key_of = which[pending]
        for pair in range(0, _FEISTEL_ROUNDS, 2):
            left = _rotated(left, num_left, round_keys[pair][key_of] ^ right)
            right = _rotated(right, num_right, round_keys[pair + 1][key_of] ^ left)
        values[pending] = left * np.uint64(num_right) + right
        pending = pending[values[pending] >= size]
    return values.astype(np.int64).reshape(np.shape(positions))


def _rotated(values: np.ndarray, size: int, words: np.ndarray) -> np.ndarray:
    """``values`` plus a hash of ``words``, modulo ``size`` (below 2**31)."""
    moved = values + ((mix64(words + _GOLDEN) >> np.uint64(32)) * np.uint64(size) >> np.uint64(32))
    return np.where(moved >= size, moved - np.uint64(size), moved)
