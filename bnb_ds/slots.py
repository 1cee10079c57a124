"""How many slots the decoder opens for each source, and what each slot starts from.

Shapes: B sequences, N real source tokens of all sequences together, T decoder slots of all sequences together.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from bnb_ds.configuration import BnbConfig
from bnb_ds.errors import ConfigError
from bnb_ds.packing import PackedLayout

Lengths = TypeVar("Lengths", np.ndarray, Tensor)


def decoder_lengths(source_lengths: Lengths, config: BnbConfig) -> Lengths:
    """Decoder slots of sources with these numbers of real tokens: ``clamp(ceil(ratio * n) + offset, min, max)``.

    Args:
        source_lengths: integers of any shape, a NumPy array or a torch tensor on any device. The arithmetic is exact,
            so that loader and model agree.
        config: gives the policy and its numbers.

    Returns:
        int64 of the same kind and shape.
    """
    lengths = source_lengths.long() if isinstance(source_lengths, Tensor) else np.asarray(source_lengths, np.int64)
    ratio = Fraction(str(config.decoder_length_ratio))
    slots = (lengths * ratio.numerator + ratio.denominator - 1) // ratio.denominator + config.decoder_length_offset
    return slots.clip(config.decoder_length_min, config.decoder_length_max)


@dataclass(frozen=True, eq=False)
class DecoderSlots:
    """The decoder's input but for the latents themselves.

    Attributes:
        layout: sequences of the slots.
        source_index: int64 [T], the packed source token whose latent each slot takes.
        position_ids: int64 [T], rows of the position embedding.
        token_type_ids: int64 [T], rows of the token type embedding.
    """

    layout: PackedLayout
    source_index: Tensor
    position_ids: Tensor
    token_type_ids: Tensor


def open_slots(source: PackedLayout, config: BnbConfig) -> DecoderSlots:
    """Lay out the decoder's slots for a batch: slot j of T takes source token ``floor(j * n / T)`` of n.

    Raises:
        ConfigError: there are more slots or source tokens than position embeddings for them.
    """
    source_lengths_B = source.lengths
    lengths_B = decoder_lengths(source_lengths_B, config)
    # The one place where the host waits for the device: shapes of what follows depend on the lengths.
    num_slots, max_slots = torch.stack((lengths_B.sum(), lengths_B.max())).tolist()
    _check_positions(max_slots, source.max_seqlen, config)
    layout = PackedLayout.from_lengths(lengths_B, num_tokens=num_slots, max_seqlen=max_slots)
    sequence_T, slot_T = layout.sequence_ids, layout.position_ids
    token_T = slot_T * source_lengths_B.index_select(0, sequence_T) // lengths_B.index_select(0, sequence_T)
    source_index_T = source.cu_seqlens.index_select(0, sequence_T).long() + token_T
    if config.decoder_positions == "absolute":
        return DecoderSlots(layout, source_index_T, slot_T, torch.zeros_like(slot_T))
    repeats_T = torch.zeros_like(source_index_T)
    repeats_T[1:] = source_index_T[1:] == source_index_T[:-1]
    return DecoderSlots(layout, source_index_T, token_T, repeats_T)


def _check_positions(max_slots: int, max_source: int, config: BnbConfig) -> None:
    available = config.decoder.max_position_embeddings
    if config.decoder_positions == "absolute" and max_slots > available:
        raise ConfigError(
            f"a source of {max_source} tokens opens {max_slots} decoder slots, but decoder.max_position_embeddings is "
            f"{available}: set decoder_positions to 'shared', lower decoder_length_ratio, set decoder_length_max, or "
            "cut the source"
        )
    if config.decoder_positions == "shared" and max_source > available:
        raise ConfigError(
            f"a source has {max_source} tokens, but decoder.max_position_embeddings is {available}: cut the source"
        )
