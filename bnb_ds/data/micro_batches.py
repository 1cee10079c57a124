"""Deals the samples of a step out to micro batches, by count or by tokens.

Either way a micro batch holds sequences of similar length, and all ranks compute similar micro batches at the same
time. So there is little padding on devices that need padding for attention and the CTC recursion, and ranks hardly wait
for each other. Dealing never changes which samples a step has, only which rank computes them and when. Every rank works
it out from the lengths.
"""

from __future__ import annotations

import numpy as np


def deal_by_count(lengths: np.ndarray, micro_batch: int) -> list[np.ndarray]:
    """Groups of ``micro_batch`` samples each, short ones first.

    Args:
        lengths: int [S], tokens of each sample of the step; S is a multiple of ``micro_batch``.
        micro_batch: number of samples of a group.

    Returns:
        int64 indices of the samples of each group. Rank ``g % world_size`` computes group g in its micro step
        ``g // world_size``.
    """
    return list(np.argsort(lengths, kind="stable").reshape(-1, micro_batch))


def deal_by_tokens(lengths: np.ndarray, max_tokens: int, world_size: int) -> list[np.ndarray]:
    """As few groups as possible of at most ``max_tokens`` tokens each, with the same number of groups for every rank.

    With that number of groups, the groups have as equal numbers of tokens as possible.

    Args:
        lengths: int [S], tokens of each sample of the step, none above ``max_tokens``; S is a multiple of
            ``world_size``.
        max_tokens: most tokens of a group.
        world_size: number of ranks.

    Returns:
        As `deal_by_count`; no group is empty.

    Raises:
        ValueError: a sample has more than ``max_tokens`` tokens.
    """
    order = np.argsort(lengths, kind="stable")
    ends = np.cumsum(lengths[order])
    if lengths.max() > max_tokens:
        raise ValueError(f"a sample of {lengths.max()} tokens does not fit a micro batch of {max_tokens}")
    fewest = len(_cut_points(ends, max_tokens))
    num_groups = -(-fewest // world_size) * world_size
    cuts = _cut_points(ends, _least_capacity(ends, int(lengths.max()), num_groups))
    while len(cuts) < num_groups:
        cuts = _with_one_more(cuts, ends)
    return np.split(order, cuts[:-1])


def _cut_points(ends: np.ndarray, capacity: int) -> list[int]:
    """Ends of the groups if each takes the next samples as long as they fit. ``ends`` is the running sum of lengths."""
    cuts, taken = [0], 0
    while cuts[-1] < ends.size:
        cuts.append(int(np.searchsorted(ends, taken + capacity, side="right")))
        taken = int(ends[cuts[-1] - 1])
    return cuts[1:]


def _least_capacity(ends: np.ndarray, longest: int, num_groups: int) -> int:
    """The smallest capacity with which the samples fit into ``num_groups`` groups, found by bisection."""
    low, high = max(longest, -(-int(ends[-1]) // num_groups)), int(ends[-1])
    while low < high:
        middle = (low + high) // 2
        if len(_cut_points(ends, middle)) <= num_groups:
            high = middle
        else:
            low = middle + 1
    return low


def _with_one_more(cuts: list[int], ends: np.ndarray) -> list[int]:
    """Halve the group with the most tokens. Groups of one sample are left alone."""
    begins = [0, *cuts[:-1]]
    tokens = [int(ends[end - 1] - (ends[begin - 1] if begin else 0)) for begin, end in zip(begins, cuts, strict=True)]
    group = max((g for g in range(len(cuts)) if cuts[g] - begins[g] > 1), key=tokens.__getitem__)
    return sorted([*cuts, (begins[group] + cuts[group]) // 2])
