"""Building samples from documents: heads, chunks and packed bins."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from bnb_ds.data import sequences
from bnb_ds.data.bin_packing import pack_histogram
from bnb_ds.data.sequences import Bins, Chunks, make_index
from bnb_ds.shards.reader import TokenShards
from tests.shard_helpers import document, writer

# Difficult lengths: one token; exact multiples of a chunk of 6, one more and one less; and one with many chunks.
LENGTHS = [1, 6, 12, 7, 5, 1, 100, 3, 3, 2, 18, 4, 11, 1]


@pytest.fixture
def shards(tmp_path):
    with writer(tmp_path / "shards", tokens_per_shard=40) as shard_writer:
        for i, length in enumerate(LENGTHS):
            shard_writer.add(document(*(10 + (i * 7 + np.arange(length)) % 80)), "train")
    return TokenShards(tmp_path / "shards", "train")


def spans(index, sample_ids):
    """For each sample the (document, begin, size) of its pieces."""
    pieces = index.pieces(np.asarray(sample_ids))
    flat = list(zip(pieces.documents.tolist(), pieces.begins.tolist(), pieces.sizes.tolist(), strict=True))
    ends = np.cumsum(pieces.per_sample).tolist()
    return [flat[begin:end] for begin, end in itertools.pairwise([0, *ends])]


def all_chunks(size):
    """The spans that use every token once, computed in the simplest way."""
    return [(d, b, min(size, n - b)) for d, n in enumerate(LENGTHS) for b in range(0, n, size)]


@pytest.mark.parametrize("max_length", [3, 8, 15, 102, 500])
def test_truncate_takes_heads(shards, max_length):
    index = make_index("truncate", shards, max_length)
    expected = [[(d, 0, min(n, max_length - 2))] for d, n in enumerate(LENGTHS)]
    assert spans(index, np.arange(len(index))) == expected
    assert index.lengths(np.array([6, 0])).tolist() == [min(100, max_length - 2) + 2, 3]


@pytest.mark.parametrize("max_length", [3, 8, 15, 102, 500])
def test_chunk_uses_every_token_once(shards, max_length):
    index = make_index("chunk", shards, max_length)
    found = spans(index, np.arange(len(index)))
    assert [span for sample in found for span in sample] == all_chunks(max_length - 2)
    last = len(index) - 1
    assert spans(index, [last, 0]) == [found[last], found[0]]


@pytest.mark.parametrize("max_length", [3, 8, 15, 102, 500])
def test_pack_uses_every_token_once_in_samples_of_at_most_max_length(shards, max_length):
    index = make_index("pack", shards, max_length)
    samples = spans(index, np.arange(len(index)))
    assert sorted(span for sample in samples for span in sample) == sorted(all_chunks(max_length - 2))
    totals = [sum(size + 2 for _, _, size in sample) for sample in samples]
    assert totals == index.lengths(np.arange(len(index))).tolist()
    assert max(totals) <= max_length
    # At most a tenth more samples than the fewest possible.
    assert len(samples) <= -(-sum(totals) // max_length) * 1.1 + 1
    last = len(index) - 1
    assert spans(index, [last, 0, last]) == [samples[last], samples[0], samples[last]]


def test_a_piece_has_one_number_however_it_is_put_together(shards):
    bins, chunks = make_index("pack", shards, 15), make_index("chunk", shards, 15)
    pieces = bins.pieces(np.arange(len(bins)))
    assert sorted(pieces.ids.tolist()) == list(range(len(chunks)))
    again = chunks.pieces(pieces.ids)
    assert (again.documents == pieces.documents).all()
    assert (again.begins == pieces.begins).all()


def test_lengths_are_looked_at_in_blocks(shards, monkeypatch):
    whole = [spans(make_index("pack", shards, 15), [i]) for i in range(3)]
    lengths = shards.lengths.tolist()
    monkeypatch.setattr("bnb_ds.shards.reader._LENGTH_BLOCK", 3)
    monkeypatch.setattr(sequences, "_SORT_BLOCK", 3)
    assert max(block.size for block in shards.length_blocks()) == 3
    assert shards.lengths.tolist() == lengths == LENGTHS
    assert [spans(make_index("pack", shards, 15), [i]) for i in range(3)] == whole


def test_more_pieces_than_32_bits_count(shards, monkeypatch):
    narrow = [spans(kind, np.arange(len(kind))) for kind in (Chunks(shards, 6), Bins(shards, 8))]
    monkeypatch.setattr(sequences, "_id_dtype", lambda total: np.uint64)
    wide = [spans(kind, np.arange(len(kind))) for kind in (Chunks(shards, 6), Bins(shards, 8))]
    assert wide == narrow


def first_fit_decreasing(sizes, capacity, overhead):
    bins = []
    for size in sorted(sizes, reverse=True):
        for content in bins:
            if sum(content) + len(content) * overhead + size + overhead <= capacity:
                content.append(size)
                break
        else:
            bins.append([size])
    return bins


@pytest.mark.parametrize("seed", range(6))
def test_patterns_hold_every_piece_once_and_few_bins(seed):
    rng = np.random.default_rng(seed)
    capacity = int(rng.integers(5, 60))
    sizes = np.minimum(rng.lognormal(2, 1, 300).astype(int) + 1, capacity - 2)
    patterns = pack_histogram(np.bincount(sizes, minlength=capacity - 1), capacity, 2)
    counts = np.zeros(capacity - 1, dtype=int)
    for pattern in patterns:
        assert sum((size + 2) * copies for size, copies in pattern.contents) <= capacity
        for size, copies in pattern.contents:
            counts[size] += pattern.repetitions * copies
    assert counts.tolist() == np.bincount(sizes, minlength=capacity - 1).tolist()
    plain = len(first_fit_decreasing(sizes.tolist(), capacity, 2))
    assert sum(pattern.repetitions for pattern in patterns) <= 1.05 * plain + 1
    assert len(patterns) <= 4 * capacity


def test_a_piece_larger_than_a_bin_is_refused():
    with pytest.raises(ValueError, match=r"a piece of 5 \+ 2 does not fit a bin of 6"):
        pack_histogram(np.bincount([3, 5]), 6, 2)
