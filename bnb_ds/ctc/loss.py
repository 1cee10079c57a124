"""CTC: the fused loss head of the model, the loss of given log-probabilities, and greedy decoding.

Shapes: B sequences, T decoder positions (of the longest sequence), N real positions of all sequences together, S target
tokens (of the longest target), H hidden size, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from bnb_ds.ctc.autograd import LinearCtcLoss, LinearCtcNll, LogProbsCtcNll, LossOptions
from bnb_ds.ctc.head import exact_dtype, operand, product
from bnb_ds.ctc.inputs import align, check_reduction, real_rows

ARGMAX_CHUNK_TOKENS = 1024


class CtcOutput(NamedTuple):
    """What `linear_ctc_loss` and `ctc_loss` return.

    Attributes:
        loss: the reduced loss with the KL term, float32 (float64 for float64 input), [] or [B] for ``"none"``. It
            alone carries a gradient.
        nll: [B], nats per sequence; 0 where infeasible with ``zero_infinity``.
        kl: [], the mean over real positions of KL(uniform || p), in nats; 0 when ``kl_weight`` is 0.
        infeasible: bool [B], no path of that many positions collapses to the target.
    """

    loss: Tensor
    nll: Tensor
    kl: Tensor
    infeasible: Tensor


@torch.compiler.disable  # its buffers and chunks are laid out by hand; a compiler has nothing to add
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
) -> CtcOutput:
    """CTC loss of the projection of ``hidden`` to the vocabulary, without ever holding the logits of the batch.

    Logits exist for ``chunk_tokens`` positions at a time; loss and gradients come out of the same three matrix
    products that the projection alone needs (`bnb_ds.ctc.head`). Gradients are finished in the forward pass (with
    ``"none"``, in backward, by a second pass), so the weight may be partitioned again before backward. Products run in
    autocast's dtype, or in that of the operands; sums, logsumexp and the dynamic programme in float32, or in float64
    for float64. The same input gives the same bits.

    Args:
        hidden: float [B, T, H] with ``input_lengths``, or packed [N, H] with ``cu_seqlens``. Values beyond a length
            change nothing.
        weight: float [V, H]; ``bias``: float [V] or None. A bias of -inf switches a class off.
        targets: integers [B, S], or the B targets concatenated, [sum of target_lengths].
        input_lengths: integers [B], real positions of each sequence of the padded form; None with ``cu_seqlens``.
        target_lengths: integers [B].
        blank: the id of the CTC blank; no target may hold it.
        reduction: ``"none"``, ``"sum"`` (over the batch), or ``"mean"``: torch's meaning, the mean over the batch of
            each loss divided by its target length (at least 1). Two more are sums whose value does not depend on how a
            batch is cut into smaller ones, the KL term included: ``"sample_sum"`` adds up each loss divided by its
            target length and ``kl_weight`` times the mean KL over the sequence's positions; ``"token_sum"`` is the same
            with each sequence counted as often as it has target tokens, and infeasible ones left out of both.
        zero_infinity: infeasible sequences add 0 to the loss instead of infinity; to gradients they never add.
        kl_weight: weight of the KL(uniform || p) smoothing term; with ``"sum"`` and ``"mean"`` that of its mean over
            all positions, which is added once to the reduced loss.
        chunk_tokens: positions projected at once; None: 48 MB of logits, on a GPU 192 MB.
        cu_seqlens: int32 [B+1], starts of the sequences in packed ``hidden``.
        max_input_length, max_target_length: the longest of each, if the caller knows them. On a GPU they spare waiting
            for the device, and lengths and labels are trusted; on a CPU everything is checked anyway.

    Raises:
        ValueError: a label outside [0, V) or equal to ``blank`` inside its length; a length that is negative or beyond
            its axis; a blank outside [0, V); a concatenation of the wrong size; an unknown reduction; ``kl_weight``
            with ``"none"``; ``chunk_tokens`` below 1.
        TypeError: lengths or targets that are not integers.
        RuntimeError: a second derivative is asked for.

    Source: Graves et al., ICML 2006; the smoothing term is that of the BERT-NAR-BERT reference implementation.
    """
    check_reduction(reduction, kl_weight)
    if chunk_tokens is not None and chunk_tokens < 1:
        raise ValueError(f"chunk_tokens is {chunk_tokens}: give at least 1 position, or None")
    rows_NH, layout = real_rows(hidden, input_lengths, cu_seqlens, max_input_length)
    alignment = align(
        layout,
        targets,
        target_lengths,
        blank=blank,
        vocab_size=weight.shape[0],
        max_target_length=max_target_length,
    )
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
    """CTC loss of given log-probabilities, by the same dynamic programme; arguments as in `linear_ctc_loss`.

    The gradient is that of the loss with respect to ``log_probs`` itself, minus the occupancy, whatever made them.
    (torch's own ``ctc_loss`` returns it with the derivative of a ``log_softmax`` already in it.)

    Args:
        log_probs: float [B, T, V] with ``input_lengths``, or packed [N, V] with ``cu_seqlens``; natural logarithms.

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


def linear_argmax(hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None) -> Tensor:
    """The best token of each position, int64 [N], without holding the [N, V] logits of all positions.

    Logits are compared in float32, as the loss sees them; of equal ones the lowest id wins.
    """
    best_N = torch.empty(hidden_NH.shape[0], dtype=torch.int64, device=hidden_NH.device)
    for rows, logits_CV in logits_in_chunks(hidden_NH, weight_VH, bias_V):
        best_N[rows] = logits_CV.argmax(-1)
    return best_N


def linear_best(hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None) -> tuple[Tensor, Tensor]:
    """`linear_argmax`, and the log-probability of each of these tokens: float32 (float64 for float64) [N]."""
    dtype = exact_dtype(compute_dtype(hidden_NH, weight_VH))
    best_N = torch.empty(hidden_NH.shape[0], dtype=torch.int64, device=hidden_NH.device)
    log_probs_N = torch.empty(hidden_NH.shape[0], dtype=dtype, device=hidden_NH.device)
    for rows, logits_CV in logits_in_chunks(hidden_NH, weight_VH, bias_V):
        highest_C, best_N[rows] = logits_CV.max(-1)
        log_probs_N[rows] = highest_C - logits_CV.logsumexp(-1)
    return best_N, log_probs_N


def logits_in_chunks(hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None) -> Iterator[tuple[slice, Tensor]]:
    """Rows and their logits [C, V], float32 or float64; to be used before the next are asked for."""
    dtype = compute_dtype(hidden_NH, weight_VH)
    exact = exact_dtype(dtype)
    out_CV = None
    if hidden_NH.device.type == "cpu" and not torch.is_grad_enabled() and not torch.compiler.is_compiling():
        # A CPU hands large memory back at once: getting it anew for every chunk takes a third of the time.
        out_CV = weight_VH.new_empty((min(ARGMAX_CHUNK_TOKENS, hidden_NH.shape[0]), weight_VH.shape[0]), dtype=exact)
    with torch.autocast(hidden_NH.device.type, enabled=False):
        weight_HV = _converted(weight_VH, dtype).t()
        for begin in range(0, hidden_NH.shape[0], ARGMAX_CHUNK_TOKENS):
            rows = slice(begin, begin + ARGMAX_CHUNK_TOKENS)
            hidden_CH = operand(hidden_NH[rows], dtype)
            if out_CV is None:
                logits_CV = product(hidden_CH, weight_HV, exact)
            else:
                logits_CV = torch.mm(hidden_CH, weight_HV, out=out_CV[: len(hidden_CH)])
            yield rows, logits_CV if bias_V is None else logits_CV.add_(bias_V)


#: what `operand` made of a weight of 16 bits, as long as the weight lives and is not changed
_CONVERTED = WeakTensorKeyDictionary()


def _converted(weight_VH: Tensor, dtype: torch.dtype) -> Tensor:
    """`operand`, remembered where a weight that is only read would be converted at every call."""
    is_fixed = not torch.is_grad_enabled() and weight_VH.dtype.itemsize == 2 and not weight_VH.is_inference()
    if not is_fixed or torch.compiler.is_compiling():
        return operand(weight_VH, dtype)
    key = (weight_VH._version, weight_VH.data_ptr(), dtype)
    known = _CONVERTED.get(weight_VH)
    if known is None or known[0] != key:
        converted = operand(weight_VH, dtype)
        if converted.data_ptr() == weight_VH.data_ptr():
            return converted
        known = _CONVERTED[weight_VH] = (key, converted)
    return known[1]


def collapse(path_BT: Tensor, lengths_B: Tensor, blank: int = 0) -> tuple[Tensor, Tensor]:
    """Merge adjacent repeats, then drop blanks: ``[a a _ a b] -> [a a b]``.

    Args:
        path_BT: int64 [B, T], the best token of each decoder position.
        lengths_B: int [B], positions of each row; what stands behind them is ignored.
        blank: the CTC blank.

    Returns:
        int64 [B, T] left-aligned and padded with ``blank``, and int64 [B] lengths.

    Raises:
        ValueError: ``path_BT`` is not two-dimensional.

    Source: Graves et al., ICML 2006, section 3.1 (the many-to-one map).
    """
    if path_BT.dim() != 2:
        raise ValueError(f"the path has {path_BT.dim()} dimensions: give [B, T]")
    if path_BT.device.type == "cpu":
        collapsed, lengths = _collapse_on_host(path_BT.numpy(), lengths_B.numpy(), blank)
        return torch.from_numpy(collapsed), torch.from_numpy(lengths)
    return _collapse_on_device(path_BT, lengths_B, blank)


def _collapse_on_device(path_BT: Tensor, lengths_B: Tensor, blank: int) -> tuple[Tensor, Tensor]:
    num_positions = path_BT.shape[1]
    kept_BT = torch.arange(num_positions, device=path_BT.device) < lengths_B[:, None]
    kept_BT &= path_BT != blank
    kept_BT[:, 1:] &= path_BT[:, 1:] != path_BT[:, :-1]
    # A boolean index would wait for the device; so everything dropped goes to one spare column behind the row.
    place_BT = torch.where(kept_BT, kept_BT.cumsum(1) - 1, num_positions)
    collapsed_BT = path_BT.new_full((path_BT.shape[0], num_positions + 1), blank).scatter_(1, place_BT, path_BT)
    return collapsed_BT[:, :num_positions], kept_BT.sum(1)


def _collapse_on_host(path_BT: np.ndarray, lengths_B: np.ndarray, blank: int) -> tuple[np.ndarray, np.ndarray]:
    """The same in NumPy, which spends nothing on waking threads for so little work."""
    position_T = np.arange(path_BT.shape[1])
    kept_BT = (position_T < lengths_B[:, None]) & (path_BT != blank)
    kept_BT[:, 1:] &= path_BT[:, 1:] != path_BT[:, :-1]
    kept_B = kept_BT.sum(1)
    collapsed_BT = np.full_like(path_BT, blank)
    collapsed_BT[position_T < kept_B[:, None]] = path_BT[kept_BT]
    return collapsed_BT, kept_B


def compute_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """Of the operands of matrix products: autocast's where it is on."""
    dtype = torch.promote_types(hidden.dtype, weight.dtype)
    device_type = hidden.device.type
    if torch.is_autocast_enabled(device_type) and dtype != torch.float64:
        return torch.get_autocast_dtype(device_type)
    return dtype
