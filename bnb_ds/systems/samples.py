"""Tokenised examples as packed batches, for any kind of model."""

from __future__ import annotations

import numpy as np
import torch

from bnb_ds.data.batch import PackedBatch
from bnb_ds.systems.base import System
from bnb_ds.tasks.tokenised import Tokenised


class TaskSamples:
    """A `bnb_ds.data.loader.SampleSource`: sample ids are the rows of a split, and every epoch sees them alike.

    Args:
        split: the rows.
        system: says how many decoder positions a sample has, and what its loss counts.
    """

    def __init__(self, split: Tokenised, system: System) -> None:
        self._split = split
        self._system = system

    def __len__(self) -> int:
        return len(self._split)

    def lengths(self, sample_ids: np.ndarray) -> np.ndarray:
        """int64 [B], source tokens."""
        return self._split.source_lengths(sample_ids)

    def batch(self, sample_ids: np.ndarray, epochs: np.ndarray) -> PackedBatch:
        """Build one micro batch of int64 [B] rows; ``epochs`` makes no difference."""
        split, system = self._split, self._system
        sources, cu_seqlens = split.sources(sample_ids)
        source_lengths = np.diff(cu_seqlens)
        types = None
        if split.has_pairs and not system.task.is_generation:
            first = np.repeat(cu_seqlens[:-1] + split.first_lengths(sample_ids), source_lengths)
            types = torch.from_numpy((np.arange(sources.size) >= first).astype(np.int64))
        num_infeasible = 0
        if split.labels is None:
            targets, target_cu_seqlens = split.targets(sample_ids)
            target_lengths = np.diff(target_cu_seqlens)
            slots = system.slots(source_lengths, target_lengths)
            fits = system.fits(targets, target_cu_seqlens, slots)
            num_infeasible = int((~fits).sum())
            num_targets = int(target_lengths[fits].sum())
            labels, label_lengths = torch.from_numpy(targets), torch.from_numpy(target_lengths)
        else:
            slots = target_lengths = np.zeros(sample_ids.size, np.int64)
            num_targets = sample_ids.size
            values = split.labels[sample_ids]
            labels, label_lengths = torch.from_numpy(values), None
            if labels.dtype == torch.float64:
                labels = labels.float()
        return PackedBatch(
            input_ids=torch.from_numpy(sources),
            cu_seqlens=torch.from_numpy(cu_seqlens.astype(np.int32)),
            labels=labels,
            label_lengths=label_lengths,
            max_seqlen=int(source_lengths.max()),
            max_label_length=int(target_lengths.max()),
            sample_ids=sample_ids,
            source_lengths=source_lengths,
            decoder_lengths=slots,
            num_ordinary=sources.size,
            num_masked=0,
            num_infeasible=num_infeasible,
            num_targets=num_targets,
            loss_count=system.loss_count(num_targets, sample_ids.size),
            token_type_ids=types,
        )
