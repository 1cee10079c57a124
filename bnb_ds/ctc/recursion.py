"""The recursions over positions in batched PyTorch: a few operations per position. The reference of all faster ways.

Shapes: B sequences, R rows of a recursion, T positions, S target tokens of the longest, K = S + 1 columns (the blank,
then the target tokens in order). A path goes through 2S + 1 states, blank and token in turn. Here blanks [.., S+1] and
tokens [.., S] are separate tensors.

Emissions [T, B, K] are log-probabilities. Behind the end of a sequence the blank has 0 and tokens have -inf, so that a
path stays where it is.
"""

from __future__ import annotations

import torch
from torch import Tensor

OCCUPANCY_BLOCK = 64  # number of positions whose occupancy is computed together, for all sequences


def forward_backward(
    emissions_TBK: Tensor, skips_BS: Tensor, target_lengths_B: Tensor, with_occupancy: bool = True
) -> tuple[Tensor, Tensor | None]:
    """Sums over all paths.

    Args:
        emissions_TBK: float32 or float64.
        skips_BS: bool, True at a token that may directly follow the one before it.
        target_lengths_B: int64.
        with_occupancy: False if only the sum is needed; it takes no memory beyond the emissions then.

    Returns:
        The log-probability of all paths of each sequence, [B], and the occupancy [T, B, K]. Where a sequence has no
        path, both mean nothing.
    """
    if not with_occupancy:
        return path_sum(emissions_TBK, skips_BS, target_lengths_B), None
    may_skip, start = both_targets(skips_BS, target_lengths_B)
    blanks, tokens = forward_variables(both_directions(emissions_TBK), may_skip, start)
    sum_B = torch.logsumexp(_joint(blanks, tokens, emissions_TBK, slice(0, 1))[0], 1)
    occupancy_TBK = torch.empty_like(emissions_TBK)
    num_blanks = blanks.shape[2]
    for begin in range(0, emissions_TBK.shape[0], OCCUPANCY_BLOCK):
        block = slice(begin, begin + OCCUPANCY_BLOCK)
        # Normalising at each position removes the drift that both variables share.
        posterior = _joint(blanks, tokens, emissions_TBK, block).softmax(2)
        torch.sum(posterior[..., :num_blanks], 2, out=occupancy_TBK[block, :, 0])
        occupancy_TBK[block, :, 1:] = posterior[..., num_blanks:]
    return sum_B, occupancy_TBK


def path_sum(emissions_TBK: Tensor, skips_BS: Tensor, target_lengths_B: Tensor) -> Tensor:
    """[B], as `forward_backward` without occupancy."""
    blanks, tokens = forward_variables(emissions_TBK, skips_BS, torch.zeros_like(target_lengths_B), keeps_all=False)
    return ends(blanks[-1], tokens[-1], emissions_TBK[-1], target_lengths_B)


def ends(blank_BK: Tensor, token_BS: Tensor, emission_BK: Tensor, target_lengths_B: Tensor) -> Tensor:
    """[B], the sum over the two states in which paths end, from the variables of the last position."""
    lengths_B1 = target_lengths_B[:, None]
    sum_B1 = (blank_BK + emission_BK[:, :1]).gather(1, lengths_B1)
    if token_BS.shape[1] > 0:
        last_B1 = (token_BS + emission_BK[:, 1:]).gather(1, (lengths_B1 - 1).clamp(min=0))
        sum_B1 = torch.logaddexp(sum_B1, last_B1.masked_fill(lengths_B1 == 0, -torch.inf))
    return sum_B1[:, 0]


def both_directions(emissions_TBK: Tensor) -> Tensor:
    """[T, 2B, K], the problem and its mirror image, in which time and target are reversed."""
    mirrored = emissions_TBK.flip(0)
    mirrored[..., 1:] = mirrored[..., 1:].flip(2)
    return torch.cat((emissions_TBK, mirrored), 1)


def both_targets(skips_BS: Tensor, target_lengths_B: Tensor) -> tuple[Tensor, Tensor]:
    """Which tokens may directly follow the one before, [2B, S], and the blank where paths begin, [2B]."""
    # A token of the mirrored target differs from the one before it if the one that follows it in the target does.
    mirrored_BS = torch.ones_like(skips_BS)
    mirrored_BS[:, 1:] = skips_BS[:, 1:].flip(1)
    # A mirrored target that is shorter than S begins in the middle of the row.
    start_B = skips_BS.shape[1] - target_lengths_B
    return torch.cat((skips_BS, mirrored_BS)), torch.cat((torch.zeros_like(start_B), start_B))


def forward_variables(
    emissions: Tensor, may_skip: Tensor, start: Tensor, keeps_all: bool = True
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of all paths into each blank [T, R, S+1] and token [T, R, S], without its own emission.

    Args:
        emissions: [T, R, K].
        may_skip: bool [R, S], True at a token that may directly follow the one before it.
        start: int64 [R], the blank before which paths begin.
        keeps_all: False if only the last position is needed. The results then hold that one alone.
    """
    num_steps, num_rows, num_columns = emissions.shape
    num_kept = num_steps if keeps_all else 1
    blanks = emissions.new_empty(num_kept, num_rows, num_columns)
    tokens = emissions.new_empty(num_kept, num_rows, num_columns - 1)
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


def best_states(emissions_TBK: Tensor, skips_BS: Tensor, target_lengths_B: Tensor) -> tuple[Tensor, Tensor]:
    """The most probable path. Of equally probable steps, a path rather stays, and rather goes on by one state.

    Returns:
        The state of each position, int64 [T, B], of 2S + 1 (blank and token in turn), and the log-probability [B].
        Where a sequence has no path, states mean nothing, and the log-probability is -inf or means nothing.
    """
    num_steps, batch_size, num_columns = emissions_TBK.shape
    num_states = 2 * num_columns - 1
    state_X = torch.arange(num_states, device=emissions_TBK.device)
    column_X = torch.where(state_X % 2 == 1, (state_X + 1) // 2, 0)
    no_skip_BX = emissions_TBK.new_full((batch_size, num_states), -torch.inf)
    no_skip_BX[:, 1::2].masked_fill_(skips_BS, 0.0)
    # Two states that no path is in lie before the first blank, so that each state has two before it. Before the first
    # position a path is in the first blank; from there it may go on to the first token.
    score_BY = emissions_TBK.new_full((batch_size, num_states + 2), -torch.inf)
    score_BY[:, 2] = 0.0
    back_TBX = torch.empty(num_steps, batch_size, num_states, dtype=torch.uint8, device=emissions_TBK.device)
    for step in range(num_steps):
        from_skip_BX = score_BY[:, :-2] + no_skip_BX
        best_BX, back_BX = torch.stack((score_BY[:, 2:], score_BY[:, 1:-1], from_skip_BX)).max(0)
        back_TBX[step] = back_BX
        torch.add(best_BX, emissions_TBK[step].index_select(1, column_X), out=score_BY[:, 2:])
    score_BX = score_BY[:, 2:]
    state_B, log_prob_B = last_states(score_BX, target_lengths_B)
    states_TB = torch.empty(num_steps, batch_size, dtype=torch.int64, device=emissions_TBK.device)
    for step in range(num_steps - 1, -1, -1):
        states_TB[step] = state_B
        state_B = state_B - back_TBX[step].gather(1, state_B[:, None])[:, 0]
    return states_TB, log_prob_B


def last_states(score_BX: Tensor, target_lengths_B: Tensor) -> tuple[Tensor, Tensor]:
    """The state in which each best path ends, int64 [B], and its score [B], from the scores of the last position."""
    last_B1 = 2 * target_lengths_B[:, None]
    ends_B2 = score_BX.gather(1, torch.cat((last_B1, (last_B1 - 1).clamp(min=0)), 1))
    log_prob_B, which_B = ends_B2.max(1)
    return (last_B1[:, 0] - which_B).clamp(min=0), log_prob_B
