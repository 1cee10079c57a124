"""The CTC dynamic programme. For each sequence it uses only the blank and the sequence's own target tokens.

Shapes: B sequences, T positions and S target tokens of the longest, N real positions of all sequences together,
K = S + 1 columns (the blank, then the target tokens in order).

The backward variables are the forward variables of the reversed problem, so one recursion over a batch of 2B computes
both. Variables are logarithms and do *not* include the emission of their own position, so that a probability of 0 never
gives (-inf) - (-inf). The best log-probability of each position is subtracted first. Without that, float32 drifts by
5e-3 over a thousand positions. Which recursion runs, `bnb_ds.ctc.kernels` says.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bnb_ds.ctc.inputs import Alignment
from bnb_ds.ctc.kernels import alignment_way


def nll_and_occupancy(
    log_probs_NK: Tensor, alignment: Alignment, with_occupancy: bool = True
) -> tuple[Tensor, Tensor | None]:
    """Forward-backward over all sequences.

    Args:
        log_probs_NK: float [N, K], log-probability of each column of ``alignment.table`` at each position.
        alignment: the targets.
        with_occupancy: False if no gradient is needed.

    Returns:
        nll: [B], in nats; +inf if a sequence has no path.
        occupancy: [N, K], posterior probability that the path is in a column; columns of equal neighbours may share
            theirs in any way. Each row sums to 1, or is 0 if the sequence has no path. None without ``with_occupancy``.

    Source: Graves et al., ICML 2006, section 4.1.
    """
    layout = alignment.layout
    if layout.num_tokens == 0:
        nll_B = log_probs_NK.new_zeros(layout.batch_size).masked_fill_(alignment.infeasible, torch.inf)
        return nll_B, torch.zeros_like(log_probs_NK)
    best_N = log_probs_NK.amax(1)
    best_N = torch.where(best_N == -torch.inf, 0.0, best_N)
    emissions_TBK = time_first(log_probs_NK - best_N[:, None], alignment)
    shift_B = layout.pad(best_N).sum(1, dtype=torch.float64)
    sum_B, occupancy_TBK = alignment_way(emissions_TBK.device).forward_backward(
        emissions_TBK, alignment.skips, alignment.target_lengths, with_occupancy
    )
    nll_B = -(sum_B.double() + shift_B).to(sum_B.dtype)
    nll_B = torch.where(alignment.infeasible, torch.inf, torch.where(layout.lengths == 0, 0.0, nll_B))
    if occupancy_TBK is None:
        return nll_B, None
    occupancy_TBK.masked_fill_((nll_B == torch.inf)[None, :, None], 0.0)
    return nll_B, occupancy_TBK.flatten(0, 1).index_select(0, time_first_index(alignment))


def path_sum(emissions_TBK: Tensor, alignment: Alignment) -> Tensor:
    """Log-probability of all paths of each sequence, [B], from the emissions of `time_first`.

    If a sequence has no path, the result is -inf or means nothing.
    """
    way = alignment_way(emissions_TBK.device)
    return way.forward_backward(emissions_TBK, alignment.skips, alignment.target_lengths, False)[0]


def time_first_index(alignment: Alignment) -> Tensor:
    """int64 [N], the place of each real position in [T*B] order."""
    layout = alignment.layout
    return layout.position_ids * layout.batch_size + layout.sequence_ids


def time_first(log_probs_NK: Tensor, alignment: Alignment) -> Tensor:
    """[T, B, K]. Behind the end of a sequence the blank has probability 1 and tokens have 0, so a path stays where it
    is.
    """
    layout = alignment.layout
    shape = (layout.max_seqlen, layout.batch_size, log_probs_NK.shape[1])
    padded = log_probs_NK.new_full((shape[0] * shape[1], shape[2]), -torch.inf)
    padded[:, 0] = 0.0
    return padded.index_copy_(0, time_first_index(alignment), log_probs_NK).unflatten(0, shape[:2])
