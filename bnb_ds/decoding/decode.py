"""Decodes sources with a trained model, in one parallel pass over each batch.

Sources are sorted by length and cut into batches by a token budget. The arg-max is fused with the projection, and
repeats are merged on the device. Outputs are returned in the order of the input. `bnb_ds.decoding.options` says how an
output is chosen.

Shapes: B sequences, L source columns, T decoder slots of the longest sequence (in packed form: of all), H hidden size,
W hypotheses and K candidate lengths of a source.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, overload

import numpy as np
import torch
from torch import Tensor
from transformers.modeling_outputs import ModelOutput

from bnb_ds.common.packing import PackedInputs, PackedLayout, on_host
from bnb_ds.ctc.greedy import linear_argmax
from bnb_ds.decoding.batching import default_token_budget, plan_batches
from bnb_ds.decoding.graph import Decoded, decode_graph, reading_bias
from bnb_ds.decoding.lengths import decode_lengths, num_hypotheses, read_off
from bnb_ds.decoding.options import DecodeOptions
from bnb_ds.decoding.refinement import rescored
from bnb_ds.decoding.search import Slots, ctc_score, refine
from bnb_ds.model.backbones.entries import positions_of
from bnb_ds.model.configuration import BnbConfig
from bnb_ds.model.lm_head_model import BnbLMHeadModel
from bnb_ds.model.outputs import FILLED


@dataclass
class GenerateOutput(ModelOutput):
    """The output of `generate` with ``return_scores``.

    Attributes:
        sequences: int64 [B, length of the longest output], padded with ``config.pad_token_id`` (0 if that is None).
        scores: float64 [B], log-probability of each output in nats. With CTC, it is summed over all alignments. With
            length classification, it is that of the tokens, given the length. A language model does not count. With
            ``refinement`` it is given the tokens that slots saw: with CTC in the last pass, else in the pass that wrote
            the token.
        lengths: int64 [B], tokens of each output.
    """

    sequences: Tensor = FILLED
    scores: Tensor = FILLED
    lengths: Tensor = FILLED


@overload
def generate(
    model: BnbLMHeadModel,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    token_type_ids: Tensor | None = None,
    *,
    return_scores: Literal[True],
    options: DecodeOptions | None = None,
    **changes: Any,
) -> GenerateOutput: ...


@overload
def generate(
    model: BnbLMHeadModel,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    token_type_ids: Tensor | None = None,
    *,
    return_scores: Literal[False] = False,
    options: DecodeOptions | None = None,
    **changes: Any,
) -> Tensor: ...


@overload
def generate(
    model: BnbLMHeadModel,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    token_type_ids: Tensor | None = None,
    *,
    return_scores: bool,
    options: DecodeOptions | None = None,
    **changes: Any,
) -> Tensor | GenerateOutput: ...


@torch.inference_mode()
def generate(
    model: BnbLMHeadModel,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    token_type_ids: Tensor | None = None,
    *,
    return_scores: bool = False,
    options: DecodeOptions | None = None,
    **changes: Any,
) -> Tensor | GenerateOutput:
    """Decode all positions at once.

    With CTC, greedy decoding takes the best token of each slot, merges repeats and then drops blanks. With
    ``beam_size`` above 1, the prefix beam search is used. With length classification, each slot of the predicted length
    gives its best token. With ``length_beam`` above 1, several lengths are decoded in one batch, and the one with the
    highest mean log-probability of its tokens is kept. With a graph of slots, ``strategy`` says how a path is chosen.
    With ``refinement``, further passes of the decoder see tokens of the passes before.

    In float32 an output does not depend on the other sources in the batch, unless logits differ by no more than
    rounding. Call ``model.eval()`` first: this function does not change the model's mode, and in training mode dropout
    is active.

    Args:
        model: the model.
        input_ids: int64 [B, L].
        attention_mask: [B, L], not 0 at real tokens; None: every token except ``config.source_pad_token_id`` is real.
        token_type_ids: int64 [B, L]; None: all 0.
        return_scores: return a `GenerateOutput` with the log-probability of each output.
        options: how outputs are chosen; None: the model's defaults.
        changes: fields of `DecodeOptions` that replace those of ``options``.

    Returns:
        int64 [B, length of the longest output], padded with ``config.pad_token_id`` (0 if that is None).

    Raises:
        ConfigError: an unknown field, a value out of range, or a value that does not fit the model.
    """
    config = model.config
    options = DecodeOptions.of(options or DecodeOptions.of_model(config), changes)
    options.check(config)
    if attention_mask is None and config.source_pad_token_id is not None:
        attention_mask = input_ids != config.source_pad_token_id
    lengths = _lengths_of(input_ids, attention_mask)
    batches = _cut(input_ids, lengths, config, options)
    parts = []
    for rows in batches:
        given: tuple[Any, ...] = (input_ids, attention_mask, token_type_ids)
        if len(batches) > 1:
            index = torch.tensor(rows).to(input_ids.device, non_blocking=True)
            given = tuple(None if tensor is None else tensor.index_select(0, index) for tensor in given)
        ids, mask, types = given
        inputs = model.model.pack(ids, mask, types, host_lengths=None if lengths is None else lengths[rows])
        parts.append(decode_batch(model, inputs, options, with_scores=return_scores))
    joined = _joined(parts, [row for rows in batches for row in rows], config.pad_token_id or 0)
    return joined if return_scores else joined.sequences


@torch.inference_mode()
def generate_rows(
    model: BnbLMHeadModel,
    rows: Sequence[Sequence[int]],
    options: DecodeOptions,
    *,
    with_scores: bool = False,
) -> list[tuple[list[int], float | None]]:
    """`generate` for lists. It returns the output tokens of each source, and its score if asked for, in their order.

    With ``decoder_length`` ``"padded"`` every source is padded to the encoder's number of positions, as in the
    reference implementation. So its output does not depend on the other sources.

    Args:
        model: the model.
        rows: token ids of the sources, at least one each.
        options: how outputs are chosen; the caller has checked them.
        with_scores: whether to compute scores; without it they are None.
    """
    config, device = model.config, model.device
    budget = options.token_budget or default_token_budget(device)
    lengths = [len(row) for row in rows]
    if config.decoder_length == "padded":
        lengths = [positions_of(config.encoder)] * len(rows)
    outputs: list[tuple[list[int], float | None]] = [([], None)] * len(rows)
    pending = []
    for batch in plan_batches(lengths, config, budget, num_hypotheses(lengths, config, options)):
        inputs = inputs_of_rows(model, [rows[index] for index in batch])
        pending.append((batch, decode_batch(model, inputs, options, with_scores=with_scores)))
    # Only here does the host wait for the device.
    decoded_B = on_host([tensor for _, decoded in pending for tensor in (decoded.ids, decoded.lengths)])
    scores_B = on_host([decoded.scores for _, decoded in pending if decoded.scores is not None])
    for number, (batch, _) in enumerate(pending):
        ids, ends = decoded_B[2 * number].tolist(), decoded_B[2 * number + 1].tolist()
        scores = scores_B[number].tolist() if scores_B else [None] * len(batch)
        for place, index in enumerate(batch):
            outputs[index] = (ids[place][: ends[place]], scores[place])
    return outputs


def decode_batch(
    model: BnbLMHeadModel,
    inputs: PackedInputs,
    options: DecodeOptions,
    *,
    with_scores: bool = False,
    target_lengths_B: Tensor | None = None,
) -> Decoded:
    """Decode one batch of any size. Call it in inference mode, with options that are checked.

    Args:
        model: the model.
        inputs: the sources.
        options: how outputs are chosen.
        with_scores: whether to compute scores.
        target_lengths_B: int64 [B], target tokens that a model with length classification opens slots for; None: those
            that it predicts. With one token a slot also [B, K], the candidates of each source.
    """
    if model.config.target_kind == "dag":
        return decode_graph(model, inputs, options, with_scores=with_scores, target_lengths_B=target_lengths_B)
    if model.config.target_kind == "token":
        decoded = decode_lengths(model, inputs, options, target_lengths_B)
        return decoded if with_scores else replace(decoded, scores=None)
    encoded = model.model.encode(inputs)
    bias_V = reading_bias(model, options)
    states = rescored(model, encoded, model.model.open(encoded, target_lengths_B), bias_V, options)
    slots = Slots(states.hidden, states.weight, bias_V, states.layout, model.config.blank_token_id)
    if options.beam_size == 1:
        best_T = linear_argmax(slots.hidden, slots.weight, slots.bias)
        ids_BT, lengths_B = read_off(best_T, slots.layout, model.config)
        ids_BT, lengths_B = refine(slots, options, ids_BT, lengths_B)
    else:
        ids_BT, lengths_B = refine(slots, options)
    scores_B = ctc_score(slots, ids_BT, lengths_B) if with_scores else None
    return Decoded(ids_BT, lengths_B, scores_B)


def greedy_rows(best_T: Tensor, lengths_B: Tensor, config: BnbConfig) -> list[Tensor]:
    """Greedy outputs, int64 [n] each on the CPU.

    Args:
        best_T: int64 [sum of lengths_B], the best token of each slot.
        lengths_B: int64 [B], slots of each sequence.
        config: of the model.
    """
    layout = PackedLayout.from_host(lengths_B.cpu().numpy(), best_T.device)
    ids_BT, written_B = on_host(read_off(best_T, layout, config))
    return [row[:length] for row, length in zip(ids_BT, written_B.tolist(), strict=True)]


def _lengths_of(input_ids: Tensor, attention_mask: Tensor | None) -> np.ndarray | None:
    """int64 [B], real tokens of each row; None without a mask of the right shape. The host waits for the device."""
    if attention_mask is None or attention_mask.shape != input_ids.shape:
        return None
    return (attention_mask != 0).sum(1).cpu().numpy()


def _cut(input_ids: Tensor, lengths_B: np.ndarray | None, config: BnbConfig, options: DecodeOptions) -> list[list[int]]:
    """The rows of each batch. With ``"padded"``, rows keep order and width, because outputs depend on the width."""
    batch_size, num_columns = input_ids.shape
    budget = options.token_budget or default_token_budget(input_ids.device)
    lengths = [num_columns] * batch_size
    if lengths_B is not None and config.decoder_length != "padded":
        lengths = lengths_B.tolist()
    batches = plan_batches(lengths, config, budget, num_hypotheses(lengths, config, options))
    return batches if len(batches) > 1 else [list(range(batch_size))]


def _joined(parts: list[Decoded], order: list[int], pad: int) -> GenerateOutput:
    """Outputs of all batches in one tensor, in the order of the input. Only here does the host wait for the device."""
    device = parts[0].ids.device
    lengths = torch.cat([part.lengths for part in parts])
    longest = int(lengths.max())
    sequences = torch.full((lengths.numel(), longest), pad, dtype=torch.int64, device=device)
    begin = 0
    for part in parts:
        rows, width = part.ids.shape[0], min(part.ids.shape[1], longest)
        beyond = torch.arange(width, device=device) >= part.lengths[:, None]
        sequences[begin : begin + rows, :width] = part.ids[:, :width].masked_fill(beyond, pad)
        begin += rows
    back = torch.empty(len(order), dtype=torch.int64)
    back[torch.tensor(order, dtype=torch.int64)] = torch.arange(len(order))
    back = back.to(device, non_blocking=True)
    scores = FILLED
    if parts[0].scores is not None:
        scores = torch.cat([part.scores for part in parts if part.scores is not None]).index_select(0, back)
    return GenerateOutput(
        sequences=sequences.index_select(0, back), scores=scores, lengths=lengths.index_select(0, back)
    )


def inputs_of_rows(model: BnbLMHeadModel, rows: Sequence[Sequence[int]]) -> PackedInputs:
    """The model's inputs for sources of at least one token each, padded as `generate_rows` says."""
    device = model.device
    if model.config.decoder_length == "padded":
        width = positions_of(model.config.encoder)
        ids = torch.full((len(rows), width), model.config.source_pad_token_id or 0)
        mask = torch.zeros_like(ids)
        for place, row in enumerate(rows):
            ids[place, : len(row)] = torch.tensor(row)
            mask[place, : len(row)] = 1
        return model.model.pack(ids.to(device, non_blocking=True), mask.to(device, non_blocking=True))
    lengths = [len(row) for row in rows]
    flat = torch.tensor([token for row in rows for token in row], dtype=torch.int64)
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32)
    return model.model.pack(flat.to(device, non_blocking=True), cu_seqlens=cu_seqlens)
