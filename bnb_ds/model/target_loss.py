"""Computes the loss of a batch of targets, by CTC or slot by slot, as a sum and a count.

Shapes: B sequences, N real source tokens and T decoder slots of all sequences together, S target tokens, H hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bnb_ds.common.packing import PackedLayout
from bnb_ds.ctc.loss import CtcOutput, linear_ctc_loss
from bnb_ds.model.configuration import BnbConfig
from bnb_ds.model.length import LengthPredictor

IGNORED_LABEL = -100


@dataclass(frozen=True, eq=False)
class Targets:
    """Target tokens of a batch.

    Attributes:
        tokens: int64 [sum S], concatenated.
        lengths: int64 [B].
        longest: the largest length, if the caller knows it; then the host does not wait for a GPU.
    """

    tokens: Tensor
    lengths: Tensor
    longest: int | None = None


def read_targets(labels: Tensor, label_lengths: Tensor | None, max_label_length: int | None) -> Targets:
    """Targets from labels [B, S] with -100 at places without a target, or from concatenated labels and their lengths.

    Raises:
        ValueError: shapes or lengths that do not fit together.
    """
    if label_lengths is None:
        if labels.dim() != 2:
            raise ValueError("labels must be [B, S] with -100 behind each target, or [sum S] with label_lengths")
        is_target_BS = labels != IGNORED_LABEL
        return Targets(labels[is_target_BS], is_target_BS.sum(1), max_label_length)
    if labels.dim() != 1:
        raise ValueError("with label_lengths, labels must be the targets concatenated, [sum of label_lengths]")
    if max_label_length is not None and label_lengths.device.type == "cpu":
        longest = int(label_lengths.max())
        if max_label_length != longest:
            raise ValueError(f"max_label_length is {max_label_length}, but the longest of label_lengths is {longest}")
    return Targets(labels, label_lengths, max_label_length)


def ctc_scores(
    hidden_TH: Tensor, head: nn.Embedding, bias_V: Tensor, layout: PackedLayout, targets: Targets, config: BnbConfig
) -> tuple[Tensor, Tensor, CtcOutput]:
    """Sum and count of the CTC loss, and its parts. ``head`` holds the output matrix."""
    ctc = linear_ctc_loss(
        hidden_TH,
        head.weight,
        bias_V,
        targets.tokens,
        None,
        targets.lengths,
        blank=config.blank_token_id,
        reduction=f"{config.loss_reduction}_sum",
        kl_weight=config.kl_weight,
        cu_seqlens=layout.cu_seqlens,
        max_input_length=layout.max_seqlen,
        max_target_length=targets.longest,
    )
    if config.loss_reduction == "sample":
        return ctc.loss, targets.lengths.new_tensor(targets.lengths.numel()), ctc
    return ctc.loss, (targets.lengths * ~ctc.infeasible).sum(), ctc


def token_scores(
    hidden_TH: Tensor, head: nn.Embedding, bias_V: Tensor, targets: Targets, config: BnbConfig
) -> tuple[Tensor, Tensor, CtcOutput]:
    """Sum, count and parts of the loss in which each slot has one target token, with cross-entropy."""
    blank, kl_weight = config.blank_token_id, config.kl_weight
    ctc = cross_entropy_sum(hidden_TH, head.weight, bias_V, targets.tokens, blank=blank, kl_weight=kl_weight)
    return ctc.loss, targets.lengths.sum(), ctc


def cross_entropy_sum(
    hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor, tokens_N: Tensor, *, blank: int, kl_weight: float = 0.0
) -> CtcOutput:
    """The sum of the cross-entropies of one token for each row, with smoothing terms, without ever holding the logits.

    For a sequence of one position and one token, CTC is the cross-entropy of that token. So this uses the fused CTC
    head with every row as a sequence. No token may be ``blank``.
    """
    return linear_ctc_loss(
        hidden_NH,
        weight_VH,
        bias_V,
        tokens_N,
        None,
        torch.ones_like(tokens_N),
        blank=blank,
        reduction="token_sum",
        kl_weight=kl_weight,
        cu_seqlens=torch.arange(tokens_N.numel() + 1, dtype=torch.int32, device=tokens_N.device),
        max_input_length=1,
        max_target_length=1,
    )


def length_scores(
    predictor: LengthPredictor, logits_BC: Tensor, source_lengths_B: Tensor, targets: Targets, weight: float
) -> tuple[Tensor, Tensor]:
    """What the target lengths add to the loss sum, and their mean nats.

    The weight of a sequence in the sum is ``weight`` times its number of target tokens.
    """
    nll_B = predictor.nll(logits_BC, source_lengths_B, targets.lengths)
    return weight * (nll_B * targets.lengths).sum(), nll_B.detach().mean()
