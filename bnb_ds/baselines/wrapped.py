"""Base class of the wrapped transformers models, and conversion from packed to padded batches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bnb_ds.common.packing import PackedLayout


class WrappedModel(nn.Module):
    """Holds a transformers model; subclasses convert packed batches for it."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    @property
    def config(self) -> Any:
        """The configuration of the transformers model."""
        return self.model.config

    @property
    def device(self) -> torch.device:
        return self.model.device

    def gradient_checkpointing_enable(self, settings: dict[str, Any]) -> None:
        """As in `transformers.PreTrainedModel`; the engine calls it."""
        self.model.gradient_checkpointing_enable(settings)


def padded(packed_N: Tensor, layout: PackedLayout, pad_id: int) -> tuple[Tensor, Tensor]:
    """Convert packed ids to ids int64 [B, L] and an attention mask int64 [B, L], 1 at real tokens."""
    positions = torch.arange(layout.max_seqlen, device=packed_N.device)
    return layout.pad(packed_N, pad_id), (positions < layout.lengths[:, None]).long()


def pad_rows(rows: list[list[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Convert lists of ids to the same two tensors, on ``device``."""
    lengths = torch.tensor([len(row) for row in rows])
    packed = torch.tensor([token for row in rows for token in row])
    layout = PackedLayout.from_lengths(lengths, num_tokens=packed.numel(), max_seqlen=int(lengths.max()))
    ids_BL, mask_BL = padded(packed, layout, pad_id)
    return ids_BL.to(device), mask_BL.to(device)
