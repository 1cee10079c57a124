"""The best path through a graph of slots as a whole, for each length.

Shapes: B sequences, L slots of the longest, M lengths of paths that are compared.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from bnb_ds.dag.kernels import launch_of
from bnb_ds.dag.paths import best_scores, best_source
from bnb_ds.dag.programme import best_of_each_length
from bnb_ds.recurrences.host import through_host


@torch.no_grad()
def viterbi(
    emission_BL: Tensor,
    links_BLL: Tensor,
    last_B: Tensor,
    length_penalty: float,
    min_length: int = 0,
    max_length: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The best path of each length from the first slot to the last, and of these the best by length-penalised score.

    Returns:
        path: int64 [B, L], its slots, then the last slot.
        length: int64 [B].
        score: float64 [B], log-probability over ``length ** length_penalty``; -inf if no path reaches the last slot
            within ``max_length``, where the path is said to be the first slot and the last.
    """
    options = (length_penalty, min_length, max_length)
    launch = launch_of(emission_BL.device, "best path")
    if launch is not None:
        return _best(partial(best_of_each_length, launch), emission_BL, links_BLL, last_B, *options)
    path_BL, length_B, score_B = through_host(
        lambda emission, links, last: _best(_in_pytorch, emission, links, last, *options),
        emission_BL,
        links_BLL,
        last_B,
    )
    return path_BL, length_B, score_B


def _best(
    search: Callable[..., tuple[Tensor, Callable[[Tensor], Tensor]]],
    emission_BL: Tensor,
    links_BLL: Tensor,
    last_B: Tensor,
    length_penalty: float,
    min_length: int,
    max_length: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    num_slots = emission_BL.shape[1]
    num_lengths = num_slots if max_length is None else min(max_length, num_slots)
    shortest = 1 if num_slots == 1 else 2
    num_lengths = max(num_lengths, shortest)  # a path has no fewer
    total_BM, path_of = search(emission_BL, links_BLL, last_B, num_lengths)
    count_M = torch.arange(1, num_lengths + 1, device=total_BM.device)
    missing_M = (min_length - count_M).clamp(min=0)
    missing_BM = torch.where(total_BM == -torch.inf, num_slots + min_length + 1, missing_M)
    is_compared_BM = missing_BM == missing_BM.amin(1, keepdim=True)
    score_BM = torch.where(is_compared_BM, total_BM.double() / count_M.double() ** length_penalty, -torch.inf)
    score_B, index_B = score_BM.max(1)
    length_B = torch.where(score_B > -torch.inf, index_B + 1, torch.where(last_B == 0, 1, 2))
    return path_of(length_B), length_B, score_B


def _in_pytorch(
    emission_BL: Tensor, links_BLL: Tensor, last_B: Tensor, num_lengths: int
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """As `bnb_ds.dag.programme.best_of_each_length`."""
    best_MBL = best_scores(emission_BL.expand(num_lengths, *emission_BL.shape), links_BLL)
    at_end_MB = best_MBL.gather(2, last_B[None, :, None].expand(num_lengths, -1, 1))[..., 0]

    def path_of(length_B: Tensor) -> Tensor:
        path_BL = last_B[:, None].repeat(1, emission_BL.shape[1])
        slot_B = last_B
        for step in range(num_lengths - 1, 0, -1):
            is_on_B = step < length_B
            slot_B = torch.where(is_on_B, best_source(best_MBL[step - 1], links_BLL, slot_B), slot_B)
            path_BL[:, step - 1] = torch.where(is_on_B, slot_B, path_BL[:, step - 1])
        path_BL[:, 0] = 0
        return path_BL

    return at_end_MB.t(), path_of
