"""Triton kernels of CTC, for GPUs of compute capability 7.0 and later. `bnb_ds.ctc.kernels` tries and chooses them.

Each kernel replaces a PyTorch path, of `bnb_ds.ctc.recursion` or `bnb_ds.ctc.head`, with one launch. They use no
atomics, so equal input gives equal bits. Lengths and counts are not specialised: a kernel is compiled once for every
power of two of the target's length, not for each batch.

Shapes: B sequences, R rows of a recursion (with its mirror image R = 2B), T positions, S target tokens, K = S + 1
columns (the blank, then the target tokens), X = 2S + 1 states, C rows of a chunk, V vocabulary.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from bnb_ds.ctc.recursion import both_directions, both_targets, ends, last_states

_SOFTMAX_BLOCK = 4096


def forward_backward(
    emissions_TBK: Tensor, skips_BS: Tensor, target_lengths_B: Tensor, with_occupancy: bool = True
) -> tuple[Tensor, Tensor | None]:
    """As `bnb_ds.ctc.recursion.forward_backward`."""
    if not with_occupancy:
        blanks, tokens = forward_variables(emissions_TBK, skips_BS, torch.zeros_like(target_lengths_B))
        return ends(blanks[-1], tokens[-1], emissions_TBK[-1], target_lengths_B), None
    blanks, tokens = forward_variables(both_directions(emissions_TBK), *both_targets(skips_BS, target_lengths_B))
    num_steps, batch_size, num_columns = emissions_TBK.shape
    occupancy_TBK, total_TB = torch.empty_like(emissions_TBK), torch.empty_like(emissions_TBK[..., 0])
    lanes = _lanes(num_columns - 1)
    with torch.cuda.device_of(emissions_TBK):
        occupancy_kernel[(num_steps * batch_size,)](
            emissions_TBK, blanks, tokens, occupancy_TBK, total_TB, num_steps, batch_size, num_columns - 1,
            LANES=lanes, num_warps=_warps(lanes),
        )  # fmt: skip
    return total_TB[0], occupancy_TBK


def forward_variables(emissions: Tensor, may_skip: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """As `bnb_ds.ctc.recursion.forward_variables`, of all positions."""
    num_steps, num_rows, num_columns = emissions.shape
    blanks, tokens = torch.empty_like(emissions), emissions.new_empty(num_steps, num_rows, num_columns - 1)
    lanes = _lanes(num_columns - 1)
    # Triton launches on the current device, whatever device its arguments are on.
    with torch.cuda.device_of(emissions):
        forward_kernel[(num_rows,)](
            emissions, may_skip.view(torch.int8), start, blanks, tokens, num_steps, num_rows, num_columns - 1,
            LANES=lanes, num_warps=_warps(lanes),
        )  # fmt: skip
    return blanks, tokens


def best_states(emissions_TBK: Tensor, skips_BS: Tensor, target_lengths_B: Tensor) -> tuple[Tensor, Tensor]:
    """As `bnb_ds.ctc.recursion.best_states`."""
    num_steps, batch_size, num_columns = emissions_TBK.shape
    num_states = 2 * num_columns - 1
    back_TBX = torch.empty(num_steps, batch_size, num_states, dtype=torch.uint8, device=emissions_TBK.device)
    score_BX = emissions_TBK.new_empty(batch_size, num_states)
    states_TB = torch.empty(num_steps, batch_size, dtype=torch.int64, device=emissions_TBK.device)
    lanes = _lanes(num_columns - 1)
    with torch.cuda.device_of(emissions_TBK):
        best_kernel[(batch_size,)](
            emissions_TBK, skips_BS.view(torch.int8), back_TBX, score_BX, num_steps, batch_size, num_columns - 1,
            LANES=lanes, num_warps=_warps(lanes),
        )  # fmt: skip
        last_B, log_prob_B = last_states(score_BX, target_lengths_B)
        # A launch of its own is the barrier that this needs.
        back_kernel[(batch_size,)](back_TBX, last_B, states_TB, num_steps, batch_size, num_states, num_warps=1)
    return states_TB, log_prob_B


def softmax_of_chunk(
    logits_CV: Tensor, bias_V: Tensor | None, own_C: Tensor, scale_C: Tensor, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    """The softmax of a chunk of logits in which each sequence's own columns are already -inf.

    Args:
        logits_CV: float32, without the bias; rows lie contiguous, and may have any stride.
        bias_V: float32, contiguous, of as many numbers as the stride of a row; None: 0.
        own_C: float32, logsumexp of the own columns.
        scale_C: float32, factor on each row of the result.
        dtype: dtype of the scaled softmax.

    Returns:
        The scaled softmax [C, V], of the same strides as the logits, with 0 at the strongest class of each row;
        logsumexp of all columns [C]; the strongest class, int64 [C]; and its unscaled softmax [C].
    """
    num_rows, vocab_size = logits_CV.shape
    stride = logits_CV.stride(0)
    scaled_CV = logits_CV.new_empty((num_rows, stride), dtype=dtype)[:, :vocab_size]
    normalizer_C, strength_C = torch.empty_like(own_C), torch.empty_like(own_C)
    rival_C = own_C.new_empty(num_rows, dtype=torch.int64)
    with torch.cuda.device_of(logits_CV):
        softmax_kernel[(num_rows,)](
            logits_CV, own_C if bias_V is None else bias_V, own_C, scale_C, scaled_CV, normalizer_C, rival_C,
            strength_C, vocab_size, stride, HAS_BIAS=bias_V is not None,
            BLOCK=min(_SOFTMAX_BLOCK, triton.next_power_of_2(vocab_size)), num_warps=8,
        )  # fmt: skip
    return scaled_CV, normalizer_C, rival_C, strength_C


def _lanes(num_tokens: int) -> int:
    return triton.next_power_of_2(max(num_tokens, 2))


def _warps(lanes: int) -> int:
    return min(max(lanes // 64, 1), 8)


@triton.jit
def log_add(a, b):
    """log(exp(a) + exp(b)); either may be -inf."""
    high = tl.maximum(a, b)
    distance = tl.where(high == float("-inf"), 0.0, tl.minimum(a, b) - high)
    # maximum and minimum drop a NaN. The result must be NaN then, so the operands are added instead.
    return tl.where((a == a) & (b == b), high + tl.log(1.0 + tl.exp(distance)), a + b)


@triton.jit(do_not_specialize=["num_steps", "num_rows", "num_tokens"])
def forward_kernel(emissions, may_skip, start, blanks, tokens, num_steps, num_rows, num_tokens, LANES: tl.constexpr):
    """A lane holds one token and the blank behind it. The blank before the first token is a scalar beside the lanes."""
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, LANES)
    is_token = lane < num_tokens
    # Whether the *next* lane's token may be entered from this lane's token. The lane that sends decides what it sends.
    passes = tl.load(may_skip + row * num_tokens + lane + 1, mask=lane + 1 < num_tokens, other=0) != 0
    first = tl.load(start + row)
    impossible = tl.full((LANES,), float("-inf"), emissions.dtype.element_ty)
    token = impossible
    blank = tl.where(lane + 1 == first, 0.0, impossible)
    opening = tl.where(first == 0, 0.0, float("-inf")).to(emissions.dtype.element_ty)
    before = tl.maximum(lane - 1, 0)
    emission = emissions + row * (num_tokens + 1)
    blanks += row * (num_tokens + 1)
    tokens += row * num_tokens
    for _ in range(num_steps):
        of_blank = tl.load(emission)
        of_token = tl.load(emission + 1 + lane, mask=is_token, other=float("-inf"))
        into_blank = log_add(blank, token)
        # A gather needs no barrier here, unlike a round trip through global memory.
        handed = tl.gather(tl.where(passes, into_blank, blank), before, 0)
        into_token = log_add(token, tl.where(lane == 0, opening, handed))
        tl.store(blanks, opening)
        tl.store(blanks + 1 + lane, into_blank, mask=is_token)
        tl.store(tokens + lane, into_token, mask=is_token)
        opening += of_blank
        blank = into_blank + of_blank
        token = into_token + of_token
        emission += num_rows * (num_tokens + 1)
        blanks += num_rows * (num_tokens + 1)
        tokens += num_rows * num_tokens


@triton.jit(do_not_specialize=["num_steps", "batch_size", "num_tokens"])
def occupancy_kernel(
    emissions, blanks, tokens, occupancy, total, num_steps, batch_size, num_tokens, LANES: tl.constexpr
):
    """One position of one sequence: the states' shares of all paths through it. Lanes are those of `forward_kernel`."""
    place = tl.program_id(0).to(tl.int64)
    step, sequence = place // batch_size, place % batch_size
    ahead = step * 2 * batch_size + sequence
    behind = (num_steps - 1 - step) * 2 * batch_size + batch_size + sequence
    lane = tl.arange(0, LANES)
    is_token = lane < num_tokens
    emission = emissions + place * (num_tokens + 1)
    of_blank = tl.load(emission)
    impossible = float("-inf")
    token = tl.load(tokens + ahead * num_tokens + lane, mask=is_token, other=impossible)
    token += tl.load(tokens + behind * num_tokens + num_tokens - 1 - lane, mask=is_token, other=0.0)
    token += tl.load(emission + 1 + lane, mask=is_token, other=0.0)
    blanks_ahead, blanks_behind = blanks + ahead * (num_tokens + 1), blanks + behind * (num_tokens + 1)
    blank = tl.load(blanks_ahead + 1 + lane, mask=is_token, other=impossible)
    blank += tl.load(blanks_behind + num_tokens - 1 - lane, mask=is_token, other=0.0) + of_blank
    opening = tl.load(blanks_ahead) + tl.load(blanks_behind + num_tokens) + of_blank
    # Normalising at each position removes the drift that both variables share.
    high = tl.maximum(tl.max(tl.maximum(token, blank), 0), opening)
    shift = tl.where(high == impossible, 0.0, high)
    token, opening = tl.exp(token - shift), tl.exp(opening - shift)
    of_blanks = tl.sum(tl.exp(blank - shift), 0) + opening
    everything = tl.sum(token, 0) + of_blanks
    tl.store(total + place, shift + tl.log(everything))
    tl.store(occupancy + place * (num_tokens + 1), of_blanks / everything)
    tl.store(occupancy + place * (num_tokens + 1) + 1 + lane, token / everything, mask=is_token)


@triton.jit(do_not_specialize=["num_steps", "num_rows", "num_tokens"])
def best_kernel(emissions, may_skip, back, score, num_steps, num_rows, num_tokens, LANES: tl.constexpr):
    """As `forward_kernel`, with the best way into each state instead of the sum of all, and where it comes from."""
    row = tl.program_id(0).to(tl.int64)
    num_states = 2 * num_tokens + 1
    lane = tl.arange(0, LANES)
    is_token = lane < num_tokens
    may_enter = (tl.load(may_skip + row * num_tokens + lane, mask=is_token, other=0) != 0) & (lane > 0)
    impossible = tl.full((LANES,), float("-inf"), emissions.dtype.element_ty)
    token, blank = impossible, impossible
    opening = tl.full((), 0.0, emissions.dtype.element_ty)
    before = tl.maximum(lane - 1, 0)
    emission = emissions + row * (num_tokens + 1)
    back += row * num_states
    for _ in range(num_steps):
        of_blank = tl.load(emission)
        of_token = tl.load(emission + 1 + lane, mask=is_token, other=float("-inf"))
        blank_before = tl.where(lane == 0, opening, tl.gather(blank, before, 0))
        token_before = tl.where(may_enter, tl.gather(token, before, 0), float("-inf"))
        is_next = blank_before > token
        into_token = tl.where(is_next, blank_before, token)
        is_skip = token_before > into_token
        into_token = tl.where(is_skip, token_before, into_token)
        is_entered = token > blank
        tl.store(back, 0)
        tl.store(back + 1 + 2 * lane, tl.where(is_skip, 2, is_next.to(tl.int32)).to(tl.uint8), mask=is_token)
        tl.store(back + 2 + 2 * lane, is_entered.to(tl.uint8), mask=is_token)
        blank = tl.where(is_entered, token, blank) + of_blank
        token = into_token + of_token
        opening += of_blank
        emission += num_rows * (num_tokens + 1)
        back += num_rows * num_states
    score += row * num_states
    tl.store(score, opening)
    tl.store(score + 1 + 2 * lane, token, mask=is_token)
    tl.store(score + 2 + 2 * lane, blank, mask=is_token)


@triton.jit(do_not_specialize=["num_steps", "num_rows", "num_states"])
def back_kernel(back, last, states, num_steps, num_rows, num_states):
    """From the last position to the first, along the best path of one sequence."""
    row = tl.program_id(0).to(tl.int64)
    state = tl.load(last + row)
    back += (tl.cast(num_steps, tl.int64) - 1) * num_rows * num_states + row * num_states
    states += (tl.cast(num_steps, tl.int64) - 1) * num_rows + row
    for _ in range(num_steps):
        tl.store(states, state)
        state -= tl.load(back + state).to(tl.int64)
        back -= num_rows * num_states
        states -= num_rows


@triton.jit
def softmax_kernel(
    logits, bias, own, scale, scaled, normalizer, rival, strength, vocab_size, stride, HAS_BIAS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Two sweeps over one row. The second sweep finds the row in the cache.

    Masks go by the stride. The compiler knows that it is a multiple of 16, so it may move 16 bytes at a time.
    """
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    logits += row * stride
    scaled += row * stride
    best = tl.full((BLOCK,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    where_best = tl.zeros((BLOCK,), tl.int32)
    for begin in range(0, vocab_size, BLOCK):
        place = begin + column
        value = tl.load(logits + place, mask=place < stride, other=0.0)
        if HAS_BIAS:
            value += tl.load(bias + place, mask=place < stride, other=0.0)
        value = tl.where(place < vocab_size, value, float("-inf"))
        is_better = value > best
        high = tl.where(is_better, value, best)
        finite = tl.where(high == float("-inf"), 0.0, high)
        total = total * tl.exp(best - finite) + tl.exp(value - finite)
        where_best = tl.where(is_better, place, where_best)
        best = high
    own_part = tl.load(own + row)
    highest = tl.max(best, 0)
    # Of equally strong classes the lowest id wins, however the lanes are reduced.
    chosen = tl.min(tl.where(best == highest, where_best, vocab_size), 0)
    shift = tl.maximum(highest, own_part)
    shift = tl.where(shift == float("-inf"), 0.0, shift)
    everything = tl.sum(total * tl.exp(best - shift), 0) + tl.exp(own_part - shift)
    log_total = shift + tl.log(everything)
    factor = tl.load(scale + row)
    tl.store(normalizer + row, log_total)
    tl.store(rival + row, tl.minimum(chosen, vocab_size - 1))
    tl.store(strength + row, tl.exp(highest - log_total))
    for begin in range(0, vocab_size, BLOCK):
        place = begin + column
        value = tl.load(logits + place, mask=place < stride, other=0.0)
        if HAS_BIAS:
            value += tl.load(bias + place, mask=place < stride, other=0.0)
        value = tl.where(place < vocab_size, value, float("-inf"))
        result = tl.where(place == chosen, 0.0, tl.exp(value - log_total) * factor)
        tl.store(scaled + place, result.to(scaled.dtype.element_ty), mask=place < stride)
