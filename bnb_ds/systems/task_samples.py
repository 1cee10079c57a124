"""Turn tokenised examples into packed batches, for any kind of model."""

from __future__ import annotations

import numpy as np
import torch

from bnb_ds.common.randomness import hash64
from bnb_ds.data.batch import PackedBatch, batch_of_labels, batch_of_texts
from bnb_ds.data.streams import SampleStream, Stream
from bnb_ds.systems.base import System
from bnb_ds.tasks.tokenised import Tokenised


class TaskSamples:
    """A `bnb_ds.data.loader.SampleSource` whose sample ids are the rows of a split.

    All epochs have the same samples; only ``noise_keys`` differ.

    Args:
        split: the rows.
        system: gives the number of decoder positions of a sample, and the count of its loss.
        seed: seed of ``noise_keys``.
    """

    def __init__(self, split: Tokenised, system: System, seed: int = 0) -> None:
        self._split = split
        self._seed = seed
        self._system = system

    def __len__(self) -> int:
        return len(self._split)

    def lengths(self, sample_ids: np.ndarray) -> np.ndarray:
        """int64 [B], source tokens of each sample."""
        return self._split.source_lengths(sample_ids)

    def stream(self, seed: int) -> Stream:
        """The order in which rows are read."""
        return SampleStream(len(self), seed)

    def num_infeasible(self, sample_ids: np.ndarray) -> int:
        """How many of these rows, int64 [B], have a target text that does not fit into its slots."""
        rules = self._system.target_rules
        targets, cu_seqlens = self._split.targets(sample_ids)
        source_lengths = self._split.source_lengths(sample_ids)
        slots = rules.slots(source_lengths, np.diff(cu_seqlens))
        return int((~rules.fits(targets, cu_seqlens, slots, source_lengths)).sum())

    def num_without_length(self, sample_ids: np.ndarray) -> int:
        """How many of these rows, int64 [B], have a target text whose length the model cannot predict."""
        split = self._split
        lengths = split.source_lengths(sample_ids), split.target_lengths(sample_ids)
        return int((~self._system.target_rules.has_length(*lengths)).sum())

    def batch(self, sample_ids: np.ndarray, epochs: np.ndarray) -> PackedBatch:
        """Build one micro batch of int64 [B] rows, each read in the epoch that int64 [B] ``epochs`` names."""
        split, system = self._split, self._system
        sources, cu_seqlens = split.sources(sample_ids)
        common = {"sample_ids": sample_ids, "num_ordinary": sources.size, "num_masked": 0}
        if split.has_pairs and not system.task.is_generation:
            first = np.repeat(cu_seqlens[:-1] + split.first_lengths(sample_ids), np.diff(cu_seqlens))
            common["token_type_ids"] = torch.from_numpy((np.arange(sources.size) >= first).astype(np.int64))
        if split.labels is not None:
            return batch_of_labels(sources, cu_seqlens, split.labels[sample_ids], **common)
        targets, target_cu_seqlens = split.targets(sample_ids)
        common["noise_keys"] = hash64(self._seed, epochs, sample_ids)
        return batch_of_texts(sources, cu_seqlens, targets, target_cu_seqlens, system.target_rules, **common)
