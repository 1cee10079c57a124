"""Computes what the CTC search needs: the best classes of each slot, and the exact score of any output.

Shapes: B sequences, T decoder slots of the longest, N slots of all sequences together, H hidden size, V vocabulary, K
classes kept of each slot, W outputs of one source, S tokens of the longest output.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bnb_ds.common.packing import PackedLayout
from bnb_ds.ctc.alignment import nll_and_occupancy
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
        norms_N[rows] = logits_CV.logsumexp(-1)
        best_N[rows] = logits_CV.argmax(-1)
        blank_N[rows] = logits_CV[:, blank]
        logits_CV[:, blank] = -torch.inf
        logits_NK[rows], ids_NK[rows] = logits_CV.topk(num_kept, -1)
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
    lengths, starts = layout.lengths.tolist(), layout.cu_seqlens.tolist()
    for begin in range(0, batch_size, group):
        rows = slice(begin, min(begin + group, batch_size))
        slots = slice(starts[rows.start], starts[rows.stop])
        part = _Part(hidden_NH[slots], log_norms_N[slots], torch.tensor(lengths[rows]))
        outputs_QS, lengths_Q = outputs_BWS[rows].flatten(0, 1), output_lengths_BW[rows].flatten()
        scores_BW[rows] = part.score(outputs_QS, lengths_Q, num_outputs, weight_VH, bias_V, blank)
    return scores_BW


@dataclass(frozen=True, eq=False)
class _Part:
    """Slots of a few sources: hidden states, logsumexp of the logits, and the number of slots of each source."""

    hidden_NH: Tensor
    log_norms_N: Tensor
    lengths_B: Tensor

    def score(
        self, outputs_QS: Tensor, lengths_Q: Tensor, times: int, weight_VH: Tensor, bias_V: Tensor, blank: int
    ) -> Tensor:
        """Scores [B, times] of Q = B * times outputs."""
        device = self.hidden_NH.device
        longest = int(lengths_Q.max())
        layout = PackedLayout.from_lengths(
            self.lengths_B.to(device).repeat_interleave(times),
            num_tokens=int(self.lengths_B.sum()) * times,
            max_seqlen=int(self.lengths_B.max()),
        )
        starts_B = self.lengths_B.cumsum(0) - self.lengths_B
        slot_N = starts_B.to(device).index_select(0, layout.sequence_ids // times) + layout.position_ids
        alignment = align(
            layout,
            outputs_QS[:, : max(longest, 1)],
            lengths_Q,
            blank=blank,
            vocab_size=weight_VH.shape[0],
            max_target_length=longest,
        )
        exact = exact_dtype(compute_dtype(self.hidden_NH, weight_VH))
        table_QK = alignment.table
        hidden_QTH = layout.pad(self.hidden_NH.index_select(0, slot_N)).to(exact)
        columns_QKH = weight_VH[table_QK.flatten()].to(exact).unflatten(0, table_QK.shape)
        logits_QTK = hidden_QTH @ columns_QKH.transpose(1, 2) + bias_V[table_QK].to(exact)[:, None]
        log_probs_NK = layout.unpad(logits_QTK.double()) - self.log_norms_N.index_select(0, slot_N)[:, None]
        nll_Q, _ = nll_and_occupancy(log_probs_NK, alignment, with_occupancy=False)
        return -nll_Q.unflatten(0, (-1, times))
