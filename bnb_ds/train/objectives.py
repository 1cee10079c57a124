"""Training objectives. An objective returns a sum of losses and a count, never a mean. The training step divides the
sum over the global batch by the global count, so the result does not depend on the division into micro batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from bnb_ds.data.batch import GLANCING_DRAWS, MIXED_DRAWS, PackedBatch
from bnb_ds.data.rewriting import Rewriting
from bnb_ds.model.students.training_pass import TrainingPass


class Objective(Protocol):
    """The loss of a micro batch, as a sum and a count."""

    def count(self, batch: PackedBatch) -> int:
        """The micro batch's part of the global count. It is known before the model runs."""

    def loss_sum(self, model: nn.Module, batch: PackedBatch, device: torch.device, step: int) -> Tensor:
        """Sum of losses, a scalar in nats with gradient.

        Args:
            model: the model, or a DeepSpeed engine.
            batch: a micro batch.
            device: device of this rank.
            step: the optimizer step, from 1.
        """


@dataclass(frozen=True)
class Glancing:
    """How targets are shown to the decoder.

    Attributes:
        ratio: of glancing, of a step that is counted from 0.
        mask_share: with one token a slot, the share of sequences that are shown as mask-predict does.
    """

    ratio: Callable[[int], float]
    mask_share: float = 0.0

    def __call__(self, step: int) -> float:
        """The ratio of a step."""
        return self.ratio(step)


@dataclass(frozen=True)
class ObjectiveSettings:
    """What a recipe asks of an objective. Fields have the names of the recipe's keys.

    Attributes:
        glancing: the ratio of glancing of a step, which is counted from 0; None: no glancing.
        ngram_size: tokens of the n-grams that the loss counts; None: nats.
        mixed_training: probability that the right token replaces what a layer predicts for a slot; None: 0.
    """

    glancing: Callable[[int], float] | None = None
    ngram_size: int | None = None
    mixed_training: float | None = None


#: the model's own loss of the targets, of which it sees nothing
PLAIN = ObjectiveSettings()


class Reconstruction:
    """The model's own loss (`bnb_ds.model.outputs.BnbOutput`).

    Args:
        settings: what the recipe asks for; n-grams are for `NgramMatches`.
        rewriting: the noise of further passes; None: there is one pass.
    """

    def __init__(self, settings: ObjectiveSettings = PLAIN, rewriting: Rewriting | None = None) -> None:
        self._glancing = settings.glancing
        self._mixed_training = settings.mixed_training
        self._rewriting = rewriting

    def count(self, batch: PackedBatch) -> int:
        return batch.loss_count

    def loss_sum(self, model: nn.Module, batch: PackedBatch, device: torch.device, step: int) -> Tensor:
        return model(**self.inputs(batch, device, step)).loss_sum

    def inputs(self, batch: PackedBatch, device: torch.device, step: int) -> dict[str, Any]:
        """Keyword arguments of the model. Arguments are those of `loss_sum`."""
        inputs = batch.model_inputs(device)
        if self._glancing is not None:
            inputs["glance_ratio"] = self._glancing(step - 1)
            inputs["glance_draws"] = batch.slot_draws(GLANCING_DRAWS).to(device, non_blocking=True)
            if isinstance(self._glancing, Glancing) and self._glancing.mask_share:
                inputs["mask_share"] = self._glancing.mask_share
        if self._mixed_training is not None:
            inputs["mixed_ratio"] = self._mixed_training
            inputs["mixed_draws"] = batch.slot_draws(MIXED_DRAWS).to(device, non_blocking=True)
        if self._rewriting is not None:
            inputs["rewrites"] = batch.rewrites(self._rewriting).to(device, non_blocking=True)
        return inputs


class Term(Protocol):
    """A loss that is added to the model's own, from what the model has computed."""

    def of(self, batch: PackedBatch) -> Callable[[TrainingPass], Tensor]:
        """The loss of a micro batch: given to the model as ``further``."""


class WithTerms:
    """An objective whose loss has further terms, each a sum that is divided by the same count.

    Args:
        own: the model's own loss.
        terms: the others.
    """

    def __init__(self, own: Reconstruction, terms: Sequence[Term]) -> None:
        self._own = own
        self._terms = terms

    def count(self, batch: PackedBatch) -> int:
        return self._own.count(batch)

    def loss_sum(self, model: nn.Module, batch: PackedBatch, device: torch.device, step: int) -> Tensor:
        losses = [term.of(batch) for term in self._terms]

        def further(done: TrainingPass) -> Tensor:
            return torch.stack([loss(done) for loss in losses]).sum()

        return model(**self._own.inputs(batch, device, step), further=further).loss_sum


class MaskedTokens(Reconstruction):
    """The loss of target tokens that are masked; the decoder sees the others."""

    def count(self, batch: PackedBatch) -> int:
        return int(batch.masked_targets().sum())

    def inputs(self, batch: PackedBatch, device: torch.device, step: int) -> dict[str, Any]:
        masked = batch.masked_targets().to(device, non_blocking=True)
        return {**super().inputs(batch, device, step), "masked": masked}


class NgramMatches(Reconstruction):
    """1 minus how well the n-grams of outputs and target agree, a mean over sequences: a second phase of training.

    Args:
        settings: as of `Reconstruction`, with ``ngram_size``.
    """

    def __init__(self, settings: ObjectiveSettings) -> None:
        super().__init__(settings)
        self._size = settings.ngram_size

    def count(self, batch: PackedBatch) -> int:
        return len(batch.source_lengths)

    def inputs(self, batch: PackedBatch, device: torch.device, step: int) -> dict[str, Any]:
        return {**super().inputs(batch, device, step), "ngram_size": self._size}


class ReconstructionAndEncoderMlm(Reconstruction):
    """The model's own loss plus a weighted auxiliary loss: the encoder predicts the masked tokens.

    Both sums are divided by the same global count. With weight 1, a nat of a masked token weighs as much as a nat of
    a target token. The auxiliary loss needs :class:`bnb_ds.modeling.BnbForPretraining`.

    Args:
        weight: weight of the auxiliary loss; above 0.
        settings: as of `Reconstruction`.
    """

    def __init__(self, weight: float, settings: ObjectiveSettings = PLAIN) -> None:
        super().__init__(settings)
        self._weight = weight

    def loss_sum(self, model: nn.Module, batch: PackedBatch, device: torch.device, step: int) -> Tensor:
        index, labels = (x.to(device, non_blocking=True) for x in (batch.masked_index, batch.masked_labels))
        output = model(**self.inputs(batch, device, step), masked_index=index, masked_labels=labels)
        return output.loss_sum + self._weight * output.encoder_mlm_sum
