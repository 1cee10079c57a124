"""The batch that a loader gives to the model: one row of real tokens, without padding."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from bnb_ds.common.randomness import packed_draws, stream_keys
from bnb_ds.data.masking import masked_tokens
from bnb_ds.data.rewriting import Rewriting

#: streams of draws for slots, each for one use; corruption has the streams below them
GLANCING_DRAWS, MIXED_DRAWS = 16, 17


class TargetRules(Protocol):
    """Computes the numbers of a batch of B sequences that depend on the model."""

    def slots(self, source_lengths: np.ndarray, target_lengths: np.ndarray) -> np.ndarray:
        """int64 [B], decoder slots, from int64 [B] tokens of sources and targets."""

    def fits(
        self, targets: np.ndarray, cu_seqlens: np.ndarray, slots: np.ndarray, source_lengths: np.ndarray
    ) -> np.ndarray:
        """bool [B], whether a target can be written into its slots. A target that does not fit has no loss.

        Args:
            targets: [M] token ids, concatenated.
            cu_seqlens: int64 [B + 1], where each target begins.
            slots: int64 [B], decoder slots.
            source_lengths: int64 [B], tokens of each source.
        """

    def has_length(self, source_lengths: np.ndarray, target_lengths: np.ndarray) -> np.ndarray:
        """bool [B], whether the model can predict the target's length; True where it predicts none. Arguments as in
        `slots`.
        """

    def loss_count(self, num_targets: int, num_sequences: int) -> int:
        """The number that divides a batch's loss.

        Args:
            num_targets: tokens of the targets that fit.
            num_sequences: number of all targets.
        """


@dataclass(frozen=True)
class PackedBatch:
    """A micro batch of B sequences, one after the other, with the numbers that are known before the model runs.

    A sample is one sequence, or several if documents are packed.

    Attributes:
        input_ids: int64 [N], source tokens.
        cu_seqlens: int32 [B + 1], where each source begins.
        labels: int64 [M], target tokens. For classification [B], int64 classes or float32 scores.
        label_lengths: int64 [B], target tokens of each sequence; None for classification.
        max_seqlen: longest source, in tokens.
        max_label_length: longest target, in tokens.
        sample_ids: int64 [samples] on the host, the id of each sample.
        source_lengths: int64 [B] on the host, source tokens of each sequence.
        decoder_lengths: int64 [B] on the host, decoder slots of each sequence.
        num_ordinary: source tokens that are not special.
        num_masked: ordinary tokens that were chosen for masking.
        num_infeasible: samples with a target that does not fit into its decoder slots.
        num_targets: tokens of the targets that fit.
        loss_count: ``num_targets`` or B, depending on the model's ``loss_reduction``. The loss is added up over all
            ranks and divided by the sum of this number over all ranks.
        masked_index: int64 [num_masked], places in ``input_ids`` that were chosen for masking; None if the task masks
            no tokens.
        masked_labels: int64 [num_masked], the original tokens at these places.
        noise_keys: uint64 [B] on the host, the key of each sequence's draws in training, a function of seed, epoch and
            sample; None where no draws are needed.
        token_type_ids: int64 [N], 0 in the first of two texts and 1 in the second; None if all are 0.
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
    noise_keys: np.ndarray | None = None

    @property
    def num_tokens(self) -> int:
        """Number of source tokens."""
        return self.input_ids.numel()

    @property
    def num_samples(self) -> int:
        return self.sample_ids.size

    def pinned(self) -> PackedBatch:
        """This batch in page-locked memory. From there `model_inputs` copies without making the host wait."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        return dataclasses.replace(self, **{name: tensor.pin_memory() for name, tensor in tensors.items()})

    def model_inputs(self, device: torch.device) -> dict[str, Any]:
        """Keyword arguments for the model's packed form. Tokens are on ``device``; lengths stay on the host, which
        needs them for all shapes and so never waits for the device.
        """
        inputs = {**self.source_inputs(device), "labels": self.labels.to(device, non_blocking=True)}
        if self.label_lengths is not None:
            inputs["label_lengths"] = self.label_lengths
            inputs["max_label_length"] = self.max_label_length
        return inputs

    def slot_draws(self, stream: int) -> Tensor:
        """float32 [sum of decoder_lengths], in [0, 1): a draw for each decoder slot, from ``noise_keys``.

        Args:
            stream: `GLANCING_DRAWS` or `MIXED_DRAWS`.
        """
        assert self.noise_keys is not None, "the samples give no keys"
        cu_slots = np.concatenate(([0], np.cumsum(self.decoder_lengths)))
        draws = packed_draws(stream_keys(self.noise_keys, stream), cu_slots)
        # 24 bits are exact in float32, and so stay below 1.
        return torch.from_numpy((draws >> np.uint32(7)).astype(np.float32) / np.float32(2**24))

    def masked_targets(self) -> Tensor:
        """bool [M], the target tokens that mask-predict has to predict in training, from ``noise_keys``."""
        assert self.noise_keys is not None, "the samples give no keys"
        assert self.label_lengths is not None, "tokens of texts are masked"
        return masked_tokens(self.label_lengths.numpy(), self.noise_keys)

    def rewrites(self, rewriting: Rewriting) -> Tensor:
        """int64 [P, M], what slots read in further passes of training, from ``noise_keys``; one slot for each token."""
        assert self.noise_keys is not None, "the samples give no keys"
        assert self.label_lengths is not None, "texts are rewritten"
        cu_seqlens = np.concatenate(([0], np.cumsum(self.label_lengths.numpy())))
        return torch.from_numpy(rewriting(self.labels.numpy(), cu_seqlens, self.noise_keys))

    def source_inputs(self, device: torch.device) -> dict[str, Any]:
        """The arguments of `model_inputs` without labels."""
        inputs = {
            "input_ids": self.input_ids.to(device, non_blocking=True),
            "cu_seqlens": self.cu_seqlens,
            "max_seqlen": self.max_seqlen,
        }
        if self.token_type_ids is not None:
            inputs["token_type_ids"] = self.token_type_ids.to(device, non_blocking=True)
        return inputs


def batch_of_texts(
    sources: np.ndarray,
    source_cu_seqlens: np.ndarray,
    targets: np.ndarray,
    target_cu_seqlens: np.ndarray,
    rules: TargetRules,
    *,
    sample_ids: np.ndarray,
    first_sequences: np.ndarray | None = None,
    **more: Any,
) -> PackedBatch:
    """A batch whose targets are texts.

    Args:
        sources: [N] token ids of any integer type.
        source_cu_seqlens: int64 [B + 1], where each source begins.
        targets: [M] token ids of any integer type.
        target_cu_seqlens: int64 [B + 1], where each target begins.
        rules: the model's rules for slots, fit and count.
        sample_ids: int64 [samples].
        first_sequences: int64 [samples], the first sequence of each sample; None: each sample is one sequence.
        more: further fields of `PackedBatch`.
    """
    source_lengths, target_lengths = np.diff(source_cu_seqlens), np.diff(target_cu_seqlens)
    slots = rules.slots(source_lengths, target_lengths)
    fits = rules.fits(targets, target_cu_seqlens, slots, source_lengths)
    misfits = ~fits if first_sequences is None else np.logical_or.reduceat(~fits, first_sequences)
    num_targets = int(target_lengths[fits].sum())
    return PackedBatch(
        input_ids=torch.from_numpy(sources.astype(np.int64, copy=False)),
        cu_seqlens=torch.from_numpy(source_cu_seqlens.astype(np.int32)),
        labels=torch.from_numpy(targets.astype(np.int64, copy=False)),
        label_lengths=torch.from_numpy(target_lengths),
        max_seqlen=int(source_lengths.max()),
        max_label_length=int(target_lengths.max()),
        sample_ids=sample_ids,
        source_lengths=source_lengths,
        decoder_lengths=slots,
        num_infeasible=int(misfits.sum()),
        num_targets=num_targets,
        loss_count=rules.loss_count(num_targets, target_lengths.size),
        **more,
    )


def batch_of_labels(
    sources: np.ndarray, source_cu_seqlens: np.ndarray, labels: np.ndarray, *, sample_ids: np.ndarray, **more: Any
) -> PackedBatch:
    """A batch for classification or regression. ``labels`` [B] are integers or floats, the rest is as in
    `batch_of_texts`.
    """
    source_lengths = np.diff(source_cu_seqlens)
    values = torch.from_numpy(labels)
    return PackedBatch(
        input_ids=torch.from_numpy(sources.astype(np.int64, copy=False)),
        cu_seqlens=torch.from_numpy(source_cu_seqlens.astype(np.int32)),
        labels=values.float() if values.dtype == torch.float64 else values,
        label_lengths=None,
        max_seqlen=int(source_lengths.max()),
        max_label_length=0,
        sample_ids=sample_ids,
        source_lengths=source_lengths,
        decoder_lengths=np.zeros(sample_ids.size, np.int64),
        num_infeasible=0,
        num_targets=sample_ids.size,
        loss_count=sample_ids.size,
        **more,
    )


def count_repeats(tokens: np.ndarray, cu_seqlens: np.ndarray) -> np.ndarray:
    """How many tokens of each sequence of a packed row equal the token before them: int64 [B].

    CTC needs a blank between equal neighbours, so a target needs that many slots more than it has tokens.
    """
    # There are few repeats, so finding them and their rows is cheaper than a running sum over all tokens.
    second = np.flatnonzero(tokens[1:] == tokens[:-1]) + 1
    rows = np.searchsorted(cu_seqlens, second, side="right") - 1
    # Neighbours across a boundary belong to different sequences.
    return np.bincount(rows[cu_seqlens[rows] != second], minlength=cu_seqlens.size - 1)
