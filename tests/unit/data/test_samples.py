"""Samples from real shards: targets are the documents, and sources are their corrupted forms."""

from __future__ import annotations

import itertools
import shutil

import numpy as np
import pytest
import torch
from transformers import BertConfig

from bnb_ds.data.batch import count_repeats
from bnb_ds.data.corruption import Corruption
from bnb_ds.data.samples import PretrainSamples
from bnb_ds.errors import DataError
from bnb_ds.model.target_rules import BnbTargetRules
from bnb_ds.modeling import BnbConfig
from bnb_ds.shards.reader import TokenShards


@pytest.fixture
def shards(small_shards):
    return TokenShards(small_shards, "train")


def make_samples(shards, *, sequence="truncate", max_length=16, ratio=2.0, mask=0.15, permute=0.5, model=(), **mixture):
    bert = BertConfig(vocab_size=shards.vocab_size)
    noise = Corruption(
        mask,
        permute,
        shards.special_ids["mask"],
        shards.vocab_size,
        mixture or {"mlm+plm": 1.0},
        tuple(shards.special_ids.values()),
    )
    config = BnbConfig(encoder=bert, decoder_length_ratio=ratio, **dict(model))
    rules = BnbTargetRules(config)
    return PretrainSamples(shards, sequence=sequence, max_length=max_length, corruption=noise, seed=5, rules=rules)


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


@pytest.mark.parametrize("sequence", ["truncate", "chunk", "pack"])
def test_lengths_are_known_without_reading(shards, sequence):
    samples = make_samples(shards, sequence=sequence, max_length=60)
    lengths = [samples.original(np.array([i]))[1][-1] for i in range(len(samples))]
    assert samples.lengths(np.arange(len(samples))).tolist() == lengths


def test_packed_samples_hold_several_sequences_and_every_token_once(shards):
    samples = make_samples(shards, sequence="pack", max_length=300)
    assert len(samples) < len(shards)
    tokens, cu_seqlens = samples.original(np.arange(len(samples)))
    inner = sorted(tuple(tokens[a + 1 : b - 1]) for a, b in itertools.pairwise(cu_seqlens))
    chunks = [shards.document(d)[b : b + 298] for d in range(len(shards)) for b in range(0, shards.lengths[d], 298)]
    assert inner == sorted(tuple(chunk) for chunk in chunks)
    assert samples.lengths(np.arange(len(samples))).max() <= 300


def test_a_packed_batch_counts_sequences_and_samples(shards):
    samples = make_samples(shards, sequence="pack", max_length=300, ratio=1.0)
    lengths = samples.lengths(np.arange(len(samples)))
    batch = samples.batch(np.array([0, len(samples) - 1, 5]), np.array([0, 2, 0]))
    assert (batch.num_samples, batch.num_tokens) == (3, lengths[[0, -1, 5]].sum())
    assert batch.source_lengths.size == batch.cu_seqlens.numel() - 1 > 3
    feasible = batch.decoder_lengths >= batch.source_lengths + count_repeats(
        batch.labels.numpy(), batch.cu_seqlens.numpy()
    )
    assert 0 < batch.num_infeasible <= 3
    assert batch.num_targets == batch.source_lengths[feasible].sum()


def test_a_piece_has_the_same_noise_in_every_packing(shards):
    packed = make_samples(shards, sequence="pack", max_length=300)
    chunked = make_samples(shards, sequence="chunk", max_length=300)
    found = set()
    for samples in (packed, chunked):
        batch = samples.batch(np.arange(len(samples)), np.full(len(samples), 3))
        found.add(frozenset(tuple(row) for row in batch.input_ids.split(batch.source_lengths.tolist())))
    rows = [{tuple(int(token) for token in row) for row in noisy} for noisy in found]
    assert all(row == rows[0] for row in rows)


def test_continuations_have_their_own_targets(shards):
    samples = make_samples(shards, max_length=100, clm=1)
    ids, epochs = np.arange(20), np.zeros(20, np.int64)
    batch = samples.batch(ids, epochs)
    original, cu_seqlens = samples.original(ids)
    sources = batch.input_ids.split(batch.source_lengths.tolist())
    targets = batch.labels.split(batch.label_lengths.tolist())
    for begin, end, source, target in zip(cu_seqlens, cu_seqlens[1:], sources, targets, strict=False):
        assert [*source[:-1], *target[1:]] == original[begin:end].tolist()
        assert (source[-1], target[0]) == (original[end - 1], original[begin])
    assert batch.max_seqlen == batch.source_lengths.max()
    assert batch.max_label_length == batch.label_lengths.max() < batch.max_seqlen
    assert batch.decoder_lengths.tolist() == (2 * batch.source_lengths).tolist()
    assert batch.num_targets == batch.labels.numel()
    assert batch.num_masked == batch.masked_index.numel() == 0


def test_masked_places_and_their_tokens(shards):
    samples = make_samples(shards, max_length=100, mask=0.3, mlm=1, clm=1)
    ids = np.arange(30)
    batch = samples.batch(ids, np.zeros(30, np.int64))
    assert batch.num_masked == batch.masked_index.numel() == batch.masked_labels.numel() > 20
    changed = batch.input_ids[batch.masked_index] != batch.masked_labels
    assert 0.75 < changed.float().mean() < 0.98
    is_mask = batch.input_ids == shards.special_ids["mask"]
    assert set(is_mask.nonzero()[:, 0].tolist()) <= set(batch.masked_index.tolist())
    same = (
        batch.source_lengths == batch.label_lengths.numpy()
    )  # the samples with masked tokens, without the continuations
    sources = batch.input_ids.split(batch.source_lengths.tolist())
    masks = [int((row == shards.special_ids["mask"]).sum()) for row in sources]
    assert not any(count for count, masked in zip(masks, same, strict=True) if not masked)


def test_a_shard_that_cannot_be_read_is_named(small_shards, tmp_path):
    directory = shutil.copytree(small_shards, tmp_path / "shards")
    samples = make_samples(TokenShards(directory, "train"))
    (directory / "train-00001.tokens.npy").unlink()
    with pytest.raises(DataError, match=r"train-00001\.tokens\.npy: cannot be read: No such file"):
        samples.batch(np.arange(len(samples)), np.zeros(len(samples), np.int64))


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


def test_the_loss_counts_tokens_or_samples(shards):
    ids, epochs = np.arange(4), np.zeros(4, np.int64)
    assert make_samples(shards).batch(ids, epochs).loss_count == make_samples(shards).batch(ids, epochs).num_targets
    for ratio in (2.0, 0.5):  # feasible or not
        samples = make_samples(shards, ratio=ratio, model={"loss_reduction": "sample"})
        assert samples.batch(ids, epochs).loss_count == 4


def test_with_predicted_lengths_every_target_has_its_own_slots(shards):
    samples = make_samples(shards, max_length=100, clm=1, model={"decoder_length": "predicted"})
    batch = samples.batch(np.arange(20), np.zeros(20, np.int64))
    assert batch.decoder_lengths.tolist() == batch.label_lengths.tolist()
    assert (batch.num_infeasible, batch.loss_count) == (0, batch.labels.numel())
