"""The CTC loss head and the CTC collapse.

Shapes: B sequences, T decoder positions (of the longest sequence), N real positions of all sequences together, S target
tokens (of the longest target), H hidden size, V vocabulary.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from bnb_ds.packing import PackedLayout

REDUCTIONS = ("none", "sum", "mean")
ARGMAX_CHUNK_TOKENS = 1024


class CtcOutput(NamedTuple):
    """What `linear_ctc_loss` returns.

    Attributes:
        loss: the reduced loss with the KL term, float32 (float64 for float64 input), [] or [B] for ``"none"``.
        nll: [B], nats per sequence; 0 where infeasible with ``zero_infinity``.
        kl: [], the mean over real positions of KL(uniform || p), in nats; 0 when ``kl_weight`` is 0.
        infeasible: bool [B], no path of that many positions collapses to the target.
    """

    loss: Tensor
    nll: Tensor
    kl: Tensor
    infeasible: Tensor


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
    cu_seqlens: Tensor | None = None,
) -> CtcOutput:
    """CTC loss of the projection of ``hidden`` to the vocabulary.

    This is the plain path: it holds the [N, V] log-probabilities of the whole batch in float32.

    Args:
        hidden: float [B, T, H] with ``input_lengths``, or packed [N, H] with ``cu_seqlens``. Values beyond a length
            change nothing.
        weight: float [V, H]; ``bias``: float [V] or None.
        targets: int64 [B, S], or the B targets concatenated, [sum of target_lengths].
        input_lengths: int [B], real positions of each sequence of the padded form; None with ``cu_seqlens``.
        target_lengths: int [B].
        blank: the id of the CTC blank; no target may hold it.
        reduction: ``"none"``, ``"sum"`` (over the batch), or ``"mean"``: torch's meaning, the mean over the batch of
            each loss divided by its target length (at least 1).
        zero_infinity: infeasible sequences add 0 to loss and gradient instead of infinity.
        kl_weight: weight of the KL(uniform || p) smoothing term, which is added once to the reduced loss.
        cu_seqlens: int32 [B+1], starts of the sequences in packed ``hidden``.

    Raises:
        ValueError: a label outside [0, V) or equal to ``blank`` inside its length; a length that is negative or beyond
            its axis; a blank outside [0, V); a concatenation of the wrong size; an unknown reduction; ``kl_weight``
            with ``"none"``.
        TypeError: lengths or targets that are not integers.

    Source: Graves et al., ICML 2006; the smoothing term is that of the BERT-NAR-BERT reference implementation.
    """
    _check_options(blank, weight.shape[0], reduction, kl_weight)
    rows_NH, layout = _real_rows(hidden, input_lengths, cu_seqlens)
    targets, target_lengths = targets.to(hidden.device), target_lengths.to(hidden.device)
    labels, label_sequences = _concatenate(targets, target_lengths, layout.batch_size)
    _check_labels(labels, blank, weight.shape[0])
    accumulate = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    log_probs_NV = F.log_softmax(F.linear(rows_NH, weight, bias), dim=-1, dtype=accumulate)
    nll_B = F.ctc_loss(
        layout.pad(log_probs_NV).transpose(0, 1),
        labels,
        layout.lengths,
        target_lengths,
        blank=blank,
        reduction="none",
        zero_infinity=zero_infinity,
    )
    kl = _uniform_kl(log_probs_NV) if kl_weight else nll_B.new_zeros(())
    needed_B = target_lengths + _adjacent_repeats(labels, label_sequences, layout.batch_size)
    loss = _reduce(nll_B, target_lengths, reduction)
    return CtcOutput(loss + kl_weight * kl if kl_weight else loss, nll_B, kl, layout.lengths < needed_B)


def linear_argmax(hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None) -> Tensor:
    """The best token of each position, int64 [N], without holding the [N, V] logits of all positions."""
    chunks = hidden_NH.split(ARGMAX_CHUNK_TOKENS)
    return torch.cat([F.linear(chunk_CH, weight_VH, bias_V).argmax(-1) for chunk_CH in chunks])


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
    num_positions = path_BT.shape[1]
    kept_BT = torch.arange(num_positions, device=path_BT.device) < lengths_B[:, None]
    kept_BT &= path_BT != blank
    kept_BT[:, 1:] &= path_BT[:, 1:] != path_BT[:, :-1]
    # Everything dropped is written to one spare column behind the row.
    place_BT = torch.where(kept_BT, kept_BT.cumsum(1) - 1, num_positions)
    collapsed_BT = path_BT.new_full((path_BT.shape[0], num_positions + 1), blank).scatter_(1, place_BT, path_BT)
    return collapsed_BT[:, :num_positions], kept_BT.sum(1)


def _uniform_kl(log_probs_NV: Tensor) -> Tensor:
    """Mean over positions of KL(uniform || p), in nats; 0 without positions."""
    if log_probs_NV.shape[0] == 0:
        return log_probs_NV.new_zeros(())
    return -log_probs_NV.mean() - math.log(log_probs_NV.shape[1])


def _reduce(nll_B: Tensor, target_lengths_B: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return nll_B
    if reduction == "sum":
        return nll_B.sum()
    return (nll_B / target_lengths_B.clamp(min=1)).mean()


def _adjacent_repeats(labels: Tensor, label_sequences: Tensor, batch_size: int) -> Tensor:
    """int64 [B], neighbours in a target that are equal: each needs a blank between them."""
    repeats = (labels[1:] == labels[:-1]) & (label_sequences[1:] == label_sequences[:-1])
    return torch.bincount(label_sequences[1:][repeats], minlength=batch_size)


def _real_rows(hidden: Tensor, input_lengths: Tensor | None, cu_seqlens: Tensor | None) -> tuple[Tensor, PackedLayout]:
    """[N, H] rows of real positions, whichever form they came in, and where the sequences lie in them."""
    if (input_lengths is None) == (cu_seqlens is None):
        raise ValueError("give input_lengths with padded hidden [B, T, H], or cu_seqlens with packed hidden [N, H]")
    if hidden.dim() != (3 if cu_seqlens is None else 2):
        raise ValueError(f"hidden has {hidden.dim()} dimensions: give [B, T, H], or [N, H] with cu_seqlens")
    lengths_B = input_lengths if cu_seqlens is None else cu_seqlens.diff()
    limit = hidden.shape[0 if cu_seqlens is not None else 1]
    total, longest = _check_lengths("input_lengths" if cu_seqlens is None else "cu_seqlens", lengths_B, limit)
    if lengths_B.numel() == 0:
        raise ValueError("the batch is empty: give at least one sequence")
    # torch's ctc_loss wants at least one time step, even where no sequence has any.
    layout = PackedLayout.from_lengths(lengths_B.to(hidden.device), num_tokens=total, max_seqlen=max(longest, 1))
    if cu_seqlens is not None:
        if total != hidden.shape[0] or int(cu_seqlens[0]) != 0:
            raise ValueError(f"cu_seqlens spans {total} positions, but hidden has {hidden.shape[0]} rows")
        return hidden, layout
    if lengths_B.numel() != hidden.shape[0]:
        raise ValueError(f"input_lengths has {lengths_B.numel()} entries for a batch of {hidden.shape[0]}")
    place_N = layout.sequence_ids * hidden.shape[1] + layout.position_ids
    return hidden.flatten(0, 1).index_select(0, place_N), layout


def _concatenate(targets: Tensor, target_lengths_B: Tensor, batch_size: int) -> tuple[Tensor, Tensor]:
    """int64 [sum S] labels without padding, and the sequence of each."""
    if targets.is_floating_point():
        raise TypeError("targets are floating point: give integer token ids")
    if target_lengths_B.numel() != batch_size:
        raise ValueError(f"target_lengths has {target_lengths_B.numel()} entries for a batch of {batch_size}")
    limit = targets.shape[-1]
    total, longest = _check_lengths("target_lengths", target_lengths_B, limit)
    layout = PackedLayout.from_lengths(target_lengths_B, num_tokens=total, max_seqlen=longest)
    if targets.dim() == 1:
        if total != limit:
            raise ValueError(f"targets hold {limit} tokens, but target_lengths add up to {total}")
        return targets, layout.sequence_ids
    if targets.dim() != 2 or targets.shape[0] != batch_size:
        raise ValueError(f"targets have shape {tuple(targets.shape)}: give [{batch_size}, S], or one concatenated row")
    return targets.flatten().index_select(0, layout.sequence_ids * limit + layout.position_ids), layout.sequence_ids


def _check_options(blank: int, vocab_size: int, reduction: str, kl_weight: float) -> None:
    if not 0 <= blank < vocab_size:
        raise ValueError(f"blank is {blank}: give an id in [0, {vocab_size})")
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction is {reduction!r}: use one of: {', '.join(REDUCTIONS)}")
    if kl_weight and reduction == "none":
        raise ValueError("kl_weight needs reduction 'sum' or 'mean': the KL term is one number for the whole batch")


def _check_lengths(name: str, lengths_B: Tensor, limit: int) -> tuple[int, int]:
    """The sum and the maximum of lengths, once they are known to be integers in [0, limit]."""
    if lengths_B.is_floating_point() or lengths_B.dtype == torch.bool:
        raise TypeError(f"{name} has dtype {lengths_B.dtype}: give integers")
    if lengths_B.numel() == 0:
        return 0, 0  # judged by the caller
    total, shortest, longest = torch.stack((lengths_B.sum(), *lengths_B.long().aminmax())).tolist()
    if shortest < 0 or longest > limit:
        wrong = shortest if shortest < 0 else longest
        raise ValueError(f"{name} holds {wrong}: lengths must lie between 0 and {limit}")
    return total, longest


def _check_labels(labels: Tensor, blank: int, vocab_size: int) -> None:
    if labels.numel() == 0:
        return
    lowest, highest, has_blank = torch.stack((*labels.aminmax(), (labels == blank).any())).tolist()
    if lowest < 0 or highest >= vocab_size:
        wrong = lowest if lowest < 0 else highest
        raise ValueError(f"a target holds the label {wrong}: labels must lie in [0, {vocab_size})")
    if has_blank:
        raise ValueError(f"a target holds the blank {blank}: mark padding of labels with -100, or change the blank")
