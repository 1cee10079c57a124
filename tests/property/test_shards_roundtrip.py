"""The documents that are written are read back unchanged, for any documents, order and shard size."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bnb_ds.shards.manifest import SPLITS
from bnb_ds.shards.reader import TokenShards
from data_prep.sources.documents import is_held_out
from tests.shard_helpers import writer

pytestmark = pytest.mark.slow

VOCAB_SIZES = st.sampled_from([6, 65_536, 65_537, 1 << 20])


@st.composite
def corpora(draw) -> tuple[int, list[tuple[str, list[int]]]]:
    """A vocabulary size and documents with their splits; id 1 is [UNK], ids 5 and up are words."""
    vocab_size = draw(VOCAB_SIZES)
    ids = st.one_of(st.just(1), st.integers(5, vocab_size - 1))
    documents = st.tuples(st.sampled_from(SPLITS), st.lists(ids, min_size=1, max_size=12))
    return vocab_size, draw(st.lists(documents, max_size=20))


@settings(max_examples=60, deadline=None)
@given(corpora(), st.integers(1, 40))
def test_what_is_written_is_read(corpus: tuple[int, list[tuple[str, list[int]]]], tokens_per_shard: int) -> None:
    vocab_size, documents = corpus
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary) / "shards"
        with writer(directory, vocab_size=vocab_size, tokens_per_shard=tokens_per_shard) as shard_writer:
            for split, ids in documents:
                shard_writer.add(np.array(ids), split)
        for split in SPLITS:
            expected = [ids for of_split, ids in documents if of_split == split]
            shards = TokenShards(directory, split, verify_hashes=True)
            assert [shards.document(i).tolist() for i in range(len(shards))] == expected
            assert shards.lengths.tolist() == [len(ids) for ids in expected]
            assert shards.num_tokens == sum(map(len, expected))
            sizes = [(s.num_documents, s.num_tokens) for s in shards.manifest.shards if s.split == split]
            assert all(num_documents == 1 or num_tokens <= tokens_per_shard for num_documents, num_tokens in sizes)
            # The first document of the next shard would not have fitted into this one.
            first = 0
            for num_documents, num_tokens in sizes[:-1]:
                first += num_documents
                assert num_tokens + len(expected[first]) > tokens_per_shard


@given(st.text(), st.floats(0, 1), st.floats(0, 1))
def test_a_larger_holdout_keeps_what_a_smaller_one_held_out(document_id: str, one: float, other: float) -> None:
    small, large = sorted((one, other))
    assert is_held_out(document_id, large) or not is_held_out(document_id, small)
