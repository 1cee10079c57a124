"""A graph in blocks, one for each segment of an infilling target.

The target of an infilling sample is several segments with a separator between them (`bnb_ds.data.infilling`). Where a
separator stands says nothing about the text, so the graph is told: some slots are *forced* to write the separators, and
no link passes such a slot. Links are then block-triangular, and every segment is a small graph of its own.

Shapes: B sequences, T decoder slots of all sequences together, S target tokens of the longest.

Source: Huang et al., Directed Acyclic Transformer Pre-training for High-quality Non-autoregressive Text Generation,
TACL 2023.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bnb_ds.common.packing import PackedLayout


@dataclass(frozen=True, eq=False)
class Blocks:
    """Which slots must write what.

    Attributes:
        forced: int64 [T], the index of the target token that a slot must write; -1 for a free slot.
        token: the id that forced slots write.
        furthest: int64 [T], the last slot of its sequence that a slot may link to.
    """

    forced: Tensor
    token: int
    furthest: Tensor

    def repeat(self, times: int) -> Blocks:
        """The blocks of the batch, ``times`` times one after the other."""
        return Blocks(self.forced.repeat(times), self.token, self.furthest.repeat(times))


def blocks_of(tokens: Tensor, target_lengths_B: Tensor, separator: int, layout: PackedLayout) -> Blocks:
    """The blocks of a batch; a segment has as large a share of the slots as it has of the target.

    Token s of S tokens stands at slot floor(s (L - 1) / (S - 1)) of L. So a segment that fits has as many slots as
    tokens, and more if the graph has more. First and last tokens are no separators.

    Args:
        tokens: int64 [sum S], the targets, concatenated.
        target_lengths_B: int64 [B].
        separator: the id that stands between segments.
        layout: of the slots.
    """
    slots_B, device = layout.lengths, tokens.device
    everyone_B = torch.arange(layout.batch_size, device=device)
    sequence_M = torch.repeat_interleave(everyone_B, target_lengths_B, output_size=tokens.numel())
    starts_B = target_lengths_B.cumsum(0) - target_lengths_B
    place_M = torch.arange(tokens.numel(), device=device) - starts_B.index_select(0, sequence_M)
    last_M = target_lengths_B.index_select(0, sequence_M) - 1
    slots_M = slots_B.index_select(0, sequence_M)
    is_separator_M = (tokens == separator) & (place_M > 0) & (place_M < last_M) & (last_M < slots_M)
    slot_M = place_M * (slots_M - 1) // last_M.clamp(min=1)
    # One place more, for what is no separator.
    at_M = torch.where(is_separator_M, layout.cu_seqlens.long().index_select(0, sequence_M) + slot_M, layout.num_tokens)
    forced_T = place_M.new_full((layout.num_tokens + 1,), -1).scatter(0, at_M, place_M)[:-1]
    # The next forced slot behind each slot, else the last one of its sequence.
    slot_T = layout.position_ids
    end_BT = layout.pad(torch.where(forced_T >= 0, slot_T, layout.max_seqlen), layout.max_seqlen)
    behind_BT = torch.nn.functional.pad(end_BT[:, 1:], (0, 1), value=layout.max_seqlen)
    next_BT = behind_BT.flip(1).cummin(1).values.flip(1)
    furthest_T = torch.minimum(layout.unpad(next_BT), slots_B.index_select(0, layout.sequence_ids) - 1)
    return Blocks(forced_T, separator, furthest_T)
