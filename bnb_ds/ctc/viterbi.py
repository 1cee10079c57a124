"""The most probable CTC path that writes a target.

Shapes: B sequences, T positions and S target tokens of the longest, N real positions of all sequences together,
K = S + 1 columns (the blank, then the target tokens in order). The 2S + 1 states are blank and token in turn.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bnb_ds.ctc.alignment import time_first, time_first_index
from bnb_ds.ctc.head import FusedHead
from bnb_ds.ctc.inputs import Alignment, align, real_rows
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
    num_steps, batch_size, num_columns = emissions_TBK.shape
    num_states = 2 * num_columns - 1
    state_X = torch.arange(num_states, device=log_probs_NK.device)
    column_X = torch.where(state_X % 2 == 1, (state_X + 1) // 2, 0)
    may_skip_BX = _may_skip(alignment, num_states)
    # Before the first position a path is in the first blank; from there it may go on to the first token.
    score_BX = emissions_TBK.new_full((batch_size, num_states), -torch.inf)
    score_BX[:, 0] = 0.0
    back_TBX = torch.empty(num_steps, batch_size, num_states, dtype=torch.uint8, device=log_probs_NK.device)
    for step in range(num_steps):
        from_next_BX = torch.nn.functional.pad(score_BX, (1, 0), value=-torch.inf)[:, :-1]
        from_skip_BX = torch.nn.functional.pad(score_BX, (2, 0), value=-torch.inf)[:, :num_states]
        from_skip_BX = from_skip_BX.masked_fill(~may_skip_BX, -torch.inf)
        best_BX, back_BX = torch.stack((score_BX, from_next_BX, from_skip_BX)).max(0)
        back_TBX[step] = back_BX
        score_BX = best_BX + emissions_TBK[step].index_select(1, column_X)
    # A path ends in the last token or in the blank behind it.
    last_B1 = 2 * alignment.target_lengths[:, None]
    ends_B2 = score_BX.gather(1, torch.cat((last_B1, (last_B1 - 1).clamp(min=0)), 1))
    log_prob_B, which_B = ends_B2.max(1)
    log_prob_B = torch.where(alignment.infeasible, -torch.inf, log_prob_B)
    state_B = (last_B1[:, 0] - which_B).clamp(min=0)
    path_TB = torch.empty(num_steps, batch_size, dtype=torch.int64, device=log_probs_NK.device)
    for step in range(num_steps - 1, -1, -1):
        path_TB[step] = torch.where(state_B % 2 == 1, state_B // 2, -1)
        state_B = state_B - back_TBX[step].gather(1, state_B[:, None])[:, 0]
    path_TB.masked_fill_(log_prob_B == -torch.inf, -1)
    return path_TB.flatten().index_select(0, time_first_index(alignment)), log_prob_B


def _without_positions(log_probs_NK: Tensor, alignment: Alignment) -> Tensor:
    empty_B = log_probs_NK.new_zeros(alignment.layout.batch_size)
    return empty_B.masked_fill_(alignment.infeasible, -torch.inf)


def _may_skip(alignment: Alignment, num_states: int) -> Tensor:
    """bool [B, 2S+1], states that a path may enter from two states before: tokens that differ from the last token."""
    may_skip_BX = torch.zeros(len(alignment.skips), num_states, dtype=torch.bool, device=alignment.skips.device)
    may_skip_BX[:, 1::2] = alignment.skips
    return may_skip_BX
