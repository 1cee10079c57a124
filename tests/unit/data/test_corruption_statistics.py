"""Statistics of the noise at fixed seeds: chi-square tests at the level of 99.9%."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from bnb_ds.common.randomness import hash64
from bnb_ds.data.corruption import OBJECTIVES, Corruption
from tests.unit.data.test_corruption import CLS, MASK, SEP, VOCAB, keys

# 99.9% quantiles of the chi-square distribution by degrees of freedom (Abramowitz and Stegun, table 26.8).
QUANTILES = {1: 10.828, 2: 13.816, 3: 16.266, 4: 18.467, 5: 20.515, 9: 27.877, 18: 42.312, 19: 43.820}


def quantile(degrees):
    """From the table, or by Wilson and Hilferty's approximation, whose error is below 0.001 from 20 degrees on."""
    if degrees in QUANTILES:
        return QUANTILES[degrees]
    share = 2 / (9 * degrees)
    return degrees * (1 - share + 3.0902 * share**0.5) ** 3


def assert_fits(counts, shares=None):
    """Check that the counts are probable under these shares (default: equal shares)."""
    counts = np.asarray(counts, dtype=float).ravel()
    shares = np.full(counts.size, 1 / counts.size) if shares is None else np.asarray(shares, dtype=float)
    expected = shares / shares.sum() * counts.sum()
    assert expected.min() >= 5, "too few to test"
    assert ((counts - expected) ** 2 / expected).sum() < quantile(counts.size - 1)


def rows(num_rows, length, token=None):
    content = np.arange(10, 10 + length) if token is None else np.full(length, token)
    tokens = np.tile(np.concatenate(([CLS], content, [SEP])), num_rows)
    return tokens, np.arange(num_rows + 1) * (length + 2)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("probability", [0.15, 0.5, 0.01])
def test_masking_rates_are_as_asked_and_80_10_10(probability, seed):
    tokens, cu_seqlens = rows(400, 500)
    found = Corruption(probability, 0.0, MASK, VOCAB)(tokens, cu_seqlens, keys(400, seed))
    assert_fits([found.chosen.size, 400 * 500 - found.chosen.size], [probability, 1 - probability])
    masked = int((found.source == MASK).sum())
    replaced = int(((found.source != tokens) & (found.source != MASK)).sum())
    # With probability 1 / VOCAB a random replacement is the token itself, and with the same probability [MASK].
    shares = [0.8 + 0.1 / VOCAB, 0.1 * (1 - 2 / VOCAB), 0.1 + 0.1 / VOCAB]
    assert_fits([masked, replaced, found.chosen.size - masked - replaced], shares)


@pytest.mark.parametrize("seed", range(3))
def test_rates_are_the_same_at_every_place_and_in_every_sample(seed):
    tokens, cu_seqlens = rows(2000, 64)
    found = Corruption(0.15, 0.0, MASK, VOCAB)(tokens, cu_seqlens, keys(2000, seed))
    chosen = np.zeros(tokens.size, dtype=bool)
    chosen[found.chosen] = True
    by_place = chosen.reshape(2000, 66)[:, 1:-1]
    assert_fits(by_place.sum(0))
    # The counts of each sample are binomial.
    binomial = np.array([1.0])
    for _ in range(64):
        binomial = np.convolve(binomial, [0.85, 0.15])
    counts = np.bincount(by_place.sum(1), minlength=65)
    grouped = [np.array([x[:5].sum(), *x[5:15], x[15:].sum()]) for x in (counts, binomial)]
    assert_fits(*grouped)


def test_neighbours_and_samples_are_chosen_independently():
    tokens, cu_seqlens = rows(2000, 128)
    found = Corruption(0.5, 0.0, MASK, VOCAB)(tokens, cu_seqlens, keys(2000))
    chosen = np.zeros(tokens.size, dtype=np.int64)
    chosen[found.chosen] = 1
    grid = chosen.reshape(2000, 130)[:, 1:-1]
    for distance in (1, 2, 3, 64):
        pairs = 2 * grid[:, distance:] + grid[:, :-distance]
        assert_fits(np.bincount(pairs[:, :: 2 * distance].ravel(), minlength=4))
    assert_fits(np.bincount((2 * grid[1:] + grid[:-1])[::2].ravel(), minlength=4))


def test_masking_and_permutation_are_independent():
    tokens, cu_seqlens = rows(2000, 60)
    sample_keys = keys(2000, 7)
    chosen = Corruption(0.5, 0.0, MASK, VOCAB)(tokens, cu_seqlens, sample_keys).chosen
    moved = np.flatnonzero(Corruption(0.0, 0.5, MASK, VOCAB)(tokens, cu_seqlens, sample_keys).source != tokens)
    both, share = np.intersect1d(chosen, moved).size, moved.size / (2000 * 60)
    counts = [both, chosen.size - both, moved.size - both, 2000 * 60 - chosen.size - moved.size + both]
    assert_fits(counts, [share / 2, (1 - share) / 2, share / 2, (1 - share) / 2])


@pytest.mark.parametrize("vocab_size", [50, 28_996])
def test_random_replacements_are_uniform_over_the_whole_vocabulary(vocab_size):
    own_token = 60_000
    tokens = np.concatenate(([CLS], np.full(2_000_000, own_token), [SEP]))
    found = Corruption(1.0, 0.0, MASK, vocab_size)(tokens, np.array([0, tokens.size]), keys(1))
    replaced = found.source[1:-1][found.source[1:-1] < vocab_size]
    counts = np.bincount(replaced, minlength=vocab_size)
    counts[MASK] = round(np.delete(counts, MASK).mean())  # the tokens that became [MASK] without a random replacement
    groups = np.array_split(counts, 50)
    assert_fits([group.sum() for group in groups], [group.size for group in groups])
    assert counts[0] > 0
    assert counts[-1] > 0


def test_half_of_the_tokens_change_places():
    length, num_rows = 20, 5000
    tokens, cu_seqlens = rows(num_rows, length)
    where = Corruption(0.0, 0.5, MASK, VOCAB)(tokens, cu_seqlens, keys(num_rows)).source
    stayed = (where == tokens).reshape(num_rows, -1)[:, 1:-1]
    # Each of k moved tokens keeps its place with probability 1/k, so on average one of them stays.
    probability = np.array([1.0])
    for _ in range(length):
        probability = np.convolve(probability, [0.5, 0.5])
    expected = 0.5 + (1 - probability[0]) / length
    assert_fits(stayed.sum(0) + 0.0, np.full(length, expected))
    assert stayed.mean() == pytest.approx(expected, abs=0.004)


@pytest.mark.parametrize("seed", range(3))
def test_moved_tokens_go_everywhere_alike(seed):
    length, num_rows = 20, 5000
    tokens, cu_seqlens = rows(num_rows, length)
    where = Corruption(0.0, 0.5, MASK, VOCAB)(tokens, cu_seqlens, keys(num_rows, seed)).source
    where = where.reshape(num_rows, -1)[:, 1:-1] - 10
    for place in (0, 7, length - 1):
        counts = np.bincount(where[:, place], minlength=length)
        assert_fits(np.delete(counts, place))


@pytest.mark.parametrize("length", [4, 1500])
def test_all_orders_of_moved_tokens_are_equally_frequent(length):
    """Four tokens at the head of a sequence all move. All 24 orders are equally likely, also with 64-bit words."""
    num_rows = 12_000 if length == 4 else 400
    tokens, cu_seqlens = rows(num_rows, length)
    where = Corruption(0.0, 1.0, MASK, VOCAB + 2000)(tokens, cu_seqlens, keys(num_rows, 3)).source
    where = where.reshape(num_rows, -1)[:, 1:-1] - 10
    groups = where.reshape(-1, 4)
    ranks = np.argsort(groups, axis=1) @ np.array([64, 16, 4, 1])
    orders = [np.dot(order, [64, 16, 4, 1]) for order in itertools.permutations(range(4))]
    assert_fits([(ranks == order).sum() for order in orders])


@pytest.mark.parametrize("weights", [{"mlm": 1, "clm": 1}, {"ae": 1, "mlm": 2, "plm": 3, "mlm+plm": 4, "clm": 0.5}])
def test_objectives_are_drawn_by_weight(weights):
    found = Corruption(0.15, 0.5, MASK, VOCAB, weights)._objectives(hash64(11, np.arange(20_000)))
    counts = np.bincount(found, minlength=len(OBJECTIVES))
    assert counts[[name not in weights for name in OBJECTIVES]].sum() == 0
    assert_fits([counts[OBJECTIVES.index(name)] for name in weights], list(weights.values()))
