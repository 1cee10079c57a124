from __future__ import annotations

import itertools

import numpy as np
import pytest

from bnb_ds.common.randomness import hash64
from bnb_ds.data.corruption import OBJECTIVES, Corruption, prefix_lengths
from bnb_ds.data.subwords.rules import WordStarts
from tests import plain_corruption

UNK, CLS, SEP, MASK, VOCAB = 0, 1, 2, 3, 1000
SPECIALS = (UNK, CLS, SEP, MASK)
# Lengths of every kind: no token, one, two, and one length that needs 64-bit sorting words.
LENGTHS = [5, 0, 1, 40, 2, 3, 13, 1500, 7, 61]


def packed(lengths, seed=0, dtype=np.int64):
    """Random ordinary tokens (ids from 10 on), one in twenty [UNK], between [CLS] and [SEP]."""
    rng = np.random.default_rng(seed)
    rows = [np.concatenate(([CLS], rng.integers(10, VOCAB, length), [SEP])) for length in lengths]
    tokens = np.concatenate(rows).astype(dtype)
    tokens[(rng.random(tokens.size) < 0.05) & (tokens >= 10)] = UNK
    return tokens, np.concatenate(([0], np.cumsum([row.size for row in rows])))


def keys(count, seed=0):
    return hash64(seed, np.arange(count))


def noise(mask=0.15, permute=0.5, vocab_size=VOCAB, **mixture):
    return Corruption(mask, permute, MASK, vocab_size, {n.replace("_", "+"): w for n, w in mixture.items()}, SPECIALS)


def rows_of(tokens, cu_seqlens):
    return [tokens[begin:end].tolist() for begin, end in itertools.pairwise(cu_seqlens)]


def whole_words(corruption):
    begins = np.ones(VOCAB, dtype=bool)
    begins[VOCAB // 2 :] = False
    fields = (corruption.mask_probability, corruption.permute_probability, MASK, VOCAB, corruption.mixture, SPECIALS)
    return Corruption(*fields, WordStarts.at(begins))


@pytest.mark.parametrize("dtype", [np.uint16, np.int64])
@pytest.mark.parametrize("lengths", [LENGTHS, [9], [0, 0], LENGTHS[:7]], ids=["long", "one", "empty", "short"])
@pytest.mark.parametrize(
    "corruption",
    [
        *(noise(**{name.replace("+", "_"): 1}) for name in OBJECTIVES),
        noise(0.4, 0.7, ae=1, mlm=2, plm=2, mlm_plm=3, clm=2, infill=2),
        noise(1.0, 1.0, mlm_plm=1, clm=1, infill=1),
        noise(0.5, infill=1),
        whole_words(noise(0.3, 0.5, mlm=1, mlm_plm=1)),
    ],
    ids=[*OBJECTIVES, "all", "everything", "half", "whole words"],
)
def test_equals_the_noise_written_out(corruption, lengths, dtype):
    tokens, cu_seqlens = packed(lengths, dtype=dtype)
    before = tokens.copy()
    sample_keys = keys(len(lengths), seed=4)
    found = corruption(tokens, cu_seqlens, sample_keys)
    assert (tokens == before).all()
    assert found.source.dtype == found.target.dtype == dtype
    expected = [
        plain_corruption.corrupt(corruption, row, int(key))
        for row, key in zip(rows_of(tokens, cu_seqlens), sample_keys, strict=True)
    ]
    assert rows_of(found.source, found.source_cu_seqlens) == [e["source"] for e in expected]
    assert rows_of(found.target, found.target_cu_seqlens) == [e["target"] for e in expected]
    starts = found.source_cu_seqlens[:-1].tolist()
    assert found.chosen.tolist() == [start + i for start, e in zip(starts, expected, strict=True) for i in e["chosen"]]
    assert found.chosen_labels.tolist() == [label for e in expected for label in e["labels"]]
    if corruption.mixture.keys() <= {
        "ae",
        "plm",
        "clm",
        "infill",
    }:  # a masked token would look like a special one
        assert found.num_ordinary == sum(token not in SPECIALS for e in expected for token in e["source"])


@pytest.mark.parametrize(("mask", "permute"), [(1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (0.15, 0.5)])
def test_special_tokens_and_boundaries_are_never_touched(mask, permute):
    tokens, cu_seqlens = packed([1, 7, 0, 30, 200])
    found = noise(mask, permute, mlm_plm=1)(tokens, cu_seqlens, keys(5))
    special = np.isin(tokens, SPECIALS)
    assert special.sum() > 10
    assert (found.source[special] == tokens[special]).all()
    assert found.num_ordinary == (~special).sum()
    assert not special[found.chosen].any()
    unnamed = Corruption(mask, permute, MASK, VOCAB)(tokens, cu_seqlens, keys(5)).source
    assert (unnamed[cu_seqlens[:-1]] == CLS).all()
    assert (unnamed[cu_seqlens[1:] - 1] == SEP).all()


def test_no_noise_costs_no_copy():
    tokens, cu_seqlens = packed([5, 0, 9])
    for corruption in (noise(ae=1), noise(0.0, 0.0, mlm_plm=1)):
        found = corruption(tokens, cu_seqlens, keys(3))
        assert found.source is found.target is tokens
        assert found.chosen.size == 0


def test_permutation_stays_within_its_sequence():
    tokens, cu_seqlens = packed([40, 25, 3, 60])
    found = noise(plm=1)(tokens, cu_seqlens, keys(4))
    for row, original in zip(rows_of(found.source, cu_seqlens), rows_of(tokens, cu_seqlens), strict=True):
        assert sorted(row) == sorted(original)
    assert (found.source != tokens).any()


@pytest.mark.parametrize("lengths", [[13, 40, 8], [13, 1500, 8]])
def test_a_sample_is_corrupted_alike_alone_and_in_any_batch(lengths):
    corruption = noise(0.3, 0.5, ae=1, mlm=1, plm=1, mlm_plm=2, clm=1)
    tokens, cu_seqlens = packed(lengths)
    for seed in range(5):
        sample_keys = keys(3, seed)
        together = corruption(tokens, cu_seqlens, sample_keys)
        for row in (2, 0, 1):
            begin, end = cu_seqlens[row], cu_seqlens[row + 1]
            alone = corruption(tokens[begin:end], np.array([0, end - begin]), sample_keys[row : row + 1])
            assert alone.source.tolist() == rows_of(together.source, together.source_cu_seqlens)[row]
            assert alone.target.tolist() == rows_of(together.target, together.target_cu_seqlens)[row]


def test_another_key_gives_other_noise():
    tokens, cu_seqlens = packed([200])
    first, second = (noise(mlm_plm=1)(tokens, cu_seqlens, keys(1, seed)).source for seed in (1, 2))
    assert (first != second).any()


@pytest.mark.parametrize("length", range(40))
def test_the_prefix_has_70_to_80_percent_where_it_can(length):
    sizes = prefix_lengths(np.full(500, length), keys(500))
    possible = [n for n in range(length + 1) if 7 * length <= 10 * n <= 8 * length]
    if possible:
        assert set(sizes.tolist()) == set(possible)
    elif length > 1:
        assert 1 <= sizes[0] <= length - 1
        assert abs(sizes[0] / length - 0.75) <= 0.25
    else:
        assert sizes[0] == length  # nothing to continue


def test_words_are_masked_whole():
    tokens, cu_seqlens = packed([400] * 20)
    corruption = whole_words(noise(0.15, 0.5, mlm=1))
    chosen = np.zeros(tokens.size, dtype=bool)
    chosen[corruption(tokens, cu_seqlens, keys(20)).chosen] = True
    continues = ~corruption.word_starts(tokens)
    special = np.isin(tokens, SPECIALS)
    for i in range(1, tokens.size):
        if continues[i] and not special[i - 1]:
            assert chosen[i] == chosen[i - 1]
    assert 0.12 < chosen[~special].mean() < 0.18
