"""Decodes sources with a model whose slots are a graph.

Shapes: B sequences, T decoder slots of the longest sequence, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from bnb_ds.common.packing import PackedInputs, on_host
from bnb_ds.common.randomness import hash64
from bnb_ds.ctc.greedy import lowered_blank
from bnb_ds.decoding.options import DecodeOptions
from bnb_ds.model.lm_head_model import BnbLMHeadModel
from bnb_ds.targets.dag_target import output_log_probs
from bnb_ds.targets.interface import ReadOptions, SlotStates


@dataclass(frozen=True, eq=False)
class Decoded:
    """Outputs of one batch: int64 [B, T], their lengths int64 [B], and their scores float64 [B] if asked for."""

    ids: Tensor
    lengths: Tensor
    scores: Tensor | None = None


def decode_graph(
    model: BnbLMHeadModel,
    inputs: PackedInputs,
    options: DecodeOptions,
    *,
    with_scores: bool = False,
    target_lengths_B: Tensor | None = None,
) -> Decoded:
    """`bnb_ds.decoding.decode.decode_batch` of a graph."""
    encoded = model.model.encode(inputs)
    slots = model.model.open(encoded, target_lengths_B)
    states = model.states(encoded, slots, options.exit_entropy, ends_early=options.ends_early)
    states = replace(states, bias=reading_bias(model, options))
    read = ReadOptions(options.dag_options(), model.config.pad_token_id or 0)
    if read.dag.strategy == "sample":
        read = replace(read, keys=source_keys(inputs, options.seed))
    ids_BT, lengths_B = model.target.decode(states, read)
    if options.has_rules and read.dag.strategy != "beam":
        rows = zip(*(tensor.tolist() for tensor in on_host((ids_BT, lengths_B))), strict=True)
        broken = [row for row, (ids, end) in enumerate(rows) if not read.dag.beam.allow(ids[:end])]
        if broken:
            # Only the beam search can go round a word, or round an n-gram that was there before.
            read = replace(read, dag=replace(read.dag, strategy="beam"))
            index = torch.tensor(broken, device=ids_BT.device)
            found_RT, found_R = model.target.decode(_rows(states, broken), read)
            ids_BT[index, : found_RT.shape[1]] = found_RT
            lengths_B[index] = found_R
    scores_B = output_log_probs(states, ids_BT, lengths_B) if with_scores else None
    return Decoded(ids_BT, lengths_B, scores_B)


def source_keys(inputs: PackedInputs, seed: int) -> np.ndarray:
    """uint64 [B], hashes of the seed and of each source: draws depend on nothing else; waits for the device once."""
    given = (inputs.input_ids.long(), inputs.layout.position_ids.long(), inputs.layout.cu_seqlens.long())
    tokens, places, starts = (tensor.numpy() for tensor in on_host(given))
    # The hash of a source is the sum of the hashes of its tokens and their places.
    words = hash64(tokens.astype(np.uint64), places)
    sums = np.concatenate((np.zeros(1, np.uint64), words.cumsum()))
    return hash64(seed, sums[starts[1:]] - sums[starts[:-1]])


def _rows(states: SlotStates, rows: list[int]) -> SlotStates:
    """The slots of these sequences."""
    layout, places = states.layout.rows(rows)
    longest = layout.max_seqlen
    assert states.links is not None
    links = torch.stack([states.links[row, :longest, :longest] for row in rows])
    return replace(states, hidden=states.hidden.index_select(0, places), layout=layout, links=links)


def reading_bias(model: BnbLMHeadModel, options: DecodeOptions) -> Tensor:
    """The head's bias [V] to read outputs with: bad words of one token switched off, the blank lowered."""
    bias_V = model.lm_head.bias
    if options.blank_penalty:
        bias_V = lowered_blank(bias_V, model.config.blank_token_id, options.blank_penalty)
    if not options.banned_tokens:
        return bias_V
    banned = torch.tensor(options.banned_tokens).to(bias_V.device, non_blocking=True)
    return bias_V.index_fill(0, banned, -torch.inf)
