"""The dynamic programme over paths through a graph by kernels that take one sequence through all steps.

The kernels stand twice: in Triton (`bnb_ds.dag.triton`, which explains them) and in CUDA C++
(`bnb_ds/recurrences/recurrences.cu`). Both are launched by a function of the same form, `Launch`.

Shapes: B sequences, L slots and S steps (target tokens) of the longest, M lengths of paths that are compared.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

#: launches a kernel, by name, of B sequences of L slots with further arguments
Launch = Callable[..., None]


def forward_backward(
    launch: Launch,
    emissions_SBL: Tensor,
    links_BLL: Tensor,
    last_slot_B: Tensor,
    last_step_B: Tensor,
    infeasible_B: Tensor,
    with_posteriors: bool = True,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Sums over all paths; arguments are the fields of `bnb_ds.dag.alignment.Problem`.

    Returns:
        nll [B], and the posteriors of `bnb_ds.dag.alignment.Posteriors`: slots [B, L, S] and links [B, L, L]; None if
        they are not wanted.
    """
    links_BLL, strides = _rows_of(links_BLL)
    last_step_B = last_step_B.masked_fill(infeasible_B, -1)
    size = emissions_SBL.shape[1:]
    of_sequences = (emissions_SBL, links_BLL, last_slot_B, last_step_B)
    ways_SBL = torch.full_like(emissions_SBL, -torch.inf)
    shifts_SB = torch.zeros_like(emissions_SBL[..., 0])
    launch("forward", *size, *of_sequences, ways_SBL, shifts_SB, *strides)
    everywhere_1B = last_step_B.clamp(min=0)[None]
    before_SB = shifts_SB.double().cumsum(0) - shifts_SB
    at_end_B = ways_SBL.gather(0, everywhere_1B[..., None].expand(1, -1, size[1]))[0]
    at_end_B = at_end_B.gather(1, last_slot_B.clamp(min=0)[:, None])[:, 0]
    nll_B = -(at_end_B + before_SB.gather(0, everywhere_1B)[0]).to(emissions_SBL.dtype)
    nll_B = torch.where(infeasible_B, torch.inf, nll_B)
    if not with_posteriors:
        return nll_B, None, None
    ahead_SBL = torch.full_like(emissions_SBL, -torch.inf)
    launch("backward", *size, *of_sequences, ahead_SBL, *strides)
    # Normalising at each step removes the drift that both variables share.
    joint_SBL = ways_SBL + ahead_SBL
    highest_SB1 = joint_SBL.amax(2, keepdim=True)
    total_SB1 = torch.where(highest_SB1 == -torch.inf, torch.inf, joint_SBL.logsumexp(2, keepdim=True))
    slots_SBL = (joint_SBL - total_SB1).exp_()
    incoming_SBL = emissions_SBL + ahead_SBL - total_SB1
    taken_BLL = links_BLL.new_zeros(links_BLL.shape)
    launch("links", *size, *of_sequences[1:], ways_SBL, shifts_SB, incoming_SBL, taken_BLL, *strides)
    return nll_B, slots_SBL.permute(1, 2, 0), taken_BLL


def best_path(
    launch: Launch,
    emissions_SBL: Tensor,
    links_BLL: Tensor,
    last_slot_B: Tensor,
    last_step_B: Tensor,
    infeasible_B: Tensor,
) -> tuple[Tensor, Tensor]:
    """As `bnb_ds.dag.paths.best_path`."""
    last_step_B = last_step_B.masked_fill(infeasible_B, -1)
    scores_SBL, before_SBL = _best(launch, emissions_SBL, links_BLL, last_slot_B, last_step_B, is_whole=True)
    return _back(launch, scores_SBL, before_SBL, last_slot_B, last_step_B)


def best_of_each_length(
    launch: Launch, emission_BL: Tensor, links_BLL: Tensor, last_B: Tensor, num_lengths: int
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The log-probability [B, M] of the best path of each length from 1, and what tells a path of lengths int64 [B].

    The path, int64 [B, L], holds its slots, then the last slot.
    """
    everywhere_B = torch.full_like(last_B, num_lengths - 1)
    emission_MBL = emission_BL.contiguous().expand(num_lengths, *emission_BL.shape)
    scores_MBL, before_MBL = _best(launch, emission_MBL, links_BLL, last_B, everywhere_B, is_whole=False)
    at_end_MB = scores_MBL.gather(2, last_B[None, :, None].expand(num_lengths, -1, 1))[..., 0]

    def path_of(length_B: Tensor) -> Tensor:
        place_BL, _ = _back(launch, scores_MBL, before_MBL, last_B, length_B - 1)
        num_slots = place_BL.shape[1]
        # One column more, for slots that are on no path.
        path_BL = last_B[:, None].repeat(1, num_slots + 1)
        slots_BL = torch.arange(num_slots, device=place_BL.device).expand_as(place_BL)
        path_BL.scatter_(1, torch.where(place_BL >= 0, place_BL, num_slots), slots_BL)
        path_BL[:, 0] = 0
        return path_BL[:, :num_slots]

    return at_end_MB.t(), path_of


def _best(
    launch: Launch,
    emissions_SBL: Tensor,
    links_BLL: Tensor,
    last_slot_B: Tensor,
    last_step_B: Tensor,
    *,
    is_whole: bool,
) -> tuple[Tensor, Tensor]:
    """The score of the best way to each slot at each step, and the slot before, int32."""
    links_BLL, strides = _rows_of(links_BLL)
    size = emissions_SBL.shape[1:]
    scores_SBL = torch.full(emissions_SBL.shape, -torch.inf, dtype=emissions_SBL.dtype, device=emissions_SBL.device)
    before_SBL = torch.zeros_like(scores_SBL, dtype=torch.int32)
    launch(
        "best", *size, emissions_SBL, links_BLL, last_slot_B, last_step_B, scores_SBL, before_SBL,
        emissions_SBL.stride(0), int(is_whole), *strides,
    )  # fmt: skip
    return scores_SBL, before_SBL


def _back(
    launch: Launch, scores_SBL: Tensor, before_SBL: Tensor, last_slot_B: Tensor, last_step_B: Tensor
) -> tuple[Tensor, Tensor]:
    """The step at which each slot is passed, -1 for none, int64 [B, L]; and the score [B] of the path."""
    size = scores_SBL.shape[1:]
    path_BL = torch.full(size, -1, dtype=torch.int64, device=scores_SBL.device)
    log_prob_B = torch.full_like(scores_SBL[0, :, 0], -torch.inf)
    # A launch of its own is the barrier that this needs.
    launch("back", *size, last_slot_B, last_step_B, scores_SBL, before_SBL, path_BL, log_prob_B)
    return path_BL, log_prob_B


def _rows_of(links_BLL: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """Links whose rows lie contiguous, and the strides of sequences and of rows."""
    links_BLL = links_BLL if links_BLL.stride(2) == 1 else links_BLL.contiguous()
    return links_BLL, (links_BLL.stride(0), links_BLL.stride(1))
