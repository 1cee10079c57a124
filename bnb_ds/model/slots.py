"""Computes the number of decoder slots of each source, and the position and source token of each slot.

Shapes: B sequences, N real source tokens of all sequences together, T decoder slots of all sequences together.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from bnb_ds.common.packing import PackedLayout
from bnb_ds.errors import ConfigError
from bnb_ds.model.backbones.entries import positions_of
from bnb_ds.model.configuration import BnbConfig
from bnb_ds.targets.blocks import Blocks, blocks_of

Lengths = TypeVar("Lengths", np.ndarray, Tensor)
Number = TypeVar("Number", np.ndarray, Tensor, int)

#: slots of one source token that differ, with shared positions
_SLOTS_OF_A_TOKEN = 2


def decoder_lengths(source_lengths: Lengths, config: BnbConfig, target_lengths: Lengths | None = None) -> Lengths:
    """Decoder slots of a batch of sources with these numbers of tokens.

    With ``"source"`` they are ``clamp(ceil(ratio * n) + offset, min, max)``. With ``"padded"`` every source has as many
    slots as the longest source has tokens. With ``"predicted"`` they follow from ``target_lengths``.

    Args:
        source_lengths: integers of any shape, a NumPy array or a torch tensor on any device. The arithmetic is exact,
            so that loader and model agree.
        config: the model's configuration.
        target_lengths: integers of the same shape, target tokens. If None, ``"predicted"`` assumes that targets are as
            long as their sources.

    Returns:
        int64 array or tensor of the same shape.
    """
    lengths = _int64(source_lengths)
    if config.decoder_length == "padded":
        return lengths * 0 + lengths.max()
    if config.decoder_length == "predicted":
        return slots_of_targets(lengths if target_lengths is None else _int64(target_lengths), config)
    return unclamped_slots(lengths, config).clip(config.decoder_length_min, config.decoder_length_max)


def unclamped_slots(num_tokens: Number, config: BnbConfig) -> Number:
    """``ceil(ratio * n) + offset`` for int64 arrays or tensors, and for integers that a compiler traces."""
    ratio = Fraction(str(config.decoder_length_ratio))
    return (num_tokens * ratio.numerator + ratio.denominator - 1) // ratio.denominator + config.decoder_length_offset


def slots_of_targets(target_lengths: Lengths, config: BnbConfig) -> Lengths:
    """Slots with ``"predicted"``: m for one token a slot, else ``floor(ratio * (m - 2)) + 2``, and m for m below 2.

    The first and the last token, [CLS] and [SEP], need one slot each.

    Args:
        target_lengths: int64 of any shape.
        config: the model's configuration.
    """
    if config.target_kind == "token":
        return target_lengths
    ratio = Fraction(str(config.decoder_length_ratio))
    between = (target_lengths - 2).clip(0)
    return between * ratio.numerator // ratio.denominator + target_lengths.clip(None, 2)


def distinct_slots(slots: Lengths, source_lengths: Lengths, config: BnbConfig) -> Lengths:
    """How many of a source's slots CTC can use: int64 of the same shape as ``slots``.

    With ``decoder_positions`` ``"shared"``, the slots of one source token differ by their token type only, which has
    two values. Further ones are equal to the last bit: they write the same token, and CTC merges them. (Slots of a
    graph have links of their own, and those of predicted lengths their own latents.)

    Args:
        slots: int64 of any shape, of `decoder_lengths`.
        source_lengths: integers of the same shape.
        config: the model's configuration.
    """
    if config.decoder_positions != "shared" or config.decoder_length != "source" or config.target_kind != "ctc":
        return slots
    return slots.clip(None, _SLOTS_OF_A_TOKEN * _int64(source_lengths))


def longest_targets(config: BnbConfig) -> int | None:
    """The longest target whose slots the model can hold with ``"predicted"``; None: there is no limit."""
    limits = []
    if config.decoder_positions == "absolute":
        limits.append(positions_of(config.decoder))
    if config.target_kind == "dag":
        limits.append(config.link_positions)
    if not limits:
        return None
    slots = slots_of_targets(np.arange(1, min(limits) + 1), config)
    return max(int((slots <= min(limits)).sum()), 1)


def _int64(lengths: Lengths) -> Lengths:
    return lengths.long() if isinstance(lengths, Tensor) else np.asarray(lengths, np.int64)


@dataclass(frozen=True, eq=False)
class DecoderSlots:
    """The decoder's input, except the latents.

    Attributes:
        layout: layout of the slots.
        source_index: int64 [T], the packed source token that a slot stands for. Its latent feeds the slot, except with
            ``"predicted"``, where latents are interpolated.
        position_ids: int64 [T], rows of the position embedding.
        token_type_ids: int64 [T], rows of the token type embedding.
        token_ids: int64 [T], the token that a slot's input holds; None without ``decoder_tokens``.
        blocks: of a graph in blocks, for a given target; None: one block.
    """

    layout: PackedLayout
    source_index: Tensor
    position_ids: Tensor
    token_type_ids: Tensor
    token_ids: Tensor | None = None
    blocks: Blocks | None = None

    def in_blocks(self, tokens: Tensor, target_lengths_B: Tensor, config: BnbConfig) -> DecoderSlots:
        """With a block for each segment of the targets. The input of a forced slot holds the last token, [SEP].

        Args:
            tokens: int64 [sum S], the targets, concatenated.
            target_lengths_B: int64 [B].
            config: the model's configuration, with ``segment_blocks``.
        """
        assert config.mask_token_id is not None  # the configuration's check says so
        blocks = blocks_of(tokens, target_lengths_B, config.mask_token_id, self.layout)
        token_ids = self.token_ids
        if token_ids is not None:
            token_ids = token_ids.masked_fill(blocks.forced >= 0, config.eos_token_id)
        return replace(self, token_ids=token_ids, blocks=blocks)


@dataclass(frozen=True, eq=False)
class Shown:
    """What the decoder sees of the targets in training.

    Attributes:
        slots: with the tokens that they hold.
        given: bool [sum T], slots whose input holds their target token; None: no slot.
        masked: bool [sum T], the slots that have a loss, with one token a slot; None: all of them.
        mixed: int64 [sum T], the token that the layers read instead of their prediction; -1: none. None: no slot.
    """

    slots: DecoderSlots
    given: Tensor | None = None
    masked: Tensor | None = None
    mixed: Tensor | None = None


def open_slots(
    source: PackedLayout,
    config: BnbConfig,
    target_lengths_B: Tensor | np.ndarray | None = None,
    source_tokens_N: Tensor | None = None,
) -> DecoderSlots:
    """Lay out the decoder's slots for a batch. Slot j of T stands for source token ``floor(j * n / T)`` of n.

    Args:
        source: layout of the source tokens.
        config: the model's configuration.
        target_lengths_B: int64 [B], target tokens with ``"predicted"``. The host waits for a tensor on a GPU, and for
            the source's lengths if it does not know them; for nothing else.
        source_tokens_N: int64 [N], the source tokens; ``slot_tokens`` ``"source"`` and ``"inserted"`` need them.

    Raises:
        ConfigError: there are more slots or source tokens than position embeddings.
        ValueError: a length of ``target_lengths_B`` is below 1.
    """
    if config.decoder_length == "predicted" and target_lengths_B is not None:
        on_host = target_lengths_B.cpu().numpy() if isinstance(target_lengths_B, Tensor) else target_lengths_B
        num_slots_B = slots_of_targets(np.asarray(on_host, np.int64), config)
    else:
        num_slots_B = decoder_lengths(source.lengths_on_host(), config)
    if num_slots_B.min() < 1:
        raise ValueError("labels: an empty target has no decoder slot: leave it out of the batch")
    layout = PackedLayout.from_host(num_slots_B, source.cu_seqlens.device)
    _check_positions(layout.max_seqlen, source.max_seqlen, config)
    source_lengths_B, lengths_B = source.lengths, layout.lengths
    sequence_T, slot_T = layout.sequence_ids, layout.position_ids
    token_T = slot_T * source_lengths_B.index_select(0, sequence_T) // lengths_B.index_select(0, sequence_T)
    source_index_T = source.cu_seqlens.index_select(0, sequence_T).long() + token_T
    tokens_T = first_tokens(slot_T, lengths_B.index_select(0, sequence_T), config, source_tokens_N, source_index_T)
    if config.decoder_positions == "absolute":
        return DecoderSlots(layout, source_index_T, slot_T, torch.zeros_like(slot_T), tokens_T)
    return DecoderSlots(layout, source_index_T, token_T, _repeats(source_index_T).long(), tokens_T)


def _repeats(source_index_T: Tensor) -> Tensor:
    """bool [T], whether a slot stands for the same source token as the slot before it."""
    return F.pad(source_index_T[1:] == source_index_T[:-1], (1, 0))


def first_tokens(
    slot_T: Tensor, num_slots_T: Tensor, config: BnbConfig, source_tokens_N: Tensor | None, source_index_T: Tensor
) -> Tensor | None:
    """What slots hold before anything is known: int64 [T], or None without ``decoder_tokens``.

    Args:
        slot_T: int64, the place of a slot in its sequence.
        num_slots_T: int64, slots of its sequence.
        config: the model's configuration.
        source_tokens_N: int64, the source tokens; ``slot_tokens`` ``"source"`` and ``"inserted"`` need them.
        source_index_T: int64, the source token that a slot stands for.
    """
    if not config.decoder_tokens:
        return None
    if config.slot_tokens != "mask":
        assert source_tokens_N is not None, "the slots hold source tokens"
        tokens_T = source_tokens_N.index_select(0, source_index_T)
        if config.slot_tokens == "inserted":
            tokens_T = tokens_T.masked_fill(_repeats(source_index_T), config.mask_token_id)
    else:
        tokens_T = torch.full_like(slot_T, config.mask_token_id)
    if config.target_kind != "dag":
        return tokens_T
    # Every path begins in the first slot with [CLS] and ends in the last one with [SEP].
    tokens_T = tokens_T.masked_fill(slot_T == num_slots_T - 1, config.eos_token_id)
    return tokens_T.masked_fill(slot_T == 0, config.bos_token_id)


def room_for_masks(source_length: int, config: BnbConfig) -> str:
    """Why a source is too long for the slots of an encoder alone, and what would fit."""
    positions = positions_of(config.encoder)
    slots = int(decoder_lengths(np.asarray(source_length), config))
    fits = positions
    while fits > 1 and decoder_lengths(np.asarray(fits), config) > positions:
        fits -= 1
    fewer = positions // source_length - 1
    ways = f"cut the source to {fits}" + (f", or insert {fewer} behind each token" if fewer > 0 else "")
    return f"with the inserted mask tokens it takes {slots} positions, but the encoder has {positions}: {ways}"


def _check_positions(most: int, max_source: int, config: BnbConfig) -> None:
    available = positions_of(config.decoder)
    if not config.has_decoder and most > available:
        raise ConfigError(f"a source has {max_source} tokens; {room_for_masks(max_source, config)}")
    if config.decoder_positions == "absolute" and most > available:
        raise ConfigError(
            f"a source of {max_source} tokens needs {most} decoder slots, but the decoder has {available} positions: "
            "set decoder_positions to 'shared', lower decoder_length_ratio, set decoder_length_max, or "
            "cut the source"
        )
    if config.target_kind == "dag" and most > config.link_positions:
        raise ConfigError(
            f"a source of {max_source} tokens needs a graph of {most} slots, but link_positions is "
            f"{config.link_positions}: lower decoder_length_ratio, set decoder_length_max, or cut the source"
        )
    if config.decoder_positions == "shared" and max_source > available:
        raise ConfigError(
            f"a source has {max_source} tokens, but the decoder has {available} positions: cut the source, or set "
            "decoder_positions to 'absolute'"
        )
