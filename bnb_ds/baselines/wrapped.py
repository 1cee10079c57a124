"""What the engine asks of a model of transformers that stands behind the packed interface of BnB."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bnb_ds.common.packing import PackedLayout


class WrappedModel(nn.Module):
    """Holds ``model``; subclasses give it packed batches."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    @property
    def config(self) -> Any:
        """Of the transformers model."""
        return self.model.config

    @property
    def device(self) -> torch.device:
        return self.model.device

    def gradient_checkpointing_enable(self, settings: dict[str, Any]) -> None:
        """As `transformers.PreTrainedModel` has it; the engine calls it."""
        self.model.gradient_checkpointing_enable(settings)


def padded(packed_N: Tensor, layout: PackedLayout, pad_id: int) -> tuple[Tensor, Tensor]:
    """Ids int64 [B, L] filled up with ``pad_id``, and attention mask int64 [B, L], 1 at real tokens."""
    positions = torch.arange(layout.max_seqlen, device=packed_N.device)
    return layout.pad(packed_N, pad_id), (positions < layout.lengths[:, None]).long()


def pad_rows(rows: list[list[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The same of lists of ids."""
    lengths = torch.tensor([len(row) for row in rows])
    packed = torch.tensor([token for row in rows for token in row])
    layout = PackedLayout.from_lengths(lengths, num_tokens=packed.numel(), max_seqlen=int(lengths.max()))
    ids_BL, mask_BL = padded(packed, layout, pad_id)
    return ids_BL.to(device), mask_BL.to(device)
