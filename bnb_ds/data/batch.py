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

    A sample is a sequence, or several where documents are packed.

    Attributes:
        input_ids: int64 [N], source tokens.
        cu_seqlens: int32 [B + 1], where each source begins.
        labels: int64 [M], target tokens; or of a classification [B]: int64 classes or float32 scores.
        label_lengths: int64 [B], target tokens of each sequence; None for a classification.
        max_seqlen: longest source, in tokens.
        max_label_length: longest target, in tokens.
        sample_ids: int64 [samples] on the host, which samples these are.
        source_lengths: int64 [B] on the host.
        decoder_lengths: int64 [B] on the host, decoder positions of each sequence.
        num_ordinary: source tokens that are not special.
        num_masked: of them, chosen for masking.
        num_infeasible: samples with a target that does not fit into its decoder positions.
        num_targets: target tokens of the feasible sequences.
        loss_count: what the sum of the loss is divided by once both are global: ``num_targets`` or B, as the model's
            ``loss_reduction`` says.
        masked_index: int64 [num_masked], places in ``input_ids`` that were chosen for masking; None where the task
            masks nothing.
        masked_labels: int64 [num_masked], the tokens that the text has there.
        token_type_ids: int64 [N], 0 in the first of two texts and 1 in the second; None where all are 0.
    """

    input_ids: Tensor
    cu_seqlens: Tensor
    labels: Tensor
    label_lengths: Tensor | None
    max_seqlen: int
    max_label_length: int
    sample_ids: np.ndarray
    source_lengths: np.ndarray
    decoder_lengths: np.ndarray
    num_ordinary: int
    num_masked: int
    num_infeasible: int
    num_targets: int
    loss_count: int
    masked_index: Tensor | None = None
    masked_labels: Tensor | None = None
    token_type_ids: Tensor | None = None

    @property
    def num_tokens(self) -> int:
        """Real source tokens."""
        return self.input_ids.numel()

    @property
    def num_samples(self) -> int:
        return self.sample_ids.size

    def pinned(self) -> PackedBatch:
        """The same in page-locked memory, from which `model_inputs` copies without making the host wait."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        return dataclasses.replace(self, **{name: tensor.pin_memory() for name, tensor in tensors.items()})

    def model_inputs(self, device: torch.device) -> dict[str, Any]:
        """Keyword arguments of the model's packed form, on ``device``."""
        inputs = {**self.source_inputs(device), "labels": self.labels.to(device, non_blocking=True)}
        if self.label_lengths is not None:
            inputs["label_lengths"] = self.label_lengths.to(device, non_blocking=True)
            inputs["max_label_length"] = self.max_label_length
        return inputs

    def source_inputs(self, device: torch.device) -> dict[str, Any]:
        """The same without labels."""
        inputs = {
            "input_ids": self.input_ids.to(device, non_blocking=True),
            "cu_seqlens": self.cu_seqlens.to(device, non_blocking=True),
            "max_seqlen": self.max_seqlen,
        }
        if self.token_type_ids is not None:
            inputs["token_type_ids"] = self.token_type_ids.to(device, non_blocking=True)
        return inputs


def count_repeats(tokens: np.ndarray, cu_seqlens: np.ndarray) -> np.ndarray:
    """Adjacent equal tokens within each sequence of a packed row: int64 [B].

    CTC needs a blank between equal neighbours, hence that many positions more than tokens.
    """
    # Repeats are few: finding them and their rows is cheaper than a running sum over all tokens.
    second = np.flatnonzero(tokens[1:] == tokens[:-1]) + 1
    rows = np.searchsorted(cu_seqlens, second, side="right") - 1
    # Neighbours across a boundary belong to different sequences.
    return np.bincount(rows[cu_seqlens[rows] != second], minlength=cu_seqlens.size - 1)
