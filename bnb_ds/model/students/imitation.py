"""Losses with which a student learns from a teacher, layer by layer, and keeps near to where it began.

Shapes: B sequences, N rows (tokens or slots of all sequences together), M target tokens of all sequences together,
H hidden size, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bnb_ds.common.packing import PackedLayout
from bnb_ds.ctc.operands import exact_dtype
from bnb_ds.errors import ConfigError
from bnb_ds.model.configuration import BnbConfig
from bnb_ds.model.lm_head_model import BnbLMHeadModel
from bnb_ds.model.students.layer_choice import HALVES, taught_layers
from bnb_ds.model.students.slot_kl import Projected, slot_kl
from bnb_ds.model.students.training_pass import LayerStates, TrainingPass
from bnb_ds.targets.interface import SlotStates

#: fields of `BnbConfig` that decide on slots: teacher and student must have the same ones
_OF_SLOTS = (
    "has_decoder",
    "decoder_length",
    "decoder_length_ratio",
    "decoder_length_offset",
    "decoder_length_min",
    "decoder_length_max",
    "decoder_positions",
    "decoder_tokens",
    "slot_tokens",
    "target_kind",
    "segment_blocks",
    "blank_token_id",
    "vocab_size",
)


def match_layers(student: BnbConfig, teacher: BnbConfig, chosen: dict[str, list[int] | None]) -> dict[str, list[int]]:
    """Which layer of the teacher each layer of the student learns from, by half.

    Args:
        student, teacher: their configurations.
        chosen: what the recipe says, by half; None: `bnb_ds.model.students.layer_choice.taught_layers`.

    Raises:
        ConfigError: a choice does not fit the models.
    """
    matched = {}
    for half in HALVES[: 1 + student.has_decoder]:
        depths = [getattr(config, half).num_hidden_layers for config in (student, teacher)]
        layers = chosen.get(half)
        if layers is None:
            layers = taught_layers(*depths) if depths[0] <= depths[1] else []
            if not layers:
                raise ConfigError(
                    f"layers.{half}: the student has {depths[0]} layers and the teacher {depths[1]}; say for each "
                    "which one it learns from, or set hidden to 0"
                )
        if len(layers) != depths[0] or not all(0 <= layer < depths[1] for layer in layers):
            raise ConfigError(
                f"layers.{half} is {layers}: give {depths[0]} numbers of 0 to {depths[1] - 1}, the teacher's layer for "
                "each layer of the student"
            )
        matched[half] = layers
    return matched


def check_teacher(student: BnbConfig, teacher: BnbConfig, *, hidden: float) -> None:
    """Raise ConfigError if a teacher's slots, or with a weight of hidden states its sizes, are not the student's."""
    for name in _OF_SLOTS:
        own, theirs = getattr(student, name), getattr(teacher, name)
        if own != theirs:
            raise ConfigError(
                f"{name} is {own!r}, and {theirs!r} in the teacher: both must open the same slots; set it to "
                f"{theirs!r}, or choose another teacher"
            )
    for half in HALVES:
        own, theirs = (getattr(config, half).hidden_size for config in (student, teacher))
        if hidden and own != theirs:
            raise ConfigError(
                f"hidden is {hidden}, but hidden states of the {half} have {own} numbers and the teacher's {theirs}: "
                "set hidden to 0, or choose a teacher of that width"
            )


class LayerTeacher:
    """A trained model whose layers and slots a student imitates. It is a callable for ``further`` of the student.

    The loss of a sequence is ``hidden`` times the squared distance of matched layers (a mean over numbers, positions
    and layers) plus ``logits`` times the mean over slots of KL(teacher || student). Both models see the same slots.

    Args:
        model: the teacher; it is put into evaluation mode, and has no part in gradients or checkpoints.
        layers: of `match_layers`.
        hidden, logits: weights of the two losses.

    Source: Sun et al., Patient Knowledge Distillation, EMNLP 2019 (hidden states); Hinton et al., 2015 (distributions).
    """

    def __init__(self, model: BnbLMHeadModel, layers: dict[str, list[int]], *, hidden: float, logits: float) -> None:
        self._model = model.eval().requires_grad_(False)
        self._layers = layers
        self._hidden = hidden
        self._logits = logits

    def __call__(self, done: TrainingPass) -> Tensor:
        """The loss of a batch, a sum like the model's own: float32 (float64 for float64) []."""
        states, kept = self._taught(done)
        slots_B, sources_B = (
            _per_position(done.weights, layout) for layout in (done.states.layout, done.inputs.layout)
        )
        exact = exact_dtype(done.states.hidden.dtype)
        loss = torch.zeros((), dtype=exact, device=done.states.hidden.device)
        if self._logits:
            loss = loss + self._logits * slot_kl(_projected(done.states), _projected(states), slots_B)
        if self._hidden:
            weights = {"encoder": sources_B if kept.decoder else slots_B, "decoder": slots_B}
            pairs = [
                _distance(getattr(done.layers, half)[place], getattr(kept, half)[layer], weights[half])
                for half, layers in self._layers.items()
                for place, layer in enumerate(layers)
            ]
            loss = loss + self._hidden * torch.stack(pairs).mean()
        return loss

    @torch.no_grad()
    def _taught(self, done: TrainingPass) -> tuple[SlotStates, LayerStates]:
        # Where the student computes, and in its precision.
        self._model.to(done.states.hidden.device, done.states.weight.dtype)
        kept = LayerStates()
        encoded = self._model.model.encode(done.inputs, kept)
        return self._model.states(encoded, done.slots, kept=kept), kept


@dataclass(frozen=True, eq=False)
class Anchor:
    """Keeps the output embeddings of a batch's target tokens near those of the checkpoint: ``w |e - e0|^2`` each.

    The loss of a sequence is the mean over its target tokens.

    Attributes:
        originals: [M, H], the checkpoint's embedding of each target token, on the host.
        weight: w.

    Source: Li et al., Explicit Inductive Bias for Transfer Learning, ICML 2018 (L2-SP), on the output embeddings alone.
    """

    originals: Tensor
    weight: float

    def __call__(self, done: TrainingPass) -> Tensor:
        """The loss of a batch, a sum like the model's own: float32 (float64 for float64) []."""
        now_MH = done.states.weight.index_select(0, done.targets.tokens)
        exact = exact_dtype(now_MH.dtype)
        before_MH = self.originals.to(now_MH.device, exact, non_blocking=True)
        distance_M = (now_MH.to(exact) - before_MH).square().sum(-1)
        lengths_B = done.targets.lengths
        share_B = done.weights.to(exact) / lengths_B.clamp(min=1)
        share_M = share_B.repeat_interleave(lengths_B, output_size=distance_M.numel())
        return self.weight * (distance_M @ share_M)


def _per_position(weights_B: Tensor, layout: PackedLayout) -> Tensor:
    """float64 [N], such that a sum over positions is the weighted sum of the sequences' means."""
    return (weights_B.double() / layout.lengths).index_select(0, layout.sequence_ids)


def _distance(own_NH: Tensor, their_NH: Tensor, weight_N: Tensor) -> Tensor:
    exact = exact_dtype(own_NH.dtype)
    return (own_NH.to(exact) - their_NH.to(exact)).square().mean(-1) @ weight_N.to(exact)


def _projected(states: SlotStates) -> Projected:
    return Projected(states.hidden, states.weight, states.bias)
