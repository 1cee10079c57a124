"""Samples out of real shards: targets are the documents, sources their corruption."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from transformers import BertConfig

from bnb_ds.batch import count_repeats
from bnb_ds.corruption import Corruption
from bnb_ds.modeling import BnbConfig
from bnb_ds.samples import PretrainSamples
from bnb_ds.shards import TokenShards


@pytest.fixture
def shards(small_shards):
    return TokenShards(small_shards, "train")


def make_samples(shards, *, sequence="truncate", max_length=16, ratio=2.0, mask=0.15, permute=0.5):
    bert = BertConfig(vocab_size=shards.vocab_size)
    noise = Corruption(mask, permute, shards.special_ids["mask"], shards.vocab_size)
    config = BnbConfig(encoder=bert, decoder_length_ratio=ratio)
    return PretrainSamples(shards, sequence=sequence, max_length=max_length, corruption=noise, seed=5, config=config)


def test_truncate_takes_the_head_of_each_document(shards):
    samples = make_samples(shards)
    assert len(samples) == len(shards)
    cls_id, sep_id = shards.special_ids["cls"], shards.special_ids["sep"]
    for i in range(len(shards)):
        tokens, cu_seqlens = samples.original(np.array([i]))
        assert tokens.tolist() == [cls_id, *shards.document(i)[:14].tolist(), sep_id]
        assert cu_seqlens.tolist() == [0, tokens.size]


def test_chunk_uses_every_token_once(shards):
    samples = make_samples(shards, sequence="chunk")
    tokens, cu_seqlens = samples.original(np.arange(len(samples)))
    inner = [tokens[a + 1 : b - 1] for a, b in itertools.pairwise(cu_seqlens)]
    documents = [shards.document(i) for i in range(len(shards))]
    assert np.concatenate(inner).tolist() == np.concatenate(documents).tolist()
    assert max(piece.size for piece in inner) <= 14
    assert min(piece.size for piece in inner) >= 1


@pytest.mark.parametrize("sequence", ["truncate", "chunk"])
def test_lengths_are_known_without_reading(shards, sequence):
    samples = make_samples(shards, sequence=sequence)
    _, cu_seqlens = samples.original(np.arange(len(samples)))
    assert samples.lengths(np.arange(len(samples))).tolist() == np.diff(cu_seqlens).tolist()


def test_batch_describes_itself(shards):
    samples = make_samples(shards)
    batch = samples.batch(np.array([3, 0, 2]), np.array([0, 1, 0]))
    lengths = batch.label_lengths.numpy()
    assert batch.input_ids.dtype == batch.labels.dtype == torch.int64
    assert batch.cu_seqlens.dtype == torch.int32
    assert batch.cu_seqlens.tolist() == [0, *np.cumsum(lengths)]
    assert batch.num_tokens == batch.labels.numel() == lengths.sum()
    assert batch.max_seqlen == batch.max_label_length == lengths.max()
    assert batch.decoder_lengths.tolist() == (2 * lengths).tolist()
    assert (batch.num_infeasible, batch.num_targets) == (0, lengths.sum())
    assert batch.num_ordinary == lengths.sum() - 6
    original, _ = samples.original(np.array([3, 0, 2]))
    assert batch.labels.tolist() == original.tolist()
    assert batch.input_ids.tolist() != original.tolist()


def test_noise_depends_on_sample_and_epoch_alone(shards):
    samples = make_samples(shards)
    first = samples.batch(np.array([1]), np.array([0])).input_ids
    together = samples.batch(np.array([4, 1]), np.array([2, 0]))
    assert together.input_ids[together.cu_seqlens[1] :].tolist() == first.tolist()
    assert samples.batch(np.array([1]), np.array([1])).input_ids.tolist() != first.tolist()


def test_infeasible_samples_are_counted_and_carry_no_targets(shards):
    batch = make_samples(shards, ratio=0.5).batch(np.arange(4), np.zeros(4, np.int64))
    assert (batch.num_infeasible, batch.num_targets) == (4, 0)


@pytest.mark.parametrize("rows", [[[5, 5, 5]], [[1, 2], [2, 2], [2, 1, 1, 1]], [[7], [7], []]])
def test_count_repeats_equals_the_loop(rows):
    tokens = np.array([token for row in rows for token in row], dtype=np.int64)
    cu_seqlens = np.concatenate(([0], np.cumsum([len(row) for row in rows]))).astype(np.int64)
    expected = [sum(a == b for a, b in itertools.pairwise(row)) for row in rows]
    assert count_repeats(tokens, cu_seqlens).tolist() == expected
