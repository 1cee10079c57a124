"""Pre-training samples: documents in token shards -> corrupted sources and original targets, packed."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch

from bnb_ds.batch import PackedBatch, count_repeats
from bnb_ds.corruption import Corruption
from bnb_ds.modeling import BnbConfig, decoder_lengths
from bnb_ds.randomness import hash64
from bnb_ds.shards import TokenShards


class PretrainSamples:
    """A map from sample ids to packed batches; what a sample becomes depends on (seed, epoch, sample) alone.

    Args:
        shards: one split of a shard directory.
        sequence: ``truncate`` makes one sample of each document, its first ``max_length - 2`` tokens; ``chunk`` cuts a
            document into as many samples as it takes to use every token.
        max_length: tokens of a sequence, [CLS] and [SEP] included.
        corruption: the noise.
        seed: of the noise.
        config: the model's, for the number of decoder positions.
    """

    def __init__(
        self,
        shards: TokenShards,
        *,
        sequence: Literal["truncate", "chunk"],
        max_length: int,
        corruption: Corruption,
        seed: int,
        config: BnbConfig,
    ) -> None:
        self._shards = shards
        self._content_length = max_length - 2
        self._corruption = corruption
        self._seed = seed
        self._config = config
        self._cls_id, self._sep_id = shards.special_ids["cls"], shards.special_ids["sep"]
        self._first_sample = None
        if sequence == "chunk":
            chunks = -(-shards.lengths.astype(np.int64) // self._content_length)
            self._first_sample = np.concatenate(([0], np.cumsum(chunks)))

    def __len__(self) -> int:
        """Samples in one epoch."""
        return len(self._shards) if self._first_sample is None else int(self._first_sample[-1])

    def lengths(self, sample_ids: np.ndarray) -> np.ndarray:
        """int64 [B], tokens of each sequence, [CLS] and [SEP] included, from the index alone."""
        if self._first_sample is None:
            content = self._shards.lengths[sample_ids].astype(np.int64)
        else:
            documents = np.searchsorted(self._first_sample, sample_ids, side="right") - 1
            begins = (sample_ids - self._first_sample[documents]) * self._content_length
            content = self._shards.lengths[documents].astype(np.int64) - begins
        return np.minimum(content, self._content_length) + 2

    def original(self, sample_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Uncorrupted sequences: int64 [N] packed ``[CLS] tokens [SEP]``, and int64 [B + 1] where each begins."""
        pieces = [self._content(int(sample)) for sample in sample_ids]
        lengths = np.array([piece.size for piece in pieces], dtype=np.int64) + 2
        cu_seqlens = np.concatenate(([0], np.cumsum(lengths)))
        tokens = np.empty(cu_seqlens[-1], dtype=np.int64)
        tokens[cu_seqlens[:-1]] = self._cls_id
        tokens[cu_seqlens[1:] - 1] = self._sep_id
        for begin, piece in zip(cu_seqlens[:-1] + 1, pieces, strict=True):
            tokens[begin : begin + piece.size] = piece
        return tokens, cu_seqlens

    def batch(self, sample_ids: np.ndarray, epochs: np.ndarray) -> PackedBatch:
        """Build one micro batch.

        Args:
            sample_ids: int64 [B].
            epochs: int64 [B], the pass over the data in which each sample is read; each pass has its own noise.
        """
        target, cu_seqlens = self.original(sample_ids)
        source, num_masked = self._corruption(target, cu_seqlens, hash64(self._seed, epochs, sample_ids))
        lengths = np.diff(cu_seqlens)
        slots = decoder_lengths(lengths, self._config)
        feasible = slots >= lengths + count_repeats(target, cu_seqlens)
        return PackedBatch(
            input_ids=torch.from_numpy(source),
            cu_seqlens=torch.from_numpy(cu_seqlens.astype(np.int32)),
            labels=torch.from_numpy(target),
            label_lengths=torch.from_numpy(lengths),
            max_seqlen=int(lengths.max()),
            max_label_length=int(lengths.max()),
            sample_ids=sample_ids,
            source_lengths=lengths,
            decoder_lengths=slots,
            num_ordinary=int(lengths.sum()) - 2 * lengths.size,
            num_masked=num_masked,
            num_infeasible=int((~feasible).sum()),
            num_targets=int(lengths[feasible].sum()),
        )

    def _content(self, sample: int) -> np.ndarray:
        if self._first_sample is None:
            return self._shards.document(sample)[: self._content_length]
        document = int(np.searchsorted(self._first_sample, sample, side="right")) - 1
        begin = (sample - int(self._first_sample[document])) * self._content_length
        return self._shards.document(document)[begin : begin + self._content_length]
