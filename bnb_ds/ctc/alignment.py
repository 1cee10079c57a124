"""The CTC dynamic programme. For each sequence it uses only the blank and the sequence's own target tokens.

Shapes: B sequences, T positions and S target tokens of the longest, N real positions of all sequences together,
K = S + 1 columns (the blank, then the target tokens in order). A path goes through 2S + 1 states, blank and token in
turn. Here blanks [.., S+1] and tokens [.., S] are separate tensors.

The backward variables are the forward variables of the reversed problem, so one loop over a batch of 2B computes both.
Variables are logarithms and do *not* include the emission of their own position, so that a probability of 0 never gives
(-inf) - (-inf). The best log-probability of each position is subtracted first. Without that, float32 drifts by 5e-3
over a thousand positions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bnb_ds.ctc.inputs import Alignment
from bnb_ds.ctc.kernels import uses_triton

OCCUPANCY_BLOCK = 64  # number of positions whose occupancy is computed together, for all sequences


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
        occupancy: [N, K], posterior probability that the path is in a column. Each row sums to 1, or is 0 if the
            sequence has no path. None without ``with_occupancy``.

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
    if not with_occupancy:
        return _nll(path_sum(emissions_TBK, alignment), shift_B, alignment), None
    # A mirrored target that is shorter than S begins in the middle of the row.
    start = torch.cat(
        (torch.zeros_like(alignment.target_lengths), emissions_TBK.shape[2] - 1 - alignment.target_lengths)
    )
    may_skip = torch.cat((alignment.skips, _mirrored_skips(alignment.skips)))
    blanks, tokens = _forward_variables(_both_directions(emissions_TBK), may_skip, start)
    nll_B = _nll(torch.logsumexp(_joint(blanks, tokens, emissions_TBK, slice(0, 1))[0], 1), shift_B, alignment)
    occupancy_TBK = torch.empty_like(emissions_TBK)
    num_blanks = blanks.shape[2]
    for begin in range(0, emissions_TBK.shape[0], OCCUPANCY_BLOCK):
        block = slice(begin, begin + OCCUPANCY_BLOCK)
        # Normalising at each position removes the drift that both variables share.
        posterior = _joint(blanks, tokens, emissions_TBK, block).softmax(2)
        torch.sum(posterior[..., :num_blanks], 2, out=occupancy_TBK[block, :, 0])
        occupancy_TBK[block, :, 1:] = posterior[..., num_blanks:]
    occupancy_TBK.masked_fill_((nll_B == torch.inf)[None, :, None], 0.0)
    return nll_B, occupancy_TBK.flatten(0, 1).index_select(0, time_first_index(alignment))


def path_sum(emissions_TBK: Tensor, alignment: Alignment) -> Tensor:
    """Log-probability of all paths of each sequence, [B], from the emissions of `time_first`.

    It needs no memory beyond the emissions. If a sequence has no path, the result is -inf or means nothing.
    """
    lengths_B1 = alignment.target_lengths[:, None]
    start_B = torch.zeros_like(alignment.target_lengths)
    blanks, tokens = _forward_variables(emissions_TBK, alignment.skips, start_B, keeps_all=False)
    ends = (blanks[-1] + emissions_TBK[-1, :, :1]).gather(1, lengths_B1)
    if tokens.shape[2] > 0:
        last = (tokens[-1] + emissions_TBK[-1, :, 1:]).gather(1, (lengths_B1 - 1).clamp(min=0))
        ends = torch.logaddexp(ends, last.masked_fill(lengths_B1 == 0, -torch.inf))
    return ends[:, 0]


def _nll(sum_B: Tensor, shift_B: Tensor, alignment: Alignment) -> Tensor:
    """The loss of each sequence, from the log-probability of its paths after ``shift_B`` was taken off."""
    nll_B = -(sum_B.double() + shift_B).to(sum_B.dtype)
    is_empty_B = alignment.layout.lengths == 0
    return torch.where(alignment.infeasible, torch.inf, torch.where(is_empty_B, 0.0, nll_B))


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


def _both_directions(emissions_TBK: Tensor) -> Tensor:
    """[T, 2B, K], the problem and its mirror image, in which time and target are reversed."""
    mirrored = emissions_TBK.flip(0)
    mirrored[..., 1:] = mirrored[..., 1:].flip(2)
    return torch.cat((emissions_TBK, mirrored), 1)


def _forward_variables(
    emissions: Tensor, may_skip: Tensor, start: Tensor, keeps_all: bool = True
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of all paths into each blank [T, B, S+1] and token [T, B, S], without its own emission.

    Args:
        emissions: [T, B, K].
        may_skip: bool [B, S], True at a token that may directly follow the one before it.
        start: int64 [B], the blank before which paths begin.
        keeps_all: False if only the last position is needed. Others may then be missing.
    """
    num_steps, num_rows, num_columns = emissions.shape
    has_kernel = uses_triton(emissions.device)
    num_kept = num_steps if keeps_all or has_kernel else 1
    blanks = emissions.new_empty(num_kept, num_rows, num_columns)
    tokens = emissions.new_empty(num_kept, num_rows, num_columns - 1)
    if has_kernel:
        from bnb_ds.ctc.triton import forward_variables

        forward_variables(emissions, may_skip, start, blanks, tokens)
        return blanks, tokens
    blank = emissions.new_full((num_rows, num_columns), -torch.inf).scatter_(1, start[:, None], 0.0)
    token = emissions.new_full((num_rows, num_columns - 1), -torch.inf)
    for step in range(num_steps):
        into_blank, into_token, emission = blanks[step % num_kept], tokens[step % num_kept], emissions[step]
        into_blank[:, :1] = blank[:, :1]
        torch.logaddexp(blank[:, 1:], token, out=into_blank[:, 1:])
        from_before = torch.where(may_skip, into_blank[:, :-1], blank[:, :-1])
        torch.logaddexp(token, from_before, out=into_token)
        torch.add(into_blank, emission[:, :1], out=blank)
        torch.add(into_token, emission[:, 1:], out=token)
    return blanks, tokens


def _mirrored_skips(skips_BS: Tensor) -> Tensor:
    """Whether a token of the mirrored target differs from the one before it, which follows it in the target."""
    mirrored = torch.ones_like(skips_BS)
    mirrored[:, 1:] = skips_BS[:, 1:].flip(1)
    return mirrored


def _joint(blanks: Tensor, tokens: Tensor, emissions_TBK: Tensor, block: slice) -> Tensor:
    """[block, B, 2S+1], log-probability of all paths through each state, for a block of positions; blanks first."""
    num_steps, batch_size = emissions_TBK.shape[:2]
    begin, end, _ = block.indices(num_steps)
    mirror = slice(num_steps - end, num_steps - begin)
    emission = emissions_TBK[block]
    halves = []
    for variables, own in ((blanks, emission[..., :1]), (tokens, emission[..., 1:])):
        ahead = variables[mirror, batch_size:].flip((0, 2))
        halves.append(ahead.add_(variables[block, :batch_size]).add_(own))
    return torch.cat(halves, 2)
