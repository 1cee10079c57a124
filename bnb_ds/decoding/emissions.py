"""Computes what the CTC search needs: the best classes of each slot, and the exact score of any output.

Shapes: B sequences, T decoder slots of the longest, N slots of all sequences together, H hidden size, V vocabulary, K
classes kept of each slot, W outputs of one source, S tokens of the longest output.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bnb_ds.common.packing import PackedLayout
from bnb_ds.ctc.alignment import path_sum
from bnb_ds.ctc.greedy import logits_in_chunks
from bnb_ds.ctc.inputs import align
from bnb_ds.ctc.operands import compute_dtype, exact_dtype

_SCORED_ROWS = 2048  # slots of outputs that are scored together


@dataclass(frozen=True, eq=False)
class Emissions:
    """Log-probabilities of the slots, float64, in nats.

    Attributes:
        ids: int64 [B, T, K], the best classes other than the blank, best first.
        log_probs: [B, T, K], their log-probabilities; -inf beyond a sequence's slots and at classes switched off.
        blank: [B, T], log-probability of the blank; 0 beyond a sequence's slots.
        lengths: int64 [B], number of slots.
        best: int64 [B, T], the best class, blank included; beyond a sequence's slots the blank.
        log_norms: [N], logsumexp of each slot's logits.
    """

    ids: Tensor
    log_probs: Tensor
    blank: Tensor
    lengths: Tensor
    best: Tensor
    log_norms: Tensor


def linear_emissions(
    hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor, layout: PackedLayout, *, blank: int, num_classes: int
) -> Emissions:
    """Project the slots and keep what the search needs, without holding the logits of all slots.

    Args:
        hidden_NH: hidden states of the LM head, packed.
        weight_VH: the output matrix.
        bias_V: its bias; -inf switches a class off.
        layout: layout of the slots.
        blank: the CTC blank.
        num_classes: K; it is limited to the vocabulary without the blank.
    """
    num_slots, num_kept = hidden_NH.shape[0], min(num_classes, weight_VH.shape[0] - 1)
    ids_NK = torch.empty(num_slots, num_kept, dtype=torch.int64, device=hidden_NH.device)
    logits_NK = torch.empty(num_slots, num_kept, dtype=torch.float64, device=hidden_NH.device)
    blank_N, norms_N = logits_NK.new_empty(num_slots), logits_NK.new_empty(num_slots)
    best_N = ids_NK.new_empty(num_slots)
    for rows, logits_CV in logits_in_chunks(hidden_NH, weight_VH, bias_V):
        highest_C, best_N[rows] = logits_CV.max(-1)
        blank_C = logits_CV[:, blank].clone()
        blank_N[rows] = blank_C
        logits_CV[:, blank] = -torch.inf
        logits_NK[rows], ids_NK[rows] = logits_CV.topk(num_kept, -1)
        logits_CV[:, blank] = blank_C
        # torch.logsumexp would take memory for another chunk.
        norms_N[rows] = logits_CV.sub_(highest_C[:, None]).exp_().sum(-1).log_().add_(highest_C)
    return Emissions(
        ids=layout.pad(ids_NK),
        log_probs=layout.pad(logits_NK - norms_N[:, None], -torch.inf),
        blank=layout.pad(blank_N - norms_N),
        lengths=layout.lengths,
        best=layout.pad(best_N, blank),
        log_norms=norms_N,
    )


def ctc_log_probs(
    outputs_BWS: Tensor,
    output_lengths_BW: Tensor,
    hidden_NH: Tensor,
    weight_VH: Tensor,
    bias_V: Tensor,
    log_norms_N: Tensor,
    layout: PackedLayout,
    *,
    blank: int,
) -> Tensor:
    """Exact CTC log-probability of outputs: the sum over all alignments, including those that the search dropped.

    Args:
        outputs_BWS: int64, W outputs of each source; values behind their ends are ignored.
        output_lengths_BW: int64, tokens of each output.
        hidden_NH, weight_VH, bias_V, layout, blank: as in `linear_emissions`.
        log_norms_N: logsumexp of each slot's logits, as in `Emissions`.

    Returns:
        float64 [B, W], in nats; -inf for an output that does not fit into the slots.

    Source: Graves et al., ICML 2006, section 4.1.
    """
    batch_size, num_outputs, _ = outputs_BWS.shape
    scores_BW = log_norms_N.new_full((batch_size, num_outputs), -torch.inf)
    group = max(_SCORED_ROWS // (layout.max_seqlen * num_outputs), 1)
    starts = layout.cu_seqlens.tolist()
    for begin in range(0, batch_size, group):
        rows = slice(begin, min(begin + group, batch_size))
        slots = slice(starts[rows.start], starts[rows.stop])
        part = _Part(hidden_NH[slots], log_norms_N[slots], layout.lengths[rows], weight_VH, bias_V, blank)
        scores_BW[rows] = part.score(outputs_BWS[rows], output_lengths_BW[rows])
    return scores_BW


@dataclass(frozen=True, eq=False)
class _Part:
    """Slots of a few sources: hidden states, logsumexp of the logits, slots of each source; and the projection."""

    hidden_NH: Tensor
    log_norms_N: Tensor
    lengths_B: Tensor
    weight_VH: Tensor
    bias_V: Tensor
    blank: int

    def score(self, outputs_BWS: Tensor, output_lengths_BW: Tensor) -> Tensor:
        """Scores [B, W]."""
        num_sources, num_outputs, _ = outputs_BWS.shape
        longest, num_steps = int(output_lengths_BW.max()), int(self.lengths_B.max())
        lengths_Q = self.lengths_B.repeat_interleave(num_outputs)
        alignment = align(
            PackedLayout.from_lengths(lengths_Q, num_tokens=int(lengths_Q.sum()), max_seqlen=num_steps),
            outputs_BWS.flatten(0, 1)[:, : max(longest, 1)],
            output_lengths_BW.flatten(),
            blank=self.blank,
            vocab_size=self.weight_VH.shape[0],
            max_target_length=longest,
        )
        table_BWK = alignment.table.unflatten(0, (num_sources, num_outputs))
        slots, begin = [], 0
        for num_slots in self.lengths_B.tolist():
            slots.append(slice(begin, begin := begin + num_slots))
        parts = [self._log_probs(own, table_WK) for own, table_WK in zip(slots, table_BWK, strict=True)]
        emissions_TBWK = _time_first([log_probs_TWK for log_probs_TWK, _ in parts], num_steps)
        shift_B = torch.stack([shift for _, shift in parts])
        sums_BW = path_sum(emissions_TBWK.flatten(1, 2), alignment).unflatten(0, (num_sources, num_outputs))
        scores_BW = sums_BW + shift_B[:, None]
        return scores_BW.masked_fill_(alignment.infeasible.unflatten(0, (num_sources, num_outputs)), -torch.inf)

    def _log_probs(self, slots: slice, table_WK: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities [T, W, K] of one source's columns, less the best of each slot; and the sum of the best.

        The outputs of a source share most of their tokens, so each of these is projected once.
        """
        exact = exact_dtype(compute_dtype(self.hidden_NH, self.weight_VH))
        ids_U, column_WK = table_WK.unique(return_inverse=True)
        weight_UH, bias_U = self.weight_VH[ids_U].to(exact), self.bias_V[ids_U].to(exact)
        logits_TU = torch.addmm(bias_U, self.hidden_NH[slots].to(exact), weight_UH.t())
        log_probs_TU = logits_TU.double() - self.log_norms_N[slots, None]
        best_T = log_probs_TU.amax(1, keepdim=True)
        log_probs_TU -= best_T
        log_probs_TWK = log_probs_TU.index_select(1, column_WK.flatten()).unflatten(1, column_WK.shape)
        return log_probs_TWK, best_T.sum()


def _time_first(parts_TWK: list[Tensor], num_steps: int) -> Tensor:
    """[T, B, W, K] from those of each sequence. As `bnb_ds.ctc.alignment` wants it, the blank has probability 1 behind
    the end of a sequence.
    """
    if len(parts_TWK) == 1:
        return parts_TWK[0][:, None]
    emissions_TBWK = parts_TWK[0].new_empty(num_steps, len(parts_TWK), *parts_TWK[0].shape[1:])
    for source, part_TWK in enumerate(parts_TWK):
        emissions_TBWK[: len(part_TWK), source] = part_TWK
        emissions_TBWK[len(part_TWK) :, source, :, 0] = 0.0
        emissions_TBWK[len(part_TWK) :, source, :, 1:] = -torch.inf
    return emissions_TBWK
