"""Computes what the CTC search needs: the best classes of each slot, and the exact score of any output.

Shapes: B sequences, T decoder slots of the longest, N slots of all sequences together, H hidden size, V vocabulary, K
classes kept of each slot, W outputs of one source, S tokens of the longest output.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bnb_ds.common.packing import PackedLayout, on_host
from bnb_ds.ctc.alignment import path_sum
from bnb_ds.ctc.greedy import logits_in_chunks
from bnb_ds.ctc.inputs import align
from bnb_ds.ctc.operands import compute_dtype, exact_dtype
from bnb_ds.recurrences.host import to_device

_SCORED_ROWS = 2048  # slots of outputs that are scored together


@dataclass(frozen=True, eq=False)
class Emissions:
    """Log-probabilities of the slots, float64, in nats.

    Attributes:
        ids: int64 [B, T, K], the best classes other than the blank, best first.
        log_probs: [B, T, K], their log-probabilities; -inf beyond a sequence's slots and at classes switched off.
        blank: [B, T], log-probability of the blank; 0 beyond a sequence's slots.
        layout: of the slots.
        best: int64 [B, T], the best class, blank included; beyond a sequence's slots the blank.
        log_norms: [N], logsumexp of each slot's logits.
    """

    ids: Tensor
    log_probs: Tensor
    blank: Tensor
    layout: PackedLayout
    best: Tensor
    log_norms: Tensor

    @property
    def lengths(self) -> Tensor:
        """int64 [B], number of slots."""
        return self.layout.lengths

    def on_host(self) -> Emissions:
        """The same on a CPU, where the search runs: its steps are many small operations (`bnb_ds.recurrences.host`)."""
        if self.ids.device.type == "cpu":
            return self
        names = ("ids", "log_probs", "blank", "best", "log_norms")
        values = on_host([getattr(self, name) for name in names])
        layout = PackedLayout.from_host(self.layout.lengths_on_host(), torch.device("cpu"))
        return Emissions(layout=layout, **dict(zip(names, values, strict=True)))


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
        layout=layout,
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
        outputs_BWS: int64, W outputs of each source, on any device; values behind their ends are ignored.
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
    # The host waits for outputs that lie on the device: it looks for the tokens that they share.
    known_BWS, known_lengths_BW = (tensor.numpy() for tensor in on_host((outputs_BWS, output_lengths_BW)))
    outputs_BWS, output_lengths_BW = (
        to_device(tensor, hidden_NH.device) for tensor in (outputs_BWS, output_lengths_BW)
    )
    num_slots_B = layout.lengths_on_host()
    ends_B = num_slots_B.cumsum()
    for begin in range(0, batch_size, group):
        rows = slice(begin, min(begin + group, batch_size))
        slots = slice(ends_B[begin] - num_slots_B[begin], ends_B[rows.stop - 1])
        part = _Part(hidden_NH[slots], log_norms_N[slots], num_slots_B[rows], weight_VH, bias_V, blank)
        scores_BW[rows] = part.score(
            outputs_BWS[rows], output_lengths_BW[rows], known_BWS[rows], known_lengths_BW[rows]
        )
    return scores_BW


@dataclass(frozen=True, eq=False)
class _Part:
    """Slots of a few sources: hidden states, logsumexp of the logits, slots of each source; and the projection."""

    hidden_NH: Tensor
    log_norms_N: Tensor
    num_slots_B: np.ndarray
    weight_VH: Tensor
    bias_V: Tensor
    blank: int

    def score(
        self, outputs_BWS: Tensor, lengths_BW: Tensor, known_BWS: np.ndarray, known_lengths_BW: np.ndarray
    ) -> Tensor:
        """Scores [B, W]. Outputs and their lengths are given as tensors and as arrays on the host."""
        num_sources, num_outputs, _ = outputs_BWS.shape
        longest, device = int(known_lengths_BW.max()), self.hidden_NH.device
        alignment = align(
            PackedLayout.from_host(np.repeat(self.num_slots_B, num_outputs), device),
            outputs_BWS.flatten(0, 1)[:, : max(longest, 1)],
            lengths_BW.flatten(),
            blank=self.blank,
            vocab_size=self.weight_VH.shape[0],
            max_target_length=longest,
        )
        is_token_BWS = np.arange(longest) < known_lengths_BW[..., None]
        table_BWK = np.full((num_sources, num_outputs, longest + 1), self.blank)
        table_BWK[..., 1:] = np.where(is_token_BWS, known_BWS[..., :longest], self.blank)
        ends_B = self.num_slots_B.cumsum()
        parts = [
            self._log_probs(slice(end - number, end), *columns)
            for end, number, columns in zip(ends_B, self.num_slots_B, _shared(table_BWK, device), strict=True)
        ]
        emissions_TBWK = _time_first([log_probs_TWK for log_probs_TWK, _ in parts], int(self.num_slots_B.max()))
        shift_B = torch.stack([shift for _, shift in parts])
        sums_BW = path_sum(emissions_TBWK.flatten(1, 2), alignment).unflatten(0, (num_sources, num_outputs))
        scores_BW = sums_BW + shift_B[:, None]
        return scores_BW.masked_fill_(alignment.infeasible.unflatten(0, (num_sources, num_outputs)), -torch.inf)

    def _log_probs(self, slots: slice, ids_U: Tensor, column_WK: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities [T, W, K] of one source's columns, less the best of each slot; and the sum of the best."""
        exact = exact_dtype(compute_dtype(self.hidden_NH, self.weight_VH))
        weight_UH = self.weight_VH.index_select(0, ids_U).to(exact)
        bias_U = self.bias_V.index_select(0, ids_U).to(exact)
        logits_TU = torch.addmm(bias_U, self.hidden_NH[slots].to(exact), weight_UH.t())
        log_probs_TU = logits_TU.double() - self.log_norms_N[slots, None]
        best_T = log_probs_TU.amax(1, keepdim=True)
        log_probs_TU -= best_T
        log_probs_TWK = log_probs_TU.index_select(1, column_WK.flatten()).unflatten(1, column_WK.shape)
        return log_probs_TWK, best_T.sum()


def _shared(table_BWK: np.ndarray, device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """For each source its different ids, int64 [U], and which of them each column holds, int64 [W, K], on the device.

    The outputs of a source share most of their tokens, so each of these is projected once.
    """
    found = [np.unique(table_WK, return_inverse=True) for table_WK in table_BWK]
    sizes = [ids_U.size for ids_U, _ in found]
    flat = np.concatenate([*(ids_U for ids_U, _ in found), *(columns.ravel() for _, columns in found)])
    values = torch.from_numpy(flat).to(device, non_blocking=True)
    columns_BWK = values[sum(sizes) :].view(table_BWK.shape)
    return list(zip(values[: sum(sizes)].split(sizes), columns_BWK, strict=True))


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
