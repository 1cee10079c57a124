"""Decodes models with length classification and one token a slot: several lengths for each source, the best is kept.

Shapes: B sequences, T decoder slots of the longest sequence (in packed form: of all), K candidate lengths of a source.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bnb_ds.common.packing import PackedInputs, PackedLayout
from bnb_ds.ctc.greedy import collapse
from bnb_ds.decoding.graph import Decoded, reading_bias
from bnb_ds.decoding.options import DecodeOptions
from bnb_ds.decoding.refinement import written
from bnb_ds.decoding.slotwise import without_bad_words
from bnb_ds.model.backbones.entries import positions_of
from bnb_ds.model.configuration import BnbConfig
from bnb_ds.model.length import most_lengths
from bnb_ds.model.lm_head_model import BnbLMHeadModel
from bnb_ds.model.network import Encoded


def read_off(best_T: Tensor, layout: PackedLayout, config: BnbConfig) -> tuple[Tensor, Tensor]:
    """Outputs int64 [B, T] and their lengths int64 [B], from ``best`` of `bnb_ds.model.outputs.BnbOutput`, packed."""
    if config.target_kind == "dag":
        ids_BT = layout.pad(best_T, -1)
        return ids_BT.masked_fill(ids_BT < 0, config.pad_token_id or 0), (ids_BT >= 0).sum(1)
    if config.target_kind == "token":
        return layout.pad(best_T, config.blank_token_id), layout.lengths
    return collapse(layout.pad(best_T, config.blank_token_id), layout.lengths, config.blank_token_id)


def decode_lengths(
    model: BnbLMHeadModel, inputs: PackedInputs, options: DecodeOptions, target_lengths_B: Tensor | None
) -> Decoded:
    """Decode several lengths for each source in one batch of the decoder, and keep the best."""
    encoded = model.model.encode(inputs)
    lengths_BK = _candidate_lengths(model, encoded, options, target_lengths_B)
    num_candidates = lengths_BK.shape[1]
    repeated = _repeat(encoded, num_candidates) if num_candidates > 1 else encoded
    slots = model.model.open(repeated, lengths_BK.flatten())
    bias_V = reading_bias(model, options)
    states, best_T, log_probs_T = written(model, repeated, slots, bias_V, options)
    if options.bad_words:
        head = (states.hidden, states.weight, bias_V)
        best_T, log_probs_T = without_bad_words(
            best_T, log_probs_T, head, slots.layout, options.bad_words, options.beam_classes
        )
    sums_BK = slots.layout.pad(log_probs_T.double()).sum(1).unflatten(0, (-1, num_candidates))
    chosen_B = (sums_BK / lengths_BK).argmax(1) + torch.arange(
        0, sums_BK.numel(), num_candidates, device=sums_BK.device
    )
    ids, lengths = read_off(best_T, slots.layout, model.config)
    return Decoded(
        ids.index_select(0, chosen_B), lengths.index_select(0, chosen_B), sums_BK.flatten().index_select(0, chosen_B)
    )


def _candidate_lengths(
    model: BnbLMHeadModel, encoded: Encoded, options: DecodeOptions, target_lengths_B: Tensor | None
) -> Tensor:
    """int64 [B, K]: the given lengths of each source, or those that the model predicts."""
    if target_lengths_B is not None:
        return target_lengths_B if target_lengths_B.dim() == 2 else target_lengths_B[:, None]
    num_candidates, longest = options.length_beam, _longest(model.config, options)
    if num_candidates > 1:
        lengths_B = encoded.layout.lengths_on_host()
        num_candidates = min(num_candidates, most_lengths(lengths_B, model.config, options.min_length, longest))
    predictor, logits_BC = model.model.length_predictor, encoded.length_logits
    assert predictor is not None
    assert logits_BC is not None
    return predictor.best(logits_BC, encoded.layout.lengths, num_candidates, options.min_length, longest)


def num_hypotheses(source_lengths: Sequence[int], config: BnbConfig, options: DecodeOptions) -> int:
    """Outputs that are followed for each of these sources: a beam of lengths has no more than can be predicted."""
    if config.target_kind != "token" or options.length_beam == 1 or not len(source_lengths):
        return options.num_hypotheses
    most = most_lengths(source_lengths, config, options.min_length, _longest(config, options))
    return min(options.num_hypotheses, most)


def _longest(config: BnbConfig, options: DecodeOptions) -> int | None:
    """The greatest length that a prediction may have; None: any."""
    if config.decoder_positions != "absolute":
        return options.max_length
    positions = positions_of(config.decoder)  # a slot needs a position of its own
    return min(options.max_length or positions, positions)


def _repeat(encoded: Encoded, times: int) -> Encoded:
    """Each source repeated ``times`` times, with its copies one after the other."""
    layout = encoded.layout
    wide = PackedLayout.from_host(layout.lengths_on_host().repeat(times), layout.cu_seqlens.device)
    source_N = layout.cu_seqlens.long().index_select(0, wide.sequence_ids // times) + wide.position_ids
    return encoded.at(wide, source_N)
