"""The most probable CTC path that writes a target.

Shapes: B sequences, T positions and S target tokens of the longest, N real positions of all sequences together,
K = S + 1 columns (the blank, then the target tokens in order).
"""

from __future__ import annotations

import torch
from torch import Tensor

from bnb_ds.ctc.alignment import time_first, time_first_index
from bnb_ds.ctc.head import FusedHead
from bnb_ds.ctc.inputs import Alignment, align, check_projection, real_rows
from bnb_ds.ctc.kernels import best_states
from bnb_ds.ctc.operands import compute_dtype


@torch.no_grad()
@torch.compiler.disable
def linear_ctc_best_path(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    input_lengths: Tensor | None,
    target_lengths: Tensor,
    *,
    blank: int = 0,
    chunk_tokens: int | None = None,
    cu_seqlens: Tensor | None = None,
    max_input_length: int | None = None,
    max_target_length: int | None = None,
    distinct_lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The most probable path of each target. Arguments and errors are those of `bnb_ds.ctc.loss.linear_ctc_loss`.

    Returns:
        path: int64 [N], packed: the index of the target token that a position emits; -1 for the blank, and everywhere
            in a sequence whose target has no path.
        log_prob: float32 (float64 for float64) [B], in nats; -inf where there is no path.
    """
    check_projection(hidden, weight, bias)
    rows_NH, layout = real_rows(hidden, input_lengths, cu_seqlens, max_input_length)
    alignment = align(
        layout,
        targets,
        target_lengths,
        blank=blank,
        vocab_size=weight.shape[0],
        max_target_length=max_target_length,
        distinct_lengths=distinct_lengths,
    )
    with torch.autocast(hidden.device.type, enabled=False):
        dtype = compute_dtype(rows_NH, weight)
        head = _Columns(rows_NH, weight, bias, alignment, compute_dtype=dtype, chunk_tokens=chunk_tokens)
        return best_path(head.log_probs(), alignment)


class _Columns(FusedHead):
    def log_probs(self) -> Tensor:
        """[N, K], of each sequence's own columns."""
        return self._pass_over_vocabulary(self._zeros(self._hidden_NH.shape[0]), with_gradients=False)[0]


def best_path(log_probs_NK: Tensor, alignment: Alignment) -> tuple[Tensor, Tensor]:
    """`linear_ctc_best_path` from the log-probabilities [N, K] of the columns of ``alignment.table``."""
    if alignment.layout.num_tokens == 0:
        return log_probs_NK.new_zeros(0, dtype=torch.int64), _without_positions(log_probs_NK, alignment)
    emissions_TBK = time_first(log_probs_NK, alignment)
    states_TB, log_prob_B = best_states(emissions_TBK, alignment.skips, alignment.target_lengths)
    log_prob_B = torch.where(alignment.infeasible, -torch.inf, log_prob_B)
    path_TB = torch.where((states_TB % 2 == 1) & (log_prob_B > -torch.inf), states_TB // 2, -1)
    return path_TB.flatten().index_select(0, time_first_index(alignment)), log_prob_B


def _without_positions(log_probs_NK: Tensor, alignment: Alignment) -> Tensor:
    empty_B = log_probs_NK.new_zeros(alignment.layout.batch_size)
    return empty_B.masked_fill_(alignment.infeasible, -torch.inf)
