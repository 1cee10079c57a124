"""What a training pass of the model has computed, for losses that are added to its own."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from bnb_ds.common.packing import PackedInputs
from bnb_ds.model.slots import DecoderSlots
from bnb_ds.targets.interface import SlotStates, Targets


@dataclass
class LayerStates:
    """The outputs of all layers, in order.

    Layers fill in this object, and not lists: of those, DeepSpeed gives modules copies with partitioned weights.

    Attributes:
        encoder: [N, H] each, of the source tokens; without a decoder [T, H], of the slots.
        decoder: [T, H] each, of the slots.
    """

    encoder: list[Tensor] = field(default_factory=list)
    decoder: list[Tensor] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class TrainingPass:
    """A forward pass with targets.

    Attributes:
        inputs: the sources.
        slots: as the decoder saw them.
        states: the slots in front of the projection to the vocabulary.
        targets: the target tokens.
        weights: int64 [B], the weight of a sequence's losses in the sum: its target tokens, or 1 where sequences count.
        layers: the outputs of the layers.
    """

    inputs: PackedInputs
    slots: DecoderSlots
    states: SlotStates
    targets: Targets
    weights: Tensor
    layers: LayerStates
