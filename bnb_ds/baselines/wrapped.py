"""What the engine asks of a model of transformers that stands behind the packed interface of BnB."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel


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
