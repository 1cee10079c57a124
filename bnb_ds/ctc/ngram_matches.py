"""Expected matches of n-grams between the outputs of CTC and a target: a second phase of training.

With p_t the probabilities at slot t and C(g) the expected count of g in the output of a random path, blanks dropped and
repeats merged,

    loss = -2 sum_g min(C(g), c(g)) / (sum of C over all n-grams + sum of c)

for the target's distinct n-grams g, of which it holds c(g). An n-gram of a path begins in the last slot of its first
token's run and ends in the first slot of its last token's run. So C(g) is a sum over slots, with two states a prefix
of g: in the run of its last token, or at a blank behind it. The length of an output has the expectation

    sum_t sum_{v != blank} p_t(v) (1 - p_{t-1}(v))

which needs the whole vocabulary at two slots that are side by side, one chunk of slots at a time.

Shapes: B sequences, T slots and S target tokens of the longest, N real slots of all sequences together, C rows of a
chunk, G n-grams of a target (as they follow each other), n their size, H hidden size, V vocabulary.

Source: Shao and Feng, Non-Monotonic Latent Alignments for CTC-Based Non-Autoregressive Machine Translation, NeurIPS
2022; there for bigrams, in O(T^2).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from bnb_ds.ctc.autograd import scaled_gradients
from bnb_ds.ctc.head import default_chunk_tokens
from bnb_ds.ctc.inputs import Alignment, align, check_projection, real_rows
from bnb_ds.ctc.operands import compute_dtype, exact_dtype, operand, product
from bnb_ds.recurrences.host import through_host

#: what n-gram losses say of second derivatives
NO_SECOND_DERIVATIVE = (
    "the n-gram loss has no second derivative: its gradient is finished in the forward pass. Call backward without "
    "create_graph=True"
)


class NgramOutput(NamedTuple):
    """What an n-gram loss returns, for CTC or for a graph of slots.

    Attributes:
        loss: the reduced loss, float32 (float64 for float64 input), []. It alone carries a gradient.
        scores: [B], the loss of each sequence, in [-1, 0]; 0 where the target has no n-gram.
    """

    loss: Tensor
    scores: Tensor


@torch.compiler.disable
def linear_ctc_ngram_loss(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    input_lengths: Tensor | None,
    target_lengths: Tensor,
    *,
    blank: int = 0,
    size: int = 2,
    reduction: str = "mean",
    chunk_tokens: int | None = None,
    cu_seqlens: Tensor | None = None,
    max_input_length: int | None = None,
    max_target_length: int | None = None,
) -> NgramOutput:
    """Minus the expected F1 of a target's n-grams; no [B, T, V] tensor exists.

    Arguments, their checks and dtypes as in `bnb_ds.ctc.loss.linear_ctc_loss`. Gradients are finished in the forward
    pass. Targets need not fit their slots.

    Args:
        size: n, 1 or 2. (How many longer n-grams an output has is no sum over neighbours.)
        reduction: ``"mean"`` or ``"sum"`` of the sequences' losses.

    Raises:
        ValueError: another ``size`` or reduction, or what `linear_ctc_loss` refuses.
        TypeError, RuntimeError: as `linear_ctc_loss`.
    """
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction is {reduction!r}: the n-gram loss knows mean and sum")
    if size not in (1, 2):
        raise ValueError(f"size is {size}: CTC has a loss of n-grams of 1 or 2 tokens")
    check_projection(hidden, weight, bias)
    rows_NH, layout = real_rows(hidden, input_lengths, cu_seqlens, max_input_length)
    alignment = align(
        layout,
        targets,
        target_lengths,
        blank=blank,
        vocab_size=weight.shape[0],
        max_target_length=max_target_length,
    )
    with torch.autocast(hidden.device.type, enabled=False):
        dtype = compute_dtype(rows_NH, weight)
        options = (alignment, size, reduction, dtype, chunk_tokens or default_chunk_tokens(weight, len(rows_NH)))
        return NgramOutput(*_LinearNgramLoss.apply(rows_NH, weight, bias, options, torch.is_grad_enabled()))


def expected_counts(own_BTS: Tensor, blank_BT: Tensor, tokens_BS: Tensor, size: int) -> Tensor:
    """[B, G], the expected count of each n-gram of the target, in the order in which they follow each other.

    Args:
        own_BTS: probability of each target token at each slot; 0 behind the sequence.
        blank_BT: probability of the blank; 1 behind the sequence.
        tokens_BS: the target tokens, of any dtype that holds them exactly.
        size: n, at least 1.
    """
    if size == 1:
        return (own_BTS * (1 - _before(own_BTS))).sum(1)
    # [B, G, n] of a slot: the probabilities of an n-gram's tokens.
    ngrams_TBGn = own_BTS.unfold(2, size, 1).transpose(0, 1)
    differs_BGk = tokens_BS.unfold(1, size, 1).diff(dim=2) != 0  # k = n - 1 prefixes
    at_run_BGk = ngrams_TBGn.new_zeros(differs_BGk.shape)  # the slot holds the prefix's last token
    at_blank_BGk = torch.zeros_like(at_run_BGk)
    counts_BG = at_run_BGk.new_zeros(differs_BGk.shape[:2])
    first_BG1 = torch.ones_like(at_run_BGk[..., :1])
    for prob_BGn, blank_B in zip(ngrams_TBGn, blank_BT.T, strict=True):
        enter_BGk = at_blank_BGk + at_run_BGk * differs_BGk
        counts_BG = counts_BG + prob_BGn[..., -1] * enter_BGk[..., -1]
        at_blank_BGk = blank_B[:, None, None] * (at_run_BGk + at_blank_BGk)
        # Any slot may be the last of the first token's run, whatever came before.
        from_BGk = torch.cat((first_BG1, at_run_BGk[..., 1:] + enter_BGk[..., :-1]), 2)
        at_run_BGk = prob_BGn[..., :-1] * from_BGk
    return counts_BG


def _before(values_BTx: Tensor) -> Tensor:
    """The values of the slot before; 0 for the first."""
    return torch.cat((torch.zeros_like(values_BTx[:, :1]), values_BTx[:, :-1]), 1)


def _scores(own_NK: Tensor, stays_N: Tensor, alignment: Alignment, size: int) -> Tensor:
    """[B], the losses.

    Args:
        own_NK: float64, probability of the blank (column 0) and of the target tokens.
        stays_N: float64, probability that a slot and the one before it hold the same token, other than the blank.
    """
    layout, lengths_B = alignment.layout, alignment.target_lengths
    is_slot_BT = torch.arange(layout.max_seqlen, device=own_NK.device) < layout.lengths[:, None]
    own_BTK = layout.pad(own_NK)
    blank_BT = torch.where(is_slot_BT, own_BTK[..., 0], 1.0)
    length_B = (1 - blank_BT - layout.pad(stays_N)).sum(1)
    total_B = length_B if size == 1 else length_B - 1 + blank_BT.prod(1)
    tokens_BS = alignment.table[:, 1:]
    if tokens_BS.shape[1] < size:
        return total_B * 0
    # Ids are floats on the way, so that all operands have one dtype and gradients pass.
    given = (own_BTK[..., 1:], blank_BT, tokens_BS.to(own_BTK.dtype))
    (expected_BG,) = through_host(lambda own, blank, tokens: (expected_counts(own, blank, tokens, size),), *given)
    ngrams_BGn = tokens_BS.unfold(1, size, 1)
    is_ngram_BG = torch.arange(expected_BG.shape[1], device=own_NK.device) < (lengths_B - size + 1)[:, None]
    same_BGG = (ngrams_BGn[:, :, None] == ngrams_BGn[:, None]).all(3) & is_ngram_BG[:, None]
    count_BG = same_BGG.sum(2)
    is_first_BG = is_ngram_BG & ~same_BGG.tril(-1).any(2)
    matched_B = torch.where(is_first_BG, torch.minimum(expected_BG, count_BG.to(expected_BG.dtype)), 0.0).sum(1)
    reference_B = (lengths_B - size + 1).clamp(min=0)
    return torch.where(reference_B > 0, -2 * matched_B / (total_B + reference_B).clamp(min=1), 0.0 * matched_B)


class _LinearNgramLoss(torch.autograd.Function):
    """Autograd inside the forward pass: logits exist for one chunk at a time, there and in their own backward pass."""

    @staticmethod
    def forward(
        ctx: Any, hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, options: tuple[Any, ...], with_grad: bool
    ) -> tuple[Tensor, Tensor]:
        alignment, size, reduction, dtype, chunk_tokens = options
        wanted = tuple(with_grad and needed for needed in ctx.needs_input_grad[:3])
        given = (hidden_NH, weight_VH, bias_V)
        leaves = [
            None if leaf is None else leaf.detach().requires_grad_(want)
            for leaf, want in zip(given, wanted, strict=True)
        ]
        with torch.set_grad_enabled(any(wanted)):
            own_NK, stays_N = _probabilities(leaves, alignment, dtype, chunk_tokens)
            scores_B = _scores(own_NK.double(), stays_N.double(), alignment, size)
            loss = scores_B.mean() if reduction == "mean" else scores_B.sum()
        if any(wanted):
            asked = [leaf for leaf, want in zip(leaves, wanted, strict=True) if want]
            found = iter(torch.autograd.grad(loss, asked))
            ctx.save_for_backward(*(next(found) if want else None for want in wanted))
        ctx.dtypes = [None if leaf is None else leaf.dtype for leaf in given]
        exact = exact_dtype(dtype)
        scores_B = scores_B.detach().to(exact)
        ctx.mark_non_differentiable(scores_B)
        return loss.detach().to(exact), scores_B

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        return (*scaled_gradients(ctx, grad_loss, NO_SECOND_DERIVATIVE), None, None)


def _probabilities(
    operands: Sequence[Tensor | None], alignment: Alignment, dtype: torch.dtype, chunk_tokens: int
) -> tuple[Tensor, Tensor]:
    """[N, K] of the columns, and [N] that a slot and the one before it hold the same token, other than the blank."""
    hidden_NH, weight_VH, bias_V = operands
    assert hidden_NH is not None
    layout, blank_1 = alignment.layout, alignment.table[0, :1]
    columns_NK = alignment.table.index_select(0, layout.sequence_ids)
    is_first_N = layout.position_ids == 0

    def of_chunk(hidden_CH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, rows: slice) -> tuple[Tensor, Tensor]:
        """``hidden_CH`` begins one row before ``rows``, where there is one."""
        logits_CV = product(operand(hidden_CH, dtype), operand(weight_VH, dtype).t(), dtype)
        probs_CV = (logits_CV if bias_V is None else logits_CV + bias_V).softmax(1)
        own_CK = probs_CV[-columns_NK[rows].shape[0] :].gather(1, columns_NK[rows])
        if rows.start == 0:
            probs_CV = torch.cat((torch.zeros_like(probs_CV[:1]), probs_CV))
        both_C = (probs_CV[1:] * probs_CV[:-1]).sum(1)
        blanks_C = probs_CV.index_select(1, blank_1)[:, 0]
        return own_CK, (both_C - blanks_C[1:] * blanks_C[:-1]).masked_fill(is_first_N[rows], 0.0)

    chunks = []
    for begin in range(0, hidden_NH.shape[0], chunk_tokens):
        rows = slice(begin, min(begin + chunk_tokens, hidden_NH.shape[0]))
        hidden_CH = hidden_NH[max(begin - 1, 0) : rows.stop]
        chunks.append(checkpoint(of_chunk, hidden_CH, weight_VH, bias_V, rows, use_reentrant=False))
    own, stays = zip(*chunks, strict=True)
    return torch.cat(own), torch.cat(stays)
