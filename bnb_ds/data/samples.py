"""Pre-training samples: documents in token shards -> corrupted sources and original targets, packed."""

from __future__ import annotations

import numpy as np
import torch

from bnb_ds.common.randomness import hash64
from bnb_ds.data.batch import PackedBatch, TargetRules, batch_of_texts
from bnb_ds.data.corruption import Corruption
from bnb_ds.data.sequences import SPECIALS, Building, Pieces, make_index
from bnb_ds.shards.reader import TokenShards


class PretrainSamples:
    """A map from sample ids to packed batches; what a sample becomes depends on (seed, epoch, sample) alone.

    Args:
        shards: one split of a shard directory.
        sequence: how documents become samples, see :mod:`bnb_ds.data.sequences`.
        max_length: tokens of a sequence, [CLS] and [SEP] included; with ``pack``, of all sequences of a sample.
        corruption: the noise.
        seed: of the noise.
        rules: the model's; see :class:`bnb_ds.data.batch.TargetRules`.
    """

    def __init__(
        self,
        shards: TokenShards,
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
        """int64 [B], tokens of each sample, [CLS] and [SEP] included, from the index alone."""
        return self._index.lengths(sample_ids)

    def original(self, sample_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Uncorrupted sequences: int64 [N] packed ``[CLS] tokens [SEP]``, and int64 [S + 1] where each begins."""
        tokens, cu_seqlens = self._read(self._index.pieces(sample_ids))
        return tokens.astype(np.int64), cu_seqlens

    def batch(self, sample_ids: np.ndarray, epochs: np.ndarray) -> PackedBatch:
        """Build one micro batch.

        Args:
            sample_ids: int64 [B].
            epochs: int64 [B], the pass over the data in which each sample is read; each pass has its own noise.

        Raises:
            DataError: a shard cannot be read; the message names the file.
        """
        pieces = self._index.pieces(sample_ids)
        # A piece has noise of its own: it is the same however pieces are put together.
        keys = hash64(self._seed, np.repeat(epochs, pieces.per_sample), pieces.ids)
        noisy = self._corruption(*self._read(pieces), keys)
        return batch_of_texts(
            noisy.source,
            noisy.source_cu_seqlens,
            noisy.target,
            noisy.target_cu_seqlens,
            self._rules,
            sample_ids=sample_ids,
            first_sequences=np.cumsum(pieces.per_sample) - pieces.per_sample,
            num_ordinary=noisy.num_ordinary,
            num_masked=noisy.chosen.size,
            masked_index=torch.from_numpy(noisy.chosen),
            masked_labels=torch.from_numpy(noisy.chosen_labels.astype(np.int64)),
        )

    def _read(self, pieces: Pieces) -> tuple[np.ndarray, np.ndarray]:
        """Sequences as they are: [N] of the shards' type, and int64 [S + 1] where each begins."""
        cu_seqlens = np.zeros(pieces.sizes.size + 1, dtype=np.int64)
        np.cumsum(pieces.sizes + SPECIALS, out=cu_seqlens[1:])
        tokens = np.empty(int(cu_seqlens[-1]), dtype=self._shards.token_dtype)
        tokens[cu_seqlens[:-1]] = self._cls_id
        tokens[cu_seqlens[1:] - 1] = self._sep_id
        self._shards.read(pieces.documents, pieces.begins, pieces.sizes, tokens, cu_seqlens[:-1] + 1)
        return tokens, cu_seqlens
