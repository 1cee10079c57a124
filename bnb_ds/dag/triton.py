"""Triton kernels of the dynamic programme over paths through a graph, for GPUs of compute capability 7.0 and later.
`bnb_ds.dag.kernels` tries and chooses them.

One program takes one sequence through all steps, so a step is no launch and the host waits for nothing. Variables are
logarithms; each step's are read less the largest of them, so that they stay near 0 and float32 does not drift. There is
no case that must be done again: a path of any probability is seen. Tiles of the links that no path can use at a step
are skipped. No atomics are used, so equal input gives equal bits. `bnb_ds.dag.programme` launches them.

Forward variables W_s(j) of step s at slot j hold the emission of slot j, backward variables U_s(i) do not hold that of
slot i; m_s is the largest of W_s:

    W_s(j) = e_s(j) + logsumexp_i (W_{s-1}(i) - m_{s-1} + E_ij)

Shapes: B sequences, L slots and S steps (target tokens) of the longest, I sources and J targets of a tile.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_TILE = 64
# Loads of a step must not be fetched ahead of the stores of the step before: num_stages.
_OPTIONS = {"TILE": _TILE, "num_warps": 8, "num_stages": 1}


def launch(kernel: str, batch_size: int, num_slots: int, *arguments: Tensor | int) -> None:
    """Launch a kernel of this file on the device of its first argument; see `bnb_ds.dag.programme`."""
    function = globals()[f"{kernel}_kernel"]
    num_tiles = triton.cdiv(num_slots, _TILE)
    grid = (batch_size, num_tiles, num_tiles) if kernel == "links" else (batch_size,)
    options = {"num_warps": 1} if kernel == "back" else _OPTIONS
    # Triton launches on the current device, whatever device its arguments are on.
    with torch.cuda.device_of(arguments[0]):
        function[grid](*arguments, batch_size, num_slots, **options)


@triton.jit
def add_up(best, total, value):
    """One more tile for logsumexp: the largest value of each lane so far, and the sum of exp(value - largest)."""
    high = tl.maximum(best, value)
    finite = tl.where(high == float("-inf"), 0.0, high)
    return high, total * tl.exp(best - finite) + tl.exp(value - finite)


@triton.jit
def summed(best, total, AXIS: tl.constexpr):
    """logsumexp over the lanes of an axis."""
    high = tl.max(best, AXIS)
    finite = tl.where(high == float("-inf"), 0.0, high)
    if AXIS == 0:
        return finite + tl.log(tl.sum(total * tl.exp(best - finite[None, :]), 0))
    return finite + tl.log(tl.sum(total * tl.exp(best - finite[:, None]), 1))


@triton.jit
def finite_or_zero(value):
    """0 in place of -inf and NaN."""
    return tl.where((value == value) & (value > float("-inf")), value, 0.0)


@triton.jit(do_not_specialize=["batch_size", "num_slots", "stride_B", "stride_L"])
def forward_kernel(
    emissions, links, last_slot, last_step, ways, shifts, stride_B, stride_L, batch_size, num_slots, TILE: tl.constexpr
):
    """W and m of one sequence. All other places of the results stay as they are."""
    sequence = tl.program_id(0).to(tl.int64)
    end, last = tl.load(last_slot + sequence), tl.load(last_step + sequence)
    links += sequence * stride_B
    lane = tl.arange(0, TILE)
    row = sequence * num_slots
    dtype = emissions.dtype.element_ty
    if last >= 0:
        first = tl.load(emissions + row)
        shift = finite_or_zero(first)
        tl.store(ways + row, first)
        tl.store(shifts + sequence, shift)
        for step in range(1, last + 1):
            # Other threads of this program wrote what is read now.
            tl.debug_barrier()
            before, row = row, row + batch_size * num_slots
            high = tl.full((TILE,), float("-inf"), dtype)
            furthest = end - last + step  # the slots behind it are needed for the rest of the target
            for begin_j in range(step // TILE * TILE, furthest + 1, TILE):
                target = begin_j + lane
                is_target = (target >= step) & (target <= furthest)
                best = tl.full((TILE, TILE), float("-inf"), dtype)
                total = tl.zeros((TILE, TILE), dtype)
                for begin_i in range((step - 1) // TILE * TILE, begin_j + TILE, TILE):
                    source = begin_i + lane
                    is_source = (source >= step - 1) & (source < furthest)
                    way = tl.load(ways + before + source, mask=is_source, other=float("-inf")) - shift
                    link = tl.load(
                        links + source[:, None] * stride_L + target[None, :],
                        mask=(is_source[:, None] & is_target[None, :]) & (source[:, None] < target[None, :]),
                        other=float("-inf"),
                    )
                    best, total = add_up(best, total, way[:, None] + link)
                way = summed(best, total, 0) + tl.load(emissions + row + target, mask=is_target, other=float("-inf"))
                tl.store(ways + row + target, way, mask=is_target)
                high = tl.maximum(high, way)
            shift = finite_or_zero(tl.max(high, 0))
            tl.store(shifts + step * batch_size + sequence, shift)


@triton.jit(do_not_specialize=["batch_size", "num_slots", "stride_B", "stride_L"])
def backward_kernel(
    emissions, links, last_slot, last_step, ahead, stride_B, stride_L, batch_size, num_slots, TILE: tl.constexpr
):
    """U of one sequence, each step's up to a constant. All other places of the result stay as they are."""
    sequence = tl.program_id(0).to(tl.int64)
    end, last = tl.load(last_slot + sequence), tl.load(last_step + sequence)
    links += sequence * stride_B
    lane = tl.arange(0, TILE)
    dtype = emissions.dtype.element_ty
    if last >= 0:
        row = (last * batch_size + sequence) * num_slots
        tl.store(ahead + row + end, 0.0)
        shift = tl.full((), 0.0, dtype)
        for back in range(1, last + 1):
            tl.debug_barrier()
            step = last - back
            after, row = row, row - batch_size * num_slots
            high = tl.full((TILE,), float("-inf"), dtype)
            furthest = end - back
            for begin_i in range(step // TILE * TILE, furthest + 1, TILE):
                source = begin_i + lane
                is_source = (source >= step) & (source <= furthest)
                best = tl.full((TILE, TILE), float("-inf"), dtype)
                total = tl.zeros((TILE, TILE), dtype)
                for begin_j in range(begin_i, furthest + 2, TILE):
                    target = begin_j + lane
                    is_target = (target > step) & (target <= furthest + 1)
                    way = tl.load(ahead + after + target, mask=is_target, other=float("-inf")) - shift
                    way += tl.load(emissions + after + target, mask=is_target, other=float("-inf"))
                    link = tl.load(
                        links + source[:, None] * stride_L + target[None, :],
                        mask=(is_source[:, None] & is_target[None, :]) & (source[:, None] < target[None, :]),
                        other=float("-inf"),
                    )
                    best, total = add_up(best, total, link + way[None, :])
                way = summed(best, total, 1)
                tl.store(ahead + row + source, way, mask=is_source)
                high = tl.maximum(high, tl.where(is_source, way, float("-inf")))
            shift = finite_or_zero(tl.max(high, 0))


@triton.jit(do_not_specialize=["batch_size", "num_slots", "stride_B", "stride_L"])
def links_kernel(
    links, last_slot, last_step, ways, shifts, incoming, taken, stride_B, stride_L, batch_size, num_slots,
    TILE: tl.constexpr,
):  # fmt: skip
    """What the links of one tile carry, summed over steps; steps do not depend on each other here."""
    sequence = tl.program_id(0).to(tl.int64)
    begin_i, begin_j = tl.program_id(1) * TILE, tl.program_id(2) * TILE
    end, last = tl.load(last_slot + sequence), tl.load(last_step + sequence)
    source, target = begin_i + tl.arange(0, TILE), begin_j + tl.arange(0, TILE)
    if begin_j + TILE > begin_i:
        is_link = ((source[:, None] < target[None, :]) & (source[:, None] < num_slots)) & (target[None, :] < num_slots)
        place = source[:, None] * stride_L + target[None, :]
        link = tl.load(links + sequence * stride_B + place, mask=is_link, other=float("-inf"))
        carried = tl.zeros((TILE, TILE), links.dtype.element_ty)
        for step in range(tl.maximum(begin_j - end + last, 1), tl.minimum(begin_i + TILE, last) + 1):
            row = (step * batch_size + sequence) * num_slots
            before = row - batch_size * num_slots
            shift = tl.load(shifts + (step - 1) * batch_size + sequence)
            way = tl.load(ways + before + source, mask=source < num_slots, other=float("-inf")) - shift
            way_in = tl.load(incoming + row + target, mask=target < num_slots, other=float("-inf"))
            carried += tl.exp(way[:, None] + link + way_in[None, :])
        place = (sequence * num_slots + source[:, None]) * num_slots + target[None, :]
        tl.store(taken + place, carried, mask=is_link)


@triton.jit(do_not_specialize=["batch_size", "num_slots", "stride_B", "stride_L", "stride_S", "is_whole"])
def best_kernel(
    emissions, links, last_slot, last_step, scores, before, stride_S, is_whole, stride_B, stride_L, batch_size,
    num_slots, TILE: tl.constexpr,
):  # fmt: skip
    """As `forward_kernel`, with the best way into each slot instead of the sum of all, and where it comes from.

    The emissions of a step are ``stride_S`` numbers from those of the next. If ``is_whole`` is 0, the paths of all
    numbers of steps are wanted; then slots are visited from which the last one cannot be reached at the last step.
    """
    sequence = tl.program_id(0).to(tl.int64)
    end, last = tl.load(last_slot + sequence), tl.load(last_step + sequence)
    links += sequence * stride_B
    lane = tl.arange(0, TILE)
    row = sequence * num_slots
    emission = emissions + row
    dtype = emissions.dtype.element_ty
    if last >= 0:
        tl.store(scores + row, tl.load(emission))
        for step in range(1, last + 1):
            tl.debug_barrier()
            previous, row = row, row + batch_size * num_slots
            emission += stride_S
            furthest = end - (last - step) * is_whole
            for begin_j in range(step // TILE * TILE, furthest + 1, TILE):
                target = begin_j + lane
                is_target = (target >= step) & (target <= furthest)
                best = tl.full((TILE, TILE), float("-inf"), dtype)
                where_best = tl.zeros((TILE, TILE), tl.int32)
                for begin_i in range((step - 1) // TILE * TILE, begin_j + TILE, TILE):
                    source = begin_i + lane
                    is_source = (source >= step - 1) & (source < furthest)
                    score = tl.load(scores + previous + source, mask=is_source, other=float("-inf"))
                    link = tl.load(
                        links + source[:, None] * stride_L + target[None, :],
                        mask=(is_source[:, None] & is_target[None, :]) & (source[:, None] < target[None, :]),
                        other=float("-inf"),
                    )
                    value = score[:, None] + link
                    is_better = value > best
                    best = tl.where(is_better, value, best)
                    where_best = tl.where(is_better, source[:, None].to(tl.int32), where_best)
                arriving = tl.max(best, 0)
                # Of equally good sources the earliest wins, however the lanes are reduced.
                chosen = tl.min(tl.where(best == arriving[None, :], where_best, num_slots - 1), 0)
                score = arriving + tl.load(emission + target, mask=is_target, other=float("-inf"))
                tl.store(scores + row + target, score, mask=is_target)
                tl.store(before + row + target, chosen, mask=is_target)


@triton.jit(do_not_specialize=["batch_size", "num_slots"])
def back_kernel(last_slot, last_step, scores, before, path, log_prob, batch_size, num_slots):
    """From the last step to the first, along the best path of one sequence, if it has one."""
    sequence = tl.program_id(0).to(tl.int64)
    slot, last = tl.load(last_slot + sequence), tl.load(last_step + sequence)
    if last >= 0:
        row = (last * batch_size + sequence) * num_slots
        score = tl.load(scores + row + slot)
        tl.store(log_prob + sequence, score)
        if score > float("-inf"):
            for back in range(last + 1):
                tl.store(path + sequence * num_slots + slot, last - back)
                slot = tl.load(before + row + slot).to(tl.int64)
                row -= batch_size * num_slots
