"""The noise of models that rewrite whole outputs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.stats import chisquare

from bnb_ds.common.randomness import DRAWS, draws_at, hash64, stream_keys
from bnb_ds.data.rewriting import PASS_DRAWS, Rewriting

ORDINARY = np.arange(4, 53)


def rows(lengths, seed=0):
    """Targets [CLS] tokens [SEP], and where each begins."""
    rng = np.random.default_rng(seed)
    parts = [np.concatenate(([2], rng.integers(4, 53, max(length - 2, 0)), [3]))[:length] for length in lengths]
    return np.concatenate(parts), np.concatenate(([0], np.cumsum(lengths)))


def plainly(target, key, rate):
    """The walk over one target, token by token."""
    draws, words = (
        [int(draws_at(stream_keys(key, stream), np.array([i]))[0]) for i in range(len(target))] for stream in (1, 2)
    )
    noisy, last = list(target), len(target) - 2
    for i in range(1, last + 1):
        if draws[i] >= round(rate * DRAWS):
            continue
        kind = draws[i] * 3 // round(rate * DRAWS)
        if kind == 0:
            noisy[i] = int(ORDINARY[words[i] * len(ORDINARY) // DRAWS])
        elif i < last and kind == 1:
            noisy[i + 1] = noisy[i]
        elif i < last:
            noisy[i], noisy[i + 1] = noisy[i + 1], noisy[i]
    return noisy


@pytest.mark.parametrize("rate", [0.33, 1.0])
def test_a_walk_from_left_to_right(rate):
    targets, cu_seqlens = rows([9, 1, 3, 2, 30, 4, 17])
    keys = hash64(5, np.arange(7))
    noisy = Rewriting(ORDINARY, rate=rate).noisy(targets, cu_seqlens, keys)
    for row, (begin, end) in enumerate(itertools.pairwise(cu_seqlens)):
        assert noisy[begin:end].tolist() == plainly(targets[begin:end].tolist(), keys[row : row + 1], rate)
    assert (noisy != targets).any()
    for edge in (cu_seqlens[:-1], cu_seqlens[1:] - 1):
        assert (noisy[edge] == targets[edge]).all(), "[CLS] and [SEP] stay"


def test_sequences_read_their_output_or_their_noisy_target():
    targets, cu_seqlens = rows([7] * 40)
    keys = hash64(1, np.arange(40))
    rewriting = Rewriting(ORDINARY, passes=3)
    reads = rewriting(targets, cu_seqlens, keys)
    assert reads.shape == (3, 280)
    for number, row in enumerate(reads):
        noisy = rewriting.noisy(targets, cu_seqlens, stream_keys(keys, PASS_DRAWS + number))
        blocks = row.reshape(40, 7)
        assert all((block == -1).all() or (block == noisy.reshape(40, 7)[i]).all() for i, block in enumerate(blocks))
    assert len({row.tobytes() for row in reads}) == 3, "passes have draws of their own"
    assert (Rewriting(ORDINARY, target_share=0.0)(targets, cu_seqlens, keys) == -1).all()
    assert (Rewriting(ORDINARY, target_share=1.0)(targets, cu_seqlens, keys) >= 0).all()


def test_noise_belongs_to_a_sample():
    """Not to the batch, its order, or the other samples."""
    lengths = [9, 4, 12, 7]
    targets, cu_seqlens = rows(lengths)
    keys = hash64(3, 2, np.arange(4))
    together = np.split(Rewriting(ORDINARY)(targets, cu_seqlens, keys), cu_seqlens[1:-1], 1)
    for row in range(4):
        own = targets[cu_seqlens[row] : cu_seqlens[row + 1]]
        alone = Rewriting(ORDINARY)(own, np.array([0, own.size]), keys[row : row + 1])
        assert (alone == together[row]).all()


def test_how_often_each_thing_happens():
    """Of 20,000 targets of three different tokens between the ends, the middle one is looked at."""
    number, rate, share = 20_000, 0.33, 0.5
    targets = np.tile([2, 10, 11, 12, 3], number)
    cu_seqlens = np.arange(number + 1) * 5
    keys = hash64(7, np.arange(number))
    noisy = Rewriting(np.array([40, 41, 42, 43]), rate=rate).noisy(targets, cu_seqlens, keys).reshape(-1, 5)
    # The first token of three: stays, is random, or is swapped with the second; a repeat leaves it.
    first = noisy[:, 1]
    counts = [(first == 10).sum(), *[(first == word).sum() for word in (40, 41, 42, 43)], (first == 11).sum()]
    expected = [1 - rate + rate / 3, *[rate / 12] * 4, rate / 3]
    assert chisquare(counts, np.array(expected) * number).pvalue > 1e-3
    # Repeats: the second is the first's token, and stayed so.
    repeated = ((noisy[:, 1] == 10) & (noisy[:, 2] == 10)).sum()
    chance = rate / 3 * (1 - rate + rate / 3)
    assert chisquare([repeated, number - repeated], np.array([chance, 1 - chance]) * number).pvalue > 1e-3
    reads = Rewriting(ORDINARY, passes=1, target_share=share)(targets, cu_seqlens, keys)[0].reshape(-1, 5)[:, 0] >= 0
    assert chisquare([reads.sum(), (~reads).sum()], [share * number, (1 - share) * number]).pvalue > 1e-3
