"""Triton kernels of the CTC head, for GPUs of compute capability 8.0 and later. `bnb_ds.ctc.kernels` chooses them.

Each kernel replaces a PyTorch path, of `bnb_ds.ctc.alignment` or `bnb_ds.ctc.head`, with one launch. They use no
atomics, so equal input gives equal bits.

Shapes: R = 2B rows (each sequence and its mirror image), T positions, S target tokens, C rows of a chunk, V vocabulary.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_SOFTMAX_BLOCK = 4096


def forward_variables(
    emissions_TRK: Tensor, may_skip_RS: Tensor, start_R: Tensor, blanks_TRK: Tensor, tokens_TRS: Tensor
) -> None:
    """Fill the forward variables of `bnb_ds.ctc.alignment`, one program per row.

    Args:
        emissions_TRK: log-probabilities, the blank first, float32 or float64, contiguous.
        may_skip_RS: bool, True at a token that may directly follow the one before it.
        start_R: int64, index of the blank where the paths of a row begin.
        blanks_TRK, tokens_TRS: the results, contiguous.
    """
    num_steps, num_rows, num_columns = emissions_TRK.shape
    lanes = triton.next_power_of_2(max(num_columns - 1, 2))
    forward_kernel[(num_rows,)](
        emissions_TRK,
        may_skip_RS.view(torch.int8),
        start_R,
        blanks_TRK,
        tokens_TRS,
        num_steps,
        num_rows,
        num_columns - 1,
        LANES=lanes,
        num_warps=min(max(lanes // 64, 1), 8),
    )


def softmax_of_chunk(logits_CV: Tensor, own_C: Tensor, scale_C: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """The softmax of a chunk of logits in which each sequence's own columns are already -inf.

    Args:
        logits_CV: float32, contiguous.
        own_C: float32, logsumexp of the own columns.
        scale_C: float32, factor on each row of the result.
        dtype: dtype of the scaled softmax.

    Returns:
        The scaled softmax [C, V], with 0 at the strongest class of each row; logsumexp of all columns [C]; the
        strongest class, int64 [C]; and its unscaled softmax [C].
    """
    num_rows, vocab_size = logits_CV.shape
    scaled_CV = logits_CV.new_empty((num_rows, vocab_size), dtype=dtype)
    normalizer_C, strength_C = torch.empty_like(own_C), torch.empty_like(own_C)
    rival_C = own_C.new_empty(num_rows, dtype=torch.int64)
    softmax_kernel[(num_rows,)](
        logits_CV, own_C, scale_C, scaled_CV, normalizer_C, rival_C, strength_C, vocab_size,
        BLOCK=min(_SOFTMAX_BLOCK, triton.next_power_of_2(vocab_size)), num_warps=8,
    )  # fmt: skip
    return scaled_CV, normalizer_C, rival_C, strength_C


@triton.jit
def log_add(a, b):
    """log(exp(a) + exp(b)); either may be -inf."""
    high = tl.maximum(a, b)
    distance = tl.where(high == float("-inf"), 0.0, tl.minimum(a, b) - high)
    # maximum and minimum drop a NaN. The result must be NaN then, so the operands are added instead.
    return tl.where((a == a) & (b == b), high + tl.log(1.0 + tl.exp(distance)), a + b)


@triton.jit
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


@triton.jit
def softmax_kernel(logits, own, scale, scaled, normalizer, rival, strength, vocab_size, BLOCK: tl.constexpr):
    """Two sweeps over one row. The second sweep finds the row in the cache."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    best = tl.full((BLOCK,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    where_best = tl.zeros((BLOCK,), tl.int32)
    for begin in range(0, vocab_size, BLOCK):
        value = tl.load(
            logits + row * vocab_size + begin + column, mask=begin + column < vocab_size, other=float("-inf")
        )
        is_better = value > best
        high = tl.where(is_better, value, best)
        finite = tl.where(high == float("-inf"), 0.0, high)
        total = total * tl.exp(best - finite) + tl.exp(value - finite)
        where_best = tl.where(is_better, begin + column, where_best)
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
        value = tl.load(logits + row * vocab_size + place, mask=place < vocab_size, other=float("-inf"))
        result = tl.where(place == chosen, 0.0, tl.exp(value - log_total) * factor)
        tl.store(scaled + row * vocab_size + place, result.to(scaled.dtype.element_ty), mask=place < vocab_size)
