"""Glancing: in training some slots see the target token that they should write, the more the worse the model is.

A first pass without gradient says what the model would write and how the target is best aligned to the slots. Then some
slots get their token as input, and a second pass learns. Draws belong to a sample and a slot, so which slots see their
token does not depend on ranks or micro batches.

Shapes: B sequences, T decoder slots of all sequences together, M slots of the longest.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from bnb_ds.common.packing import PackedLayout, lowest_of_each
from bnb_ds.errors import ConfigError

#: the ratio of a way to show targets, and a draw for each slot, float32 [sum T]; both None: that way is not taken
Chance = tuple[float | None, Tensor | None]


@dataclass(frozen=True, eq=False)
class Chances:
    """How targets are shown by chance in training.

    Attributes:
        glance: of glancing.
        mix: of the right tokens in the place of layers' predictions.
        mask_share: share of sequences of which mask-predict says how many tokens are seen.
    """

    glance: Chance
    mix: Chance
    mask_share: float


def rounded_down(ratio: float, wrong_B: Tensor) -> Tensor:
    """int64 [B], floor(ratio * wrong)."""
    return (ratio * wrong_B.double()).floor().long()


def rounded_half_up(ratio: float, wrong_B: Tensor) -> Tensor:
    """int64 [B], floor(ratio * wrong + 0.5)."""
    return (ratio * wrong_B.double() + 0.5).floor().long()


def glance_by_chance(is_wrong_T: Tensor, ratio: float, draws_T: Tensor, layout: PackedLayout) -> Tensor:
    """bool [T]: each slot with probability ``ratio`` times the share of wrong slots of its sequence."""
    wrong_B = layout.pad(is_wrong_T, False).sum(1)
    probability_B = ratio * wrong_B.double() / layout.lengths
    return draws_T < probability_B.index_select(0, layout.sequence_ids)


def seen_by_mask_predict(given_T: Tensor, draws_T: Tensor, share: float, layout: PackedLayout) -> Tensor:
    """bool [T]: the slots of ``given_T``, but in some sequences as many as further passes of decoding may show.

    With probability ``share``, a sequence of S slots has its lowest draws seen: none to S - 1 of them, each number with
    the same probability. No draws are needed beside ``draws_T``: the fraction of their sum is uniform, and independent
    of their order.

    Source: Ghazvininejad et al., Mask-Predict, EMNLP 2019, but that all tokens may be masked, as decoding begins.
    """
    sum_B = layout.pad(draws_T.double()).sum(1)
    fraction_B = sum_B - sum_B.floor()
    number_B = (fraction_B / share * layout.lengths).floor().long()
    seen_T = lowest_of_each(torch.ones_like(given_T), number_B, draws_T, layout)
    return torch.where((fraction_B < share).index_select(0, layout.sequence_ids), seen_T, given_T)


@contextmanager
def same_dropout(device: torch.device) -> Iterator[None]:
    """What follows the block draws the same dropout masks as the block did."""
    state = torch.get_rng_state()
    device_state = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    yield
    torch.set_rng_state(state)
    if device_state is not None:
        torch.cuda.set_rng_state(device_state, device)


def check_chances(chances: Chances, num_slots: int, has_tokens: bool, is_token_target: bool) -> None:
    """Refuse a ratio or a share that is none, draws that do not fit the slots, or what their model has not.

    Args:
        chances: as the caller gave them.
        num_slots: slots of all sequences together.
        has_tokens: whether slots hold tokens.
        is_token_target: whether there is one token a slot.
    """
    for name, (ratio, draws_T) in (("glance", chances.glance), ("mixed", chances.mix)):
        if ratio is None:
            continue
        if not 0 <= ratio <= 1:
            raise ValueError(f"{name}_ratio is {ratio}: give a number from 0 to 1")
        if draws_T is None or tuple(draws_T.shape) != (num_slots,):
            given = "none" if draws_T is None else f"those of shape {tuple(draws_T.shape)}"
            raise ValueError(f"{name}_ratio needs {name}_draws, one for each of {num_slots} slots, not {given}")
        if name == "glance" and not has_tokens:
            raise ConfigError("glancing shows target tokens to the decoder: set decoder_tokens to true")
    share = chances.mask_share
    if not 0 <= share <= 1 or (share and not is_token_target):
        raise ValueError(f"mask_share is {share}: give a number from 0 to 1, above 0 only to target 'token'")
