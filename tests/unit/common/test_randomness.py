from __future__ import annotations

import numpy as np
import pytest

from bnb_ds.common.randomness import DRAWS, draws_at, hash64, mix64, packed_draws, permuted
from tests import plain_corruption


def splitmix64(seed: int, count: int) -> list[int]:
    """SplitMix64 as published, one word at a time."""
    mask, words = 2**64 - 1, []
    for _ in range(count):
        seed = (seed + 0x9E3779B97F4A7C15) & mask
        z = seed
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        words.append(z ^ (z >> 31))
    return words


def test_mix_is_the_finalizer_of_splitmix64():
    states = np.uint64(1234567) + np.arange(1, 6, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    assert mix64(states).tolist() == splitmix64(1234567, 5)
    # The published test vector of the generator.
    assert splitmix64(1234567, 1) == [6457827717110365317]


@pytest.mark.parametrize("lengths", [[3], [0, 5, 1, 0, 70], [2, 2, 2]])
def test_draws_of_a_packed_batch_are_those_of_each_token_by_itself(lengths):
    keys = hash64(5, np.arange(len(lengths)))
    cu_seqlens = np.concatenate(([0], np.cumsum(lengths)))
    draws = packed_draws(keys, cu_seqlens)
    rows = np.repeat(np.arange(len(lengths)), lengths)
    counters = np.concatenate([np.arange(length) for length in lengths])
    assert draws.dtype == np.uint32
    assert draws.tolist() == draws_at(keys[rows], counters).tolist()
    assert draws.max() < DRAWS
    numbered = zip(keys[rows].tolist(), counters.tolist(), strict=True)
    assert draws.tolist() == [plain_corruption.draw_of_stream(key, counter) for key, counter in numbered]


def test_draws_are_uniform_and_their_bits_independent():
    draws = packed_draws(hash64(9, np.arange(400)), np.arange(401) * 512)
    for shift in (0, 5, 11, 19, 27):
        counts = np.bincount((draws >> np.uint32(shift)) & np.uint32(15), minlength=16)
        expected = draws.size / 16
        assert ((counts - expected) ** 2 / expected).sum() < 37.7  # 99.9% quantile, 15 degrees of freedom


def test_hash_depends_on_every_key_and_their_order():
    values = {int(hash64(*keys)[0]) for keys in ((1, 2), (2, 1), (1, 2, 0), (1,), (0,), ())}
    assert len(values) == 6


def test_hash_broadcasts():
    rows = hash64(7, np.arange(4), np.array([5]))
    assert rows.tolist() == [int(hash64(7, i, 5)[0]) for i in range(4)]


def test_mix_is_injective_on_a_sample():
    assert np.unique(mix64(np.arange(100_000, dtype=np.uint64))).size == 100_000


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 17, 64, 1000, 4097])
@pytest.mark.parametrize("key", [0, 99])
def test_permuted_is_a_permutation(size, key):
    assert sorted(permuted(np.arange(size), size, key).tolist()) == list(range(size))


def test_permuted_needs_no_neighbours():
    whole = permuted(np.arange(1000), 1000, 5)
    assert permuted(np.array([977, 3]), 1000, 5).tolist() == [whole[977], whole[3]]


def test_permutations_of_one_position_are_uniform():
    size, draws = 10, 20_000
    counts = np.bincount(permuted(np.zeros(draws, np.int64), size, hash64(3, np.arange(draws))), minlength=size)
    chi_square = ((counts - draws / size) ** 2 / (draws / size)).sum()
    assert chi_square < 27.9  # 99.9% quantile with 9 degrees of freedom


def test_all_orders_of_three_are_equally_frequent():
    draws = 12_000
    keys = hash64(8, np.arange(draws))
    orders = np.stack([permuted(np.full(draws, i), 3, keys) for i in range(3)])
    counts = np.unique(orders, axis=1, return_counts=True)[1]
    assert counts.size == 6
    assert ((counts - draws / 6) ** 2 / (draws / 6)).sum() < 20.5  # 99.9% quantile, 5 degrees of freedom
