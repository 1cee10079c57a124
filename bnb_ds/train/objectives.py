"""What a batch is trained on. An objective gives a sum and a count, never a mean: the loop divides the sum over the
global batch by the global count, so that the result does not depend on how the batch is cut into micro batches."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from bnb_ds.data.batch import PackedBatch


class Objective(Protocol):
    """The loss of a micro batch, in two parts."""

    def count(self, batch: PackedBatch) -> int:
        """What the sum is divided by once both are global; known before the model runs."""

    def loss_sum(self, model: nn.Module, batch: PackedBatch, device: torch.device) -> Tensor:
        """Scalar with gradient, in nats; the model may be a DeepSpeed engine."""


class Reconstruction:
    """The model's own loss (`bnb_ds.model.outputs.BnbOutput`)."""

    def count(self, batch: PackedBatch) -> int:
        return batch.loss_count

    def loss_sum(self, model: nn.Module, batch: PackedBatch, device: torch.device) -> Tensor:
        return model(**batch.model_inputs(device)).loss_sum


class ReconstructionAndEncoderMlm(Reconstruction):
    """The same, and the nats of masked tokens predicted from the encoder (:mod:`bnb_ds.modeling`), times a weight.

    Both sums are divided by the global number of target tokens: at weight 1 a nat of a masked token counts as much as
    a nat of a target token.

    Args:
        weight: above 0.
    """

    def __init__(self, weight: float) -> None:
        self._weight = weight

    def loss_sum(self, model: nn.Module, batch: PackedBatch, device: torch.device) -> Tensor:
        index, labels = (x.to(device, non_blocking=True) for x in (batch.masked_index, batch.masked_labels))
        output = model(**batch.model_inputs(device), masked_index=index, masked_labels=labels)
        return output.loss_sum + self._weight * output.encoder_mlm_sum
