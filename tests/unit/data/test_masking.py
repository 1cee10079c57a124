"""Which tokens mask-predict masks in training."""

from __future__ import annotations

import itertools

import numpy as np
from scipy.stats import chisquare

from bnb_ds.common.randomness import hash64
from bnb_ds.data.masking import masked_tokens


def rows_of(lengths, keys):
    return [part.tolist() for part in masked_tokens(np.array(lengths), keys).split(list(lengths))]


def test_the_noise_belongs_to_a_sample():
    lengths, keys = [5, 1, 9, 2, 30], hash64(3, 1, np.arange(5))
    together = rows_of(lengths, keys)
    assert together[1] == [True], "a target of one token is masked"
    for length, key, masked in zip(lengths, keys, together, strict=True):
        assert rows_of([length], np.array([key])) == [masked]
        assert any(masked)
    assert rows_of(lengths, hash64(3, 2, np.arange(5))) != together, "each epoch has its own"


def test_each_number_and_each_choice_of_that_many_is_equally_probable():
    number, length = 40_000, 4
    rows = rows_of([length] * number, hash64(7, np.arange(number)))
    counts = np.bincount([sum(row) for row in rows], minlength=length + 1)
    assert counts[0] == 0
    assert counts[length] > 0, "all of them, with which decoding begins"
    assert chisquare(counts[1:]).pvalue > 1e-3
    for size in range(1, length):
        choices = list(itertools.combinations(range(length), size))
        found = [tuple(np.flatnonzero(row)) for row in rows if sum(row) == size]
        assert chisquare([found.count(choice) for choice in choices]).pvalue > 1e-3
