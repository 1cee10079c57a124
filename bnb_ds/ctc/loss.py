"""The CTC losses: of the projection of hidden states to the vocabulary, and of given log-probabilities.

Shapes: B sequences, T decoder positions (of the longest sequence), N real positions of all sequences together, S target
tokens (of the longest target), H hidden size, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor

from bnb_ds.ctc.autograd import LinearCtcLoss, LinearCtcNll, LogProbsCtcNll, LossOptions
from bnb_ds.ctc.inputs import align, check_projection, check_reduction, real_rows
from bnb_ds.ctc.operands import compute_dtype

Function = TypeVar("Function", bound=Callable[..., Any])


class CtcOutput(NamedTuple):
    """What `linear_ctc_loss` and `ctc_loss` return.

    Attributes:
        loss: the reduced loss with the KL term, float32 (float64 for float64 input), [], or [B] for ``"none"``. Only
            this field has a gradient.
        nll: [B], nats per sequence; for an infeasible sequence 0 with ``zero_infinity``, else infinity.
        kl: [], the mean over real positions of KL(uniform || p), in nats; 0 if ``kl_weight`` is 0.
        infeasible: bool [B], True if no path of that many positions collapses to the target.
    """

    loss: Tensor
    nll: Tensor
    kl: Tensor
    infeasible: Tensor


def _not_compiled(function: Function) -> Function:
    """`torch.compiler.disable`, whose own types would hide those of the function."""
    return cast(Function, torch.compiler.disable(function))


@_not_compiled  # its buffers and chunks are laid out by hand, so a compiler cannot make it faster
def linear_ctc_loss(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    input_lengths: Tensor | None,
    target_lengths: Tensor,
    *,
    blank: int = 0,
    reduction: str = "mean",
    zero_infinity: bool = True,
    kl_weight: float = 0.0,
    chunk_tokens: int | None = None,
    cu_seqlens: Tensor | None = None,
    max_input_length: int | None = None,
    max_target_length: int | None = None,
    distinct_lengths: Tensor | None = None,
) -> CtcOutput:
    """CTC loss of the projection of ``hidden`` to the vocabulary, without ever holding the logits of the batch.

    Logits exist for ``chunk_tokens`` positions at a time (`bnb_ds.ctc.head`). The forward pass computes the gradients
    too, so the weight may be partitioned again before backward; with ``"none"``, backward takes a second pass. Products
    follow autocast; the rest is in float32, or in float64 for float64. The same input gives the same bits.

    Args:
        hidden: float [B, T, H] with ``input_lengths``, or packed [N, H] with ``cu_seqlens``; padding has no effect.
        weight: float [V, H].
        bias: float [V] or None; -inf switches a class off.
        targets: integers [B, S], or the B targets concatenated, [sum of target_lengths].
        input_lengths: integers [B], real positions of each sequence of the padded form; None with ``cu_seqlens``.
        target_lengths: integers [B].
        blank: the id of the CTC blank; no target may hold it.
        reduction: one of five. ``"none"``: [B]. ``"sum"``: sum over the batch. ``"mean"``: as in torch, the mean over
            the batch of each loss divided by its target length (at least 1). The values of the other two, KL term
            included, do not depend on how a batch is cut into smaller ones. ``"sample_sum"`` adds up, over sequences,
            the loss divided by the target length and ``kl_weight`` times the mean KL over the sequence's positions.
            ``"token_sum"`` multiplies both by the sequence's target length, and leaves infeasible sequences out of
            both.
        zero_infinity: infeasible sequences add 0 to the loss instead of infinity. They never add to gradients.
        kl_weight: weight of the KL(uniform || p) smoothing term. With ``"sum"`` and ``"mean"`` the term is the mean
            over all positions of the batch, and it is added once to the reduced loss.
        chunk_tokens: positions projected at once; None: as many as take 48 MB of logits, or 192 MB on a GPU.
        cu_seqlens: int32 [B+1], starts of the sequences in packed ``hidden``, then N.
        max_input_length: positions of the longest sequence, where they are known.
        max_target_length: tokens of the longest target. With both, the host does not wait for a GPU, and lengths and
            labels on it are not checked. On a CPU everything is checked.
        distinct_lengths: integers [B], positions that differ, which a target may need at most; None: all of them.

    Raises:
        ValueError: weight or bias of the wrong shape; a label outside [0, V) or equal to ``blank`` inside its length; a
            length that is negative or beyond its axis; a blank outside [0, V); a concatenation of the wrong size; an
            unknown reduction; ``kl_weight`` with ``"none"``; ``chunk_tokens`` below 1.
        TypeError: lengths or targets that are not integers.
        RuntimeError: a second derivative is asked for.

    Source: Graves et al., ICML 2006; the smoothing term is that of the BERT-NAR-BERT reference implementation.
    """
    check_reduction(reduction, kl_weight)
    if chunk_tokens is not None and chunk_tokens < 1:
        raise ValueError(f"chunk_tokens is {chunk_tokens}: give at least 1 position, or None")
    check_projection(hidden, weight, bias)
    rows_NH, layout = real_rows(hidden, input_lengths, cu_seqlens, max_input_length)
    known = {"max_target_length": max_target_length, "distinct_lengths": distinct_lengths}
    alignment = align(layout, targets, target_lengths, blank=blank, vocab_size=weight.shape[0], **known)
    dtype = compute_dtype(rows_NH, weight)
    impossible_B = alignment.impossible(bias)
    options = LossOptions(alignment, impossible_B, reduction, zero_infinity, kl_weight, dtype, chunk_tokens)
    with torch.autocast(hidden.device.type, enabled=False):
        if reduction == "none":
            nll_B = loss = LinearCtcNll.apply(rows_NH, weight, bias, options)
            kl = nll_B.new_zeros(())
        else:
            loss, nll_B, kl = LinearCtcLoss.apply(rows_NH, weight, bias, options, torch.is_grad_enabled())
    return CtcOutput(loss, nll_B, kl, impossible_B)


def ctc_loss(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Tensor | None,
    target_lengths: Tensor,
    *,
    blank: int = 0,
    reduction: str = "mean",
    zero_infinity: bool = True,
    kl_weight: float = 0.0,
    cu_seqlens: Tensor | None = None,
    max_input_length: int | None = None,
    max_target_length: int | None = None,
) -> CtcOutput:
    """CTC loss of given log-probabilities, by the same dynamic programme.

    The gradient is that of the loss with respect to ``log_probs`` itself: the negative occupancy. (torch's own
    ``ctc_loss`` returns a gradient that already includes the derivative of a ``log_softmax``.)

    Args:
        log_probs: float [B, T, V] with ``input_lengths``, or packed [N, V] with ``cu_seqlens``; natural logarithms.

    The other arguments are those of `linear_ctc_loss`.

    Raises:
        ValueError, TypeError, RuntimeError: as `linear_ctc_loss`.
    """
    check_reduction(reduction, kl_weight)
    rows_NV, layout = real_rows(log_probs, input_lengths, cu_seqlens, max_input_length)
    vocab_size = rows_NV.shape[1]
    alignment = align(
        layout,
        targets,
        target_lengths,
        blank=blank,
        vocab_size=vocab_size,
        max_target_length=max_target_length,
    )
    nll_B = LogProbsCtcNll.apply(rows_NV, alignment)
    impossible_B = nll_B.detach() == torch.inf
    options = LossOptions(alignment, impossible_B, reduction, zero_infinity, kl_weight, nll_B.dtype)
    nll_B = options.masked(nll_B)
    loss, kl = options.reduce(nll_B), nll_B.new_zeros(())
    weight_of_kl_B = options.weight_of_kl()
    if weight_of_kl_B is not None and layout.num_tokens:
        kl_N = -rows_NV.mean(1, dtype=nll_B.dtype) - math.log(vocab_size)
        kl = kl_N.mean()
        loss = loss + kl_N @ weight_of_kl_B.to(kl_N.dtype).index_select(0, layout.sequence_ids)
    return CtcOutput(loss, nll_B if reduction == "none" else nll_B.detach(), kl.detach(), impossible_B)
