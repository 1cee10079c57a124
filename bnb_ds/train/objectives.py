"""Training objectives. An objective returns a sum of losses and a count, never a mean. The training step divides the
sum over the global batch by the global count, so the result does not depend on the division into micro batches."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from bnb_ds.data.batch import PackedBatch


class Objective(Protocol):
    """The loss of a micro batch, as a sum and a count."""

    def count(self, batch: PackedBatch) -> int:
        """The micro batch's part of the global count. It is known before the model runs."""

    def loss_sum(self, model: nn.Module, batch: PackedBatch, device: torch.device) -> Tensor:
        """Sum of losses, a scalar in nats with gradient. The model may be a DeepSpeed engine."""


class Reconstruction:
    """The model's own loss (`bnb_ds.model.outputs.BnbOutput`)."""

    def count(self, batch: PackedBatch) -> int:
        return batch.loss_count

    def loss_sum(self, model: nn.Module, batch: PackedBatch, device: torch.device) -> Tensor:
        return model(**batch.model_inputs(device)).loss_sum


class ReconstructionAndEncoderMlm(Reconstruction):
    """The model's own loss plus a weighted auxiliary loss: the encoder predicts the masked tokens.

    Both sums are divided by the same global count. With weight 1, a nat of a masked token weighs as much as a nat of
    a target token. The auxiliary loss needs :class:`bnb_ds.modeling.BnbForPretraining`.

    Args:
        weight: weight of the auxiliary loss; above 0.
    """

    def __init__(self, weight: float) -> None:
        self._weight = weight

    def loss_sum(self, model: nn.Module, batch: PackedBatch, device: torch.device) -> Tensor:
        index, labels = (x.to(device, non_blocking=True) for x in (batch.masked_index, batch.masked_labels))
        output = model(**batch.model_inputs(device), masked_index=index, masked_labels=labels)
        return output.loss_sum + self._weight * output.encoder_mlm_sum
