"""What the losses of a graph of slots are given, checked and brought into one form.

Shapes: B sequences, L slots and S target tokens of the longest, N real slots of all sequences together, K = max(S, 1)
columns (the target tokens in order), V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from bnb_ds.common.packing import PackedLayout
from bnb_ds.ctc.inputs import check_integers, check_labels, check_targets, first_of_its_kind, pad_targets

Number = TypeVar("Number", int, np.ndarray, Tensor)

_ABOVE_ONE = 1e-3  # nats by which rounding may lift a log-probability above 0


@dataclass(frozen=True, eq=False)
class Targets:
    """Targets and lengths of a batch, as the dynamic programme wants them; all tensors on the device of the loss.

    Attributes:
        layout: where each sequence lies among the N rows; ``max_seqlen`` is L.
        target_lengths: int64 [B].
        table: int64 [B, K], the vocabulary id of each column; 0 behind a target.
        is_token: bool [B, K], within the target's length.
        is_first: bool [B, K], the first column of its sequence that holds this id.
        infeasible: bool [B], no path from the first slot to the last has as many slots as the target has tokens,
            whatever the links.
    """

    layout: PackedLayout
    target_lengths: Tensor
    table: Tensor
    is_token: Tensor
    is_first: Tensor
    infeasible: Tensor
    may_add: None = None  # as `bnb_ds.ctc.head.OwnColumns` says; few columns lie behind targets here


def fits(num_tokens: Number, num_slots: Number) -> Number:
    """Whether a path from the first slot to the last can write so many tokens, one a slot; for arrays, of each pair."""
    return ((num_tokens >= 2) & (num_tokens <= num_slots)) | ((num_tokens == 1) & (num_slots == 1))


def read_targets(
    layout: PackedLayout,
    targets: Tensor,
    target_lengths: Tensor,
    *,
    vocab_size: int,
    max_target_length: int | None,
) -> Targets:
    """Check targets and set up their columns.

    Values are checked where that makes no GPU wait: always on the CPU, and on a GPU when ``max_target_length`` is not
    given, since it must be read from there anyway.

    Raises:
        ValueError, TypeError: as `bnb_ds.dag.loss.linear_dag_loss` says.
    """
    device = layout.cu_seqlens.device
    may_look = device.type == "cpu" or max_target_length is None
    check_integers("target_lengths", target_lengths)
    lengths_B = target_lengths.to(device)
    longest = check_targets(targets, lengths_B, layout.batch_size, max_target_length if not may_look else None)
    lengths_B, targets = lengths_B.long(), targets.to(device).long()
    is_token_BS = torch.arange(longest, device=device) < lengths_B[:, None]
    table_BS = pad_targets(targets, lengths_B, is_token_BS, 0)
    if may_look:
        check_labels(table_BS[is_token_BS], None, vocab_size)
    if longest == 0:
        table_BS, is_token_BS = table_BS.new_zeros(len(table_BS), 1), is_token_BS.new_zeros(len(table_BS), 1)
    return Targets(
        layout=layout,
        target_lengths=lengths_B,
        table=table_BS,
        is_token=is_token_BS,
        is_first=first_of_its_kind(table_BS),
        infeasible=~fits(lengths_B, layout.lengths),
    )


def read_links(log_links: Tensor, lengths_B: Tensor, longest: int, *, num_columns: int | None, look: bool) -> Tensor:
    """[B, L, L], -inf at every link that no path may take: from or to a slot beyond a length, or not forwards.

    Args:
        log_links: float [B, columns, columns].
        lengths_B: int64 [B], slots of each sequence.
        longest: L.
        num_columns: the slots of padded hidden; None: packed.
        look: values are checked, which makes a GPU wait.

    Raises:
        ValueError, TypeError: as `bnb_ds.dag.loss.linear_dag_loss` says.
    """
    if not log_links.is_floating_point():
        raise TypeError(f"log_links has dtype {log_links.dtype}: give log-probabilities in a floating dtype")
    batch_size, shape = len(lengths_B), tuple(log_links.shape)
    columns = num_columns if num_columns is not None else max(longest, shape[-1] if shape else 0)
    if shape != (batch_size, columns, columns):
        wanted = num_columns if num_columns is not None else f"at least {longest}"
        raise ValueError(f"log_links has shape {shape}: give [B, L, L] with B = {batch_size} and L = {wanted}")
    links_BLL = log_links[:, :longest, :longest]
    slot_L = torch.arange(longest, device=links_BLL.device)
    is_real_BL = slot_L < lengths_B.to(links_BLL.device)[:, None]
    is_forward_LL = slot_L[:, None] < slot_L
    if look:
        is_pair_BLL = is_real_BL[:, :, None] & is_real_BL[:, None]
        _check_values(links_BLL, is_pair_BLL, is_forward_LL)
        if bool(is_real_BL.all()):
            return links_BLL  # as they were given: all others have just been seen to be -inf
    # A link's target being real, its source before it is real too.
    return torch.where(is_forward_LL & is_real_BL[:, None], links_BLL, -torch.inf)


def read_forced(forced: Tensor | None, targets: Targets, *, num_columns: int | None) -> Tensor | None:
    """int64 [B, L], the index of the target token that a slot must emit, -1 for any; None if none is forced.

    Args:
        forced: integers [B, ``num_columns``], or packed [N] if that is None.
        targets: the targets.
        num_columns: the slots of padded hidden; None: packed.

    Raises:
        ValueError: another shape, or a token that the target does not have (looked for on a CPU alone).
        TypeError: indices that are not integers.
    """
    if forced is None:
        return None
    if forced.is_floating_point() or forced.dtype == torch.bool:
        raise TypeError(f"forced has dtype {forced.dtype}: give integers, an index or -1 for each slot")
    layout = targets.layout
    shape = (layout.num_tokens,) if num_columns is None else (layout.batch_size, num_columns)
    if tuple(forced.shape) != shape:
        raise ValueError(f"forced has shape {tuple(forced.shape)}: give {list(shape)}, an index or -1 for each slot")
    forced = forced.long()
    forced_BL = layout.pad(forced, -1) if num_columns is None else forced[:, : layout.max_seqlen]
    if forced.device.type == "cpu":
        wrong = ((forced_BL >= targets.target_lengths[:, None]) | (forced_BL < -1)).nonzero()
        if len(wrong):
            sequence, slot = wrong[0].tolist()
            raise ValueError(
                f"forced[{sequence}, {slot}] is {int(forced_BL[sequence, slot])}: give -1, or the index of one of the "
                f"target's {int(targets.target_lengths[sequence])} tokens"
            )
    return forced_BL


def with_forced(log_probs_BLS: Tensor, forced_BL: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Emissions where forced slots emit their token for certain and no other slot does; and where that is."""
    if forced_BL is None:
        return log_probs_BLS, None
    index_S = torch.arange(log_probs_BLS.shape[2], device=log_probs_BLS.device)
    is_forced_BLS = forced_BL[..., None] == index_S
    is_shut_BLS = (forced_BL >= 0)[..., None] | is_forced_BLS.any(1, keepdim=True)
    return log_probs_BLS.masked_fill(is_shut_BLS, -torch.inf).masked_fill(is_forced_BLS, 0.0), is_forced_BLS


def _check_values(links_BLL: Tensor, is_pair_BLL: Tensor, is_forward_LL: Tensor) -> None:
    is_nan, is_backward, is_high = (
        links_BLL.isnan(),
        ~is_forward_LL & (links_BLL != -torch.inf),
        links_BLL > _ABOVE_ONE,
    )
    faults = (
        (is_nan, "a link must be a log-probability, -inf where there is none"),
        (is_backward, "a link must lead to a later slot, and all others be -inf"),
        (is_high, "log-probabilities are at most 0: give the logarithm of a softmax over later slots"),
    )
    wrong_BLL = (is_nan | is_backward | is_high) & is_pair_BLL
    if not bool(wrong_BLL.any()):
        return
    for is_fault, way_out in faults:
        places = (is_fault & is_pair_BLL).nonzero()
        if len(places):
            sequence, source, target = places[0].tolist()
            value = links_BLL[sequence, source, target].item()
            raise ValueError(f"log_links[{sequence}, {source}, {target}] is {value:g}: {way_out}")
