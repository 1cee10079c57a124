from __future__ import annotations

import itertools

import numpy as np
import pytest

from bnb_ds.corruption import Corruption
from bnb_ds.randomness import hash64

CLS, SEP, MASK, VOCAB = 1, 2, 3, 1000


def packed(lengths, seed=0):
    """Random ordinary tokens (ids from 10 on) between [CLS] and [SEP]."""
    rng = np.random.default_rng(seed)
    rows = [np.concatenate(([CLS], rng.integers(10, VOCAB, length), [SEP])) for length in lengths]
    return np.concatenate(rows), np.concatenate(([0], np.cumsum([row.size for row in rows])))


def keys(count, seed=0):
    return hash64(seed, np.arange(count))


def test_nothing_to_do_changes_nothing():
    tokens, cu_seqlens = packed([5, 0, 9])
    corrupted, num_masked = Corruption(0.0, 0.0, MASK, VOCAB)(tokens, cu_seqlens, keys(3))
    assert corrupted.tolist() == tokens.tolist()
    assert num_masked == 0


@pytest.mark.parametrize(("mask", "permute"), [(1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (0.15, 0.5)])
def test_boundaries_are_never_touched_and_the_input_is_not_changed(mask, permute):
    tokens, cu_seqlens = packed([1, 7, 0, 30, 2])
    before = tokens.copy()
    corrupted, _ = Corruption(mask, permute, MASK, VOCAB)(tokens, cu_seqlens, keys(5))
    assert (corrupted[cu_seqlens[:-1]] == CLS).all()
    assert (corrupted[cu_seqlens[1:] - 1] == SEP).all()
    assert (tokens == before).all()


def test_permutation_stays_within_its_sequence():
    tokens, cu_seqlens = packed([40, 25, 3, 60])
    corrupted, _ = Corruption(0.0, 0.5, MASK, VOCAB)(tokens, cu_seqlens, keys(4))
    for begin, end in itertools.pairwise(cu_seqlens):
        assert sorted(corrupted[begin:end]) == sorted(tokens[begin:end])
    assert (corrupted != tokens).any()


def test_a_sample_is_corrupted_alike_alone_and_in_any_batch():
    noise = Corruption(0.3, 0.5, MASK, VOCAB)
    tokens, cu_seqlens = packed([13, 40, 8])
    sample_keys = keys(3)
    together, _ = noise(tokens, cu_seqlens, sample_keys)
    for row in (2, 0, 1):
        begin, end = cu_seqlens[row], cu_seqlens[row + 1]
        alone, _ = noise(tokens[begin:end], np.array([0, end - begin]), sample_keys[row : row + 1])
        assert alone.tolist() == together[begin:end].tolist()


def test_another_key_gives_other_noise():
    noise = Corruption(0.15, 0.5, MASK, VOCAB)
    tokens, cu_seqlens = packed([200])
    assert (noise(tokens, cu_seqlens, keys(1, 1))[0] != noise(tokens, cu_seqlens, keys(1, 2))[0]).any()


def chi_square(counts, shares):
    expected = np.asarray(shares) * np.sum(counts)
    return float(((np.asarray(counts) - expected) ** 2 / expected).sum())


def test_masking_rates_are_15_and_80_10_10():
    tokens, cu_seqlens = packed([500] * 200)
    corrupted, num_masked = Corruption(0.15, 0.0, MASK, VOCAB)(tokens, cu_seqlens, keys(200))
    num_ordinary = 500 * 200
    assert chi_square([num_masked, num_ordinary - num_masked], [0.15, 0.85]) < 10.8  # 99.9%, 1 degree of freedom
    masked = int((corrupted == MASK).sum())
    replaced = int(((corrupted != tokens) & (corrupted != MASK)).sum())
    # A random replacement is the token itself once in VOCAB times, and [MASK] as often.
    shares = [0.8 + 0.1 / VOCAB, 0.1 * (1 - 2 / VOCAB), 0.1 + 0.1 / VOCAB]
    assert chi_square([masked, replaced, num_masked - masked - replaced], shares) < 13.8  # 2 degrees of freedom


def test_random_replacements_are_uniform_over_the_vocabulary():
    vocab_size = 50
    tokens = np.concatenate(([CLS], np.full(200_000, 60), [SEP]))
    corrupted, _ = Corruption(1.0, 0.0, MASK, vocab_size)(tokens, np.array([0, tokens.size]), keys(1))
    replaced = corrupted[1:-1][corrupted[1:-1] < vocab_size]
    counts = np.delete(np.bincount(replaced, minlength=vocab_size), MASK)
    assert chi_square(counts, np.full(vocab_size - 1, 1 / (vocab_size - 1))) < 85.4  # 99.9%, 48 degrees of freedom


def test_half_of_the_tokens_change_places_uniformly():
    length, rows = 20, 5000
    tokens = np.concatenate([np.concatenate(([CLS], np.arange(10, 10 + length), [SEP]))] * rows)
    cu_seqlens = np.arange(rows + 1) * (length + 2)
    corrupted, _ = Corruption(0.0, 0.5, MASK, VOCAB)(tokens, cu_seqlens, keys(rows))
    where = corrupted.reshape(rows, -1)[:, 1:-1] - 10
    stayed = (where == np.arange(length)).mean()
    # Each of about ten moved tokens keeps its place with probability E[1/k] of the k moved ones.
    sizes = np.random.default_rng(0).binomial(length, 0.5, 200_000)
    expected = 0.5 + (np.minimum(sizes, 1)).mean() / length
    assert stayed == pytest.approx(expected, abs=0.01)
    moved_to = np.bincount(where[:, 0][where[:, 0] != 0], minlength=length)[1:]
    assert chi_square(moved_to, np.full(length - 1, 1 / (length - 1))) < 42.3  # 99.9%, 18 degrees of freedom
