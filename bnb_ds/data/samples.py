"""Pre-training samples: makes packed batches of corrupted sources and original targets from token shards."""

from __future__ import annotations

import numpy as np
import torch

from bnb_ds.common.randomness import hash64
from bnb_ds.data.batch import PackedBatch, TargetRules, batch_of_texts
from bnb_ds.data.corruption import Corruption
from bnb_ds.data.sequences import SPECIALS, Building, JoinedIndex, Pieces, make_index
from bnb_ds.data.streams import MixedStream, SampleStream, Stream, shares_of
from bnb_ds.shards.mixed import Corpus, MixedShards


class PretrainSamples:
    """Makes packed batches from sample ids. The content of a sample depends only on (seed, epoch, sample).

    Args:
        shards: one split of a shard directory, or of several.
        sequence: how documents become samples, see :mod:`bnb_ds.data.sequences`.
        max_length: most tokens of a sequence, [CLS] and [SEP] included. With ``pack``, most tokens of all sequences of
            a sample together.
        corruption: the noise.
        seed: seed of the noise.
        rules: the model's rules for targets; see :class:`bnb_ds.data.batch.TargetRules`.
    """

    def __init__(
        self,
        shards: Corpus,
        *,
        sequence: Building,
        max_length: int,
        corruption: Corruption,
        seed: int,
        rules: TargetRules,
    ) -> None:
        self._shards = shards
        self._index = make_index(sequence, shards, max_length)
        self._corruption = corruption
        self._seed = seed
        self._rules = rules
        self._cls_id, self._sep_id = shards.special_ids["cls"], shards.special_ids["sep"]

    def __len__(self) -> int:
        """Samples in one epoch."""
        return len(self._index)

    def lengths(self, sample_ids: np.ndarray) -> np.ndarray:
        """int64 [B], tokens of each sample, [CLS] and [SEP] included. No tokens are read."""
        return self._index.lengths(sample_ids)

    def stream(self, seed: int) -> Stream:
        """The order in which samples are read: of several directories, each has its share of every epoch."""
        if isinstance(self._shards, MixedShards):
            return MixedStream(self.sizes, self._shards.weights, seed)
        return SampleStream(len(self), seed)

    @property
    def sizes(self) -> list[int]:
        """Samples of each directory."""
        return self._index.sizes if isinstance(self._index, JoinedIndex) else [len(self)]

    def to_evaluate(self, number: int) -> np.ndarray:
        """int64 [B], at most ``number`` samples, of each directory the first ones in the mixture's proportions."""
        number = min(number, len(self))
        if not isinstance(self._shards, MixedShards):
            return np.arange(number)
        firsts = np.cumsum([0, *self.sizes[:-1]])
        shares = shares_of(number, self._shards.weights)
        return np.concatenate(
            [first + np.arange(min(share, size)) for first, share, size in zip(firsts, shares, self.sizes, strict=True)]
        )

    def original(self, sample_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The sequences without noise: int64 [N], packed ``[CLS] tokens [SEP]``; and int64 [S + 1], where each
        begins.
        """
        tokens, cu_seqlens = self._read(self._index.pieces(sample_ids))
        return tokens.astype(np.int64), cu_seqlens

    def num_infeasible(self, sample_ids: np.ndarray) -> int:
        """How many of these samples, int64 [B], hold a target that does not fit into its slots in the first epoch.

        Raises:
            DataError: as `batch`.
        """
        return self.batch(sample_ids, np.zeros_like(sample_ids)).num_infeasible

    def num_without_length(self, sample_ids: np.ndarray) -> int:
        """How many of these samples hold a target whose length the model cannot predict; as `num_infeasible`."""
        batch = self.batch(sample_ids, np.zeros_like(sample_ids))
        assert batch.label_lengths is not None
        has_none = ~self._rules.has_length(batch.source_lengths, batch.label_lengths.numpy())
        per_sample = self._index.pieces(sample_ids).per_sample
        return int(np.logical_or.reduceat(has_none, np.cumsum(per_sample) - per_sample).sum())

    def batch(self, sample_ids: np.ndarray, epochs: np.ndarray) -> PackedBatch:
        """Build one micro batch.

        Args:
            sample_ids: int64 [B].
            epochs: int64 [B], the epoch in which each sample is read; each epoch has its own noise.

        Raises:
            DataError: a shard cannot be read; the message names the file.
        """
        pieces = self._index.pieces(sample_ids)
        # Each piece has its own key, so its noise does not depend on how pieces are put together.
        keys = hash64(self._seed, np.repeat(epochs, pieces.per_sample), pieces.ids)
        noisy = self._corruption(*self._read(pieces), keys)
        return batch_of_texts(
            noisy.source,
            noisy.source_cu_seqlens,
            noisy.target,
            noisy.target_cu_seqlens,
            self._rules,
            sample_ids=sample_ids,
            noise_keys=keys,
            first_sequences=np.cumsum(pieces.per_sample) - pieces.per_sample,
            num_ordinary=noisy.num_ordinary,
            num_masked=noisy.chosen.size,
            masked_index=torch.from_numpy(noisy.chosen),
            masked_labels=torch.from_numpy(noisy.chosen_labels.astype(np.int64)),
        )

    def _read(self, pieces: Pieces) -> tuple[np.ndarray, np.ndarray]:
        """The sequences without noise: [N] of the shards' dtype; and int64 [S + 1], where each begins."""
        cu_seqlens = np.zeros(pieces.sizes.size + 1, dtype=np.int64)
        np.cumsum(pieces.sizes + SPECIALS, out=cu_seqlens[1:])
        tokens = np.empty(int(cu_seqlens[-1]), dtype=self._shards.token_dtype)
        tokens[cu_seqlens[:-1]] = self._cls_id
        tokens[cu_seqlens[1:] - 1] = self._sep_id
        self._shards.read(pieces.documents, pieces.begins, pieces.sizes, tokens, cu_seqlens[:-1] + 1)
        return tokens, cu_seqlens
