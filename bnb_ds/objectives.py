"""What a batch is trained on. An objective returns a sum and a count, never a mean: the loop divides the sum over the
global batch by the global count, so that the result does not depend on how the batch is cut into micro batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bnb_ds.batch import PackedBatch


@dataclass(frozen=True)
class LossOutput:
    """The loss of one micro batch.

    Attributes:
        sum: float32 scalar with gradient, in nats.
        count: what the sum is divided by once it is global (target tokens); known before the model runs.
    """

    sum: Tensor
    count: int


#: (model, batch, device) -> loss; the model may be a DeepSpeed engine
Objective = Callable[[nn.Module, PackedBatch, torch.device], LossOutput]


def reconstruction(model: nn.Module, batch: PackedBatch, device: torch.device) -> LossOutput:
    """CTC negative log likelihood of the targets; infeasible samples add nothing to sum or count."""
    output = model(**batch.model_inputs(device))
    return LossOutput(sum=output.loss_sum, count=batch.num_targets)
