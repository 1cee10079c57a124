"""The loss of a directed acyclic graph of slots: the fused head of the model and the sum over all paths.

Shapes: B sequences, L slots of the longest (columns of the padded form), N real slots of all sequences together,
S target tokens (of the longest target), H hidden size, V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from bnb_ds.ctc.inputs import check_projection, check_reduction, real_rows
from bnb_ds.ctc.operands import compute_dtype
from bnb_ds.dag.autograd import LinearDagLoss, LinearDagNll, LossOptions
from bnb_ds.dag.inputs import Targets, read_forced, read_links, read_targets


class DagOutput(NamedTuple):
    """What `linear_dag_loss` returns.

    Attributes:
        loss: the reduced loss, float32 (float64 for float64 input), [] or [B] for ``"none"``. It alone carries a
            gradient.
        nll: [B], nats per sequence; 0 where infeasible with ``zero_infinity``.
        infeasible: bool [B], no path from the first slot to the last can emit the target.
    """

    loss: Tensor
    nll: Tensor
    infeasible: Tensor


@torch.compiler.disable  # its buffers and chunks are laid out by hand; a compiler has nothing to add
def linear_dag_loss(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    log_links: Tensor,
    targets: Tensor,
    input_lengths: Tensor | None,
    target_lengths: Tensor,
    *,
    reduction: str = "mean",
    zero_infinity: bool = True,
    chunk_tokens: int | None = None,
    cu_seqlens: Tensor | None = None,
    max_input_length: int | None = None,
    max_target_length: int | None = None,
    forced: Tensor | None = None,
) -> DagOutput:
    """Negative log-likelihood of targets, summed over all paths through a graph of slots; no [B, L, V] tensor exists.

    A path begins at slot 0, follows links, and ends at the last slot of its sequence; its s-th slot emits the s-th
    target token, so the first and the last slot emit the first and the last token. A target of S tokens needs
    2 <= S <= L, or S = L = 1; any other is infeasible, and so is one that needs a link or a class of probability 0.

    Gradients are finished in the forward pass (with ``"none"``, in backward), so the weight may be partitioned again
    before backward. Products run in autocast's dtype, or in that of the operands; sums, logsumexp and the dynamic
    programme in float32, or in float64. The same input gives the same bits.

    Args:
        hidden: float [B, L, H] with ``input_lengths``, or packed [N, H] with ``cu_seqlens``. Values beyond a length
            change nothing.
        weight: float [V, H]; ``bias``: float [V] or None. A bias of -inf switches a class off.
        log_links: float [B, L, L], log-probability of going from slot i to slot j > i; -inf elsewhere. With packed
            ``hidden``, L is at least the longest sequence. Values beyond a length change nothing.
        targets: integers [B, S], or the B targets concatenated, [sum of target_lengths].
        input_lengths: integers [B], real slots of each sequence of the padded form; None with ``cu_seqlens``.
        target_lengths: integers [B].
        reduction: ``"none"``, ``"sum"`` (over the batch), ``"mean"`` (over the batch, of each loss divided by its
            target length, at least 1), ``"sample_sum"`` (the sum of the same) or ``"token_sum"`` (as ``"sum"``).
        zero_infinity: infeasible sequences add 0 to the loss instead of infinity; to gradients they never add.
        chunk_tokens: slots projected at once; None: 12 MB of logits, on a GPU 192 MB.
        cu_seqlens: int32 [B+1], starts of the sequences in packed ``hidden``.
        max_input_length, max_target_length: the longest of each, if the caller knows them. On a GPU they spare some
            waiting for the device, and lengths, labels and links are trusted; on a CPU everything is checked anyway.
        forced: integers [B, L] or packed [N], the index of the target token that a slot must emit; -1: any. No other
            slot may emit that token, a path without that slot has probability 0, and its emission costs nothing.

    Raises:
        ValueError: weight, bias or links of the wrong shape; a label outside [0, V); a forced token that its target
            does not have; a length that is negative or beyond its axis; a concatenation of the wrong size; a link that
            is NaN, leads backwards or has a probability above 1; an unknown reduction; ``chunk_tokens`` below 1.
        TypeError: lengths or targets that are not integers, links that are.
        RuntimeError: a second derivative is asked for.

    Source: Huang et al., Directed Acyclic Transformer for Non-Autoregressive Machine Translation, ICML 2022.
    """
    check_reduction(reduction)
    rows_NH, read, links_BLL = read_all(
        hidden,
        weight,
        bias,
        log_links,
        targets,
        input_lengths,
        target_lengths,
        chunk_tokens=chunk_tokens,
        cu_seqlens=cu_seqlens,
        max_input_length=max_input_length,
        max_target_length=max_target_length,
    )
    forced_BL = read_forced(forced, read, num_columns=None if cu_seqlens is not None else hidden.shape[1])
    options = LossOptions(read, reduction, zero_infinity, compute_dtype(rows_NH, weight), chunk_tokens, forced_BL)
    with_grad = torch.is_grad_enabled()
    with torch.autocast(hidden.device.type, enabled=False):
        if reduction == "none":
            loss, infeasible_B = LinearDagNll.apply(rows_NH, weight, bias, links_BLL, options, with_grad)
            return DagOutput(loss, loss.detach(), infeasible_B)
        return DagOutput(*LinearDagLoss.apply(rows_NH, weight, bias, links_BLL, options, with_grad))


def read_all(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    log_links: Tensor,
    targets: Tensor,
    input_lengths: Tensor | None,
    target_lengths: Tensor,
    *,
    chunk_tokens: int | None,
    cu_seqlens: Tensor | None,
    max_input_length: int | None,
    max_target_length: int | None,
) -> tuple[Tensor, Targets, Tensor]:
    """Real rows [N, H], targets, and links [B, L, L] of the longest sequence, all checked.

    Raises:
        ValueError, TypeError: as `linear_dag_loss` says.
    """
    if chunk_tokens is not None and chunk_tokens < 1:
        raise ValueError(f"chunk_tokens is {chunk_tokens}: give at least 1 position, or None")
    check_projection(hidden, weight, bias)
    rows_NH, layout = real_rows(hidden, input_lengths, cu_seqlens, max_input_length)
    read = read_targets(
        layout, targets, target_lengths, vocab_size=weight.shape[0], max_target_length=max_target_length
    )
    links_BLL = read_links(
        log_links,
        layout.lengths,
        layout.max_seqlen,
        num_columns=hidden.shape[1] if cu_seqlens is None else None,
        look=log_links.device.type == "cpu" or max_target_length is None,
    )
    return rows_NH, read, links_BLL
