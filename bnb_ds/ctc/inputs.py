"""Checks the inputs of the CTC losses and brings them into one form.

Shapes: B sequences, T positions and S target tokens of the longest, N real positions of all sequences together,
K = S + 1 columns (the blank, then the target tokens in order), V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from bnb_ds.common.packing import PackedLayout

REDUCTIONS = ("none", "sum", "mean", "token_sum", "sample_sum")


@dataclass(frozen=True, eq=False)
class Alignment:
    """Targets and lengths of a batch, as the dynamic programme needs them. All tensors are on the device of the loss.

    Attributes:
        layout: the place of each sequence among the N rows; ``max_seqlen`` is T.
        target_lengths: int64 [B].
        table: int64 [B, K], the vocabulary id of each column. Columns behind a target hold the blank.
        is_token: bool [B, S], True within the target's length.
        is_first: bool [B, K], True at the first column of a sequence that holds its id.
        skips: bool [B, S], True at a target token that differs from the one before it, so that no blank is needed
            between them.
        infeasible: bool [B], True if there are too few different positions for the tokens and the blanks between
            equal neighbours.
    """

    layout: PackedLayout
    target_lengths: Tensor
    table: Tensor
    is_token: Tensor
    is_first: Tensor
    skips: Tensor
    infeasible: Tensor

    @property
    def may_add(self) -> Tensor:
        """bool [B, K], columns that add to gradients: the blank, and those within the target's length."""
        return F.pad(self.is_token, (1, 0), value=True)

    def impossible(self, bias_V: Tensor | None) -> Tensor:
        """bool [B], True if a sequence is infeasible or needs a class that ``bias_V`` switches off with -inf."""
        if bias_V is None:
            return self.infeasible
        is_dead_BK = (bias_V.detach() == -torch.inf)[self.table]
        repeats_B = (~self.skips & self.is_token).sum(1)
        needs_blank_B = (repeats_B > 0) | ((self.target_lengths == 0) & (self.layout.lengths > 0))
        lacks_label_B = (is_dead_BK[:, 1:] & self.is_token).any(1)
        return self.infeasible | lacks_label_B | (needs_blank_B & is_dead_BK[:, 0])


def align(
    layout: PackedLayout,
    targets: Tensor,
    target_lengths: Tensor,
    *,
    blank: int,
    vocab_size: int,
    max_target_length: int | None,
    distinct_lengths: Tensor | None = None,
) -> Alignment:
    """Check targets and set up their columns.

    Values are always checked on a CPU. On a GPU they are checked only if ``max_target_length`` is None; then the host
    must wait for the GPU anyway.

    Raises:
        ValueError, TypeError: as `bnb_ds.ctc.loss.linear_ctc_loss` says.
    """
    if not 0 <= blank < vocab_size:
        raise ValueError(f"blank is {blank}: give an id in [0, {vocab_size})")
    batch_size, device = layout.batch_size, layout.cu_seqlens.device
    may_look = device.type == "cpu" or max_target_length is None
    check_integers("target_lengths", target_lengths)
    lengths_B = target_lengths.to(device)
    longest = check_targets(targets, lengths_B, batch_size, max_target_length if not may_look else None)
    lengths_B, targets = lengths_B.long(), targets.to(device).long()
    is_token_BS = torch.arange(longest, device=device) < lengths_B[:, None]
    labels_BS = pad_targets(targets, lengths_B, is_token_BS, blank)
    if may_look:
        check_labels(labels_BS[is_token_BS], blank, vocab_size)
    skips_BS = torch.ones_like(is_token_BS)
    skips_BS[:, 1:] = labels_BS[:, 1:] != labels_BS[:, :-1]
    table_BK = torch.cat((labels_BS.new_full((batch_size, 1), blank), labels_BS), 1)
    needed_B = lengths_B + (~skips_BS & is_token_BS).sum(1)
    return Alignment(
        layout=layout,
        target_lengths=lengths_B,
        table=table_BK,
        is_token=is_token_BS,
        is_first=first_of_its_kind(table_BK),
        skips=skips_BS,
        infeasible=(layout.lengths if distinct_lengths is None else distinct_lengths.to(device)) < needed_B,
    )


def real_rows(
    values: Tensor, input_lengths: Tensor | None, cu_seqlens: Tensor | None, max_input_length: int | None
) -> tuple[Tensor, PackedLayout]:
    """The rows [N, ...] of the real positions, from padded [B, T, ...] or packed [N, ...] values, and their layout.

    The host waits here for a GPU if values are padded, or if ``max_input_length`` is None.

    Raises:
        ValueError, TypeError: as `bnb_ds.ctc.loss.linear_ctc_loss` says.
    """
    if (input_lengths is None) == (cu_seqlens is None):
        raise ValueError("give input_lengths with padded hidden [B, T, H], or cu_seqlens with packed hidden [N, H]")
    if values.dim() != (3 if cu_seqlens is None else 2):
        raise ValueError(f"hidden has {values.dim()} dimensions: give [B, T, H], or [N, H] with cu_seqlens")
    name = "input_lengths" if cu_seqlens is None else "cu_seqlens"
    given = input_lengths if cu_seqlens is None else cu_seqlens
    assert given is not None
    check_integers(name, given)
    if given.numel() < (1 if cu_seqlens is None else 2):
        raise ValueError("the batch is empty: give at least one sequence")
    given = given.to(values.device)
    if cu_seqlens is None:
        return _rows_of_padded(values, given.long())
    num_rows = values.shape[0]
    if max_input_length is None or given.device.type == "cpu":
        _, max_input_length = check_lengths(name, given.diff(), num_rows)
        if int(given[0]) != 0 or int(given[-1]) != num_rows:
            raise ValueError(f"cu_seqlens spans {int(given[-1] - given[0])} positions, but hidden has {num_rows} rows")
    return values, PackedLayout.from_cu_seqlens(given, num_tokens=num_rows, max_seqlen=max_input_length)


def check_reduction(reduction: str, kl_weight: float = 0.0) -> None:
    """Raise ValueError for an unknown reduction, or for the KL term with reduction ``"none"``."""
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction is {reduction!r}: use one of: {', '.join(REDUCTIONS)}")
    if kl_weight and reduction == "none":
        raise ValueError("kl_weight needs a reduction other than 'none': the KL term is not split over sequences")


def _rows_of_padded(values_BTH: Tensor, lengths_B: Tensor) -> tuple[Tensor, PackedLayout]:
    batch_size, num_columns = values_BTH.shape[:2]
    if lengths_B.numel() != batch_size:
        raise ValueError(f"input_lengths has {lengths_B.numel()} entries for a batch of {batch_size}")
    total, longest = check_lengths("input_lengths", lengths_B, num_columns)
    layout = PackedLayout.from_lengths(lengths_B, num_tokens=total, max_seqlen=longest)
    flat = values_BTH.flatten(0, 1)
    if total == batch_size * num_columns:
        return flat, layout
    return flat.index_select(0, layout.sequence_ids * num_columns + layout.position_ids), layout


def check_targets(targets: Tensor, lengths_B: Tensor, batch_size: int, trusted_longest: int | None) -> int:
    """Check shapes, and lengths unless the caller gives ``trusted_longest``; return the longest target's length."""
    if not isinstance(targets, Tensor):
        raise TypeError(f"targets are of type {type(targets).__name__}: give a tensor of integer token ids")
    if targets.is_floating_point():
        raise TypeError("targets are floating point: give integer token ids")
    if lengths_B.numel() != batch_size:
        raise ValueError(f"target_lengths has {lengths_B.numel()} entries for a batch of {batch_size}")
    if targets.dim() != 1 and (targets.dim() != 2 or targets.shape[0] != batch_size):
        raise ValueError(f"targets have shape {tuple(targets.shape)}: give [{batch_size}, S], or one concatenated row")
    if trusted_longest is not None:
        return trusted_longest
    limit = targets.shape[-1]
    total, longest = check_lengths("target_lengths", lengths_B, limit)
    if targets.dim() == 1 and total != limit:
        raise ValueError(f"targets hold {limit} tokens, but target_lengths add up to {total}")
    return longest


def pad_targets(targets: Tensor, lengths_B: Tensor, is_token_BS: Tensor, filler: int) -> Tensor:
    """The targets as int64 [B, S], with ``filler`` behind each."""
    longest = is_token_BS.shape[1]
    if targets.dim() == 2:
        return torch.where(is_token_BS, targets[:, :longest], filler)
    layout = PackedLayout.from_lengths(lengths_B, num_tokens=targets.numel(), max_seqlen=longest)
    return layout.pad(targets, filler)


def first_of_its_kind(table_BK: Tensor) -> Tensor:
    """bool [B, K], True if no earlier column of the row holds the same id."""
    ids_BK, order_BK = table_BK.sort(dim=1, stable=True)
    is_new_BK = torch.ones_like(table_BK, dtype=torch.bool)
    is_new_BK[:, 1:] = ids_BK[:, 1:] != ids_BK[:, :-1]
    return torch.empty_like(is_new_BK).scatter_(1, order_BK, is_new_BK)


def check_projection(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Raise ValueError for a projection to the vocabulary whose parts do not fit one another."""
    width = hidden.shape[-1] if hidden.dim() else 0
    if weight.dim() != 2 or weight.shape[0] == 0 or weight.shape[1] != width:
        raise ValueError(f"weight has shape {tuple(weight.shape)}: give [V, {width}], as wide as hidden")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias has shape {tuple(bias.shape)}: give [{weight.shape[0]}], as many as weight has rows")


def check_integers(name: str, lengths: Tensor) -> None:
    """Raise TypeError for what is no tensor of integers, and ValueError for one with several dimensions."""
    if not isinstance(lengths, Tensor):
        raise TypeError(f"{name} is of type {type(lengths).__name__}: give a tensor of integers")
    if lengths.is_floating_point() or lengths.dtype == torch.bool:
        raise TypeError(f"{name} has dtype {lengths.dtype}: give integers")
    if lengths.dim() > 1:
        raise ValueError(f"{name} has shape {tuple(lengths.shape)}: give one row of numbers")


def check_lengths(name: str, lengths_B: Tensor, limit: int) -> tuple[int, int]:
    """Check that lengths lie in [0, limit]; return their sum and maximum."""
    total, shortest, longest = torch.stack((lengths_B.sum(), *lengths_B.long().aminmax())).tolist()
    if shortest < 0 or longest > limit:
        wrong = shortest if shortest < 0 else longest
        raise ValueError(f"{name} holds {wrong}: lengths must lie between 0 and {limit}")
    return total, longest


def check_labels(labels: Tensor, blank: int | None, vocab_size: int) -> None:
    """Raises ValueError for a label outside [0, vocab_size), or equal to ``blank`` where there is one."""
    if labels.numel() == 0:
        return
    lowest, highest, has_blank = torch.stack(
        (*labels.aminmax(), (labels == (-1 if blank is None else blank)).any())
    ).tolist()
    if lowest < 0 or highest >= vocab_size:
        wrong = lowest if lowest < 0 else highest
        raise ValueError(f"a target holds the label {wrong}: labels must lie in [0, {vocab_size})")
    if has_blank:  # a label of -1 was refused above
        raise ValueError(f"a target holds the blank {blank}: mark padding of labels with -100, or change the blank")
