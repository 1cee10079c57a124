"""What travels from the loader to the model: one row of real tokens, no padding."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class PackedBatch:
    """A micro batch of B sequences, back to back, and what is known of it before the model runs.

    Attributes:
        input_ids: int64 [N], source tokens.
        cu_seqlens: int32 [B + 1], where each source begins.
        labels: int64 [M], target tokens.
        label_lengths: int64 [B], target tokens of each sample.
        max_seqlen: longest source, in tokens.
        max_label_length: longest target, in tokens.
        sample_ids: int64 [B] on the host, which samples these are.
        source_lengths: int64 [B] on the host.
        decoder_lengths: int64 [B] on the host, decoder positions of each sample.
        num_ordinary: source tokens that are not special.
        num_masked: of them, chosen for masking.
        num_infeasible: samples whose target does not fit into their decoder positions.
        num_targets: target tokens of the feasible samples; the loss is normalised by their global sum.
    """

    input_ids: Tensor
    cu_seqlens: Tensor
    labels: Tensor
    label_lengths: Tensor
    max_seqlen: int
    max_label_length: int
    sample_ids: np.ndarray
    source_lengths: np.ndarray
    decoder_lengths: np.ndarray
    num_ordinary: int
    num_masked: int
    num_infeasible: int
    num_targets: int

    @property
    def num_tokens(self) -> int:
        """Real source tokens."""
        return self.input_ids.numel()

    @property
    def num_samples(self) -> int:
        return self.sample_ids.size

    def pinned(self) -> PackedBatch:
        """The same in page-locked memory, from which `model_inputs` copies without making the host wait."""
        tensors = {
            name: getattr(self, name).pin_memory() for name in ("input_ids", "cu_seqlens", "labels", "label_lengths")
        }
        return dataclasses.replace(self, **tensors)

    def model_inputs(self, device: torch.device) -> dict[str, Any]:
        """Keyword arguments of the model's packed form, on ``device``."""
        return {
            "input_ids": self.input_ids.to(device, non_blocking=True),
            "cu_seqlens": self.cu_seqlens.to(device, non_blocking=True),
            "max_seqlen": self.max_seqlen,
            "labels": self.labels.to(device, non_blocking=True),
            "label_lengths": self.label_lengths.to(device, non_blocking=True),
            "max_label_length": self.max_label_length,
        }


def count_repeats(tokens: np.ndarray, cu_seqlens: np.ndarray) -> np.ndarray:
    """Adjacent equal tokens within each sequence of a packed row: int64 [B].

    CTC needs a blank between equal neighbours, hence that many positions more than tokens.
    """
    equal = np.zeros(tokens.size + 1, dtype=np.int64)
    equal[1:-1] = tokens[1:] == tokens[:-1]
    equal[cu_seqlens] = 0  # neighbours across a boundary belong to different sequences
    total = np.concatenate(([0], np.cumsum(equal)))
    return total[cu_seqlens[1:]] - total[cu_seqlens[:-1]]
