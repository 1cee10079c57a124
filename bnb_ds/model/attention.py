"""Attention over unpadded tokens, called by Hugging Face's BERT layers.

Hidden states are one row of real tokens. Attention is the only operation that must know the sequences in this row.
`packed_attention` is registered as the attention implementation ``"bnb_packed"``. The layers pass the layouts to it
through their keyword arguments.

Seven implementations compute the same numbers. `attention_way` chooses one:

- ``flash_attn``, ``flash``, ``efficient``, ``jagged``: varlen kernels for GPUs (`bnb_ds.model.varlen`).
- ``single``: one sequence after the other (:mod:`bnb_ds.model.varlen.dropout_attention`); for dropout on a CPU.
- ``each``: SDPA for one sequence after the other, without padding or mask; for long sequences on a CPU.
- ``padded``: sequences are padded for SDPA and unpadded after it; for every device.

Where a layer reads the keys in a window only, `way_in_window` chooses ``flash_attn``, ``flash``, ``single``,
``each`` for short sequences, or ``blocks`` (:mod:`bnb_ds.model.varlen.windows`), which serves every device.

Shapes: B sequences, N real tokens of all sequences together, M tokens of the longest one, A heads, D head size.
Mq, Nq are those of the queries; Mk, Nk those of the keys.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.models.bert.modeling_bert import BertCrossAttention

from bnb_ds.common.packing import PackedLayout
from bnb_ds.model.varlen.attention_inputs import AttentionInputs, Way
from bnb_ds.model.varlen.dropout_attention import attend_with_dropout
from bnb_ds.model.varlen.kernel_choice import best_way
from bnb_ds.model.varlen.operators import WAYS, WINDOW_WAYS

IMPLEMENTATION = "bnb_packed"

# Mean length from which single sequences are faster on a CPU than padding: 1.2 to 2.2 times as fast on two cores,
# whether the lengths are similar or not.
_LONG_TOKENS = 64
# Longest sequence for which a CPU reads all keys, and masks those out of the window, faster than it reads blocks: a
# block has 256 keys for a window of 64 tokens to each side. The mask has the square of this number of entries.
_SHORT_FOR_A_WINDOW = 384


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    layout: PackedLayout,
    memory_layout: PackedLayout | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Full (never causal) attention within each sequence of a packed row.

    Args:
        module: the calling BERT attention. In cross-attention the layout of the keys is ``memory_layout``.
        query: float [1, A, Nq, D].
        key: float [1, A, Nk, D].
        value: float [1, A, Nk, D].
        attention_mask: always None, because packed rows hold no padding.
        scaling: factor on the scores; None: ``D ** -0.5``.
        dropout: probability that a weight is dropped; the caller passes 0 outside training.
        layout: layout of the queries, and in self-attention of the keys.
        memory_layout: layout of the keys in cross-attention.

    Returns:
        float [1, Nq, A, D], and None in place of the attention weights, which are not kept.
    """
    assert attention_mask is None, "packed rows hold no padding to mask"
    key_layout = memory_layout if isinstance(module, BertCrossAttention) else layout
    assert key_layout is not None, "cross-attention needs the layout of its keys"
    rows_NAD = [tensor[0].transpose(0, 1) for tensor in (query, key, value)]
    inputs = AttentionInputs(rows_NAD[0], rows_NAD[1], rows_NAD[2], layout, key_layout, dropout, scaling)
    return attend(inputs)[None], None


def attend(inputs: AttentionInputs) -> Tensor:
    """Full (never causal) attention of each sequence to its own keys, or to those in a window: float [Nq, A, D]."""
    query_NAD, layout, key_layout, dropout = inputs.query_NAD, inputs.layout, inputs.key_layout, inputs.dropout
    if inputs.window is not None and _holds_all(inputs.window, layout):
        inputs = inputs._replace(window=None)
    if inputs.window is None:
        return _WAYS[attention_way(query_NAD, key_layout, dropout)](inputs)
    assert key_layout is layout, "a window is for self-attention"
    return _WINDOW_WAYS[way_in_window(query_NAD, layout, dropout)](inputs)


def _holds_all(window: int, layout: PackedLayout) -> bool:
    """Whether all tokens read their whole sequence. A graph must hold for lengths other than those it was made with."""
    return not torch.compiler.is_compiling() and layout.max_seqlen <= window + 1


def attention_way(query: Tensor, key_layout: PackedLayout, dropout: float) -> str:
    """The name of the implementation for these queries (float [..., D]) and keys with this dropout."""
    # Only ``padded`` can mask keys. Masks are needed for the reference's decoder length and for fixed shapes.
    if key_layout.masks_tokens:
        return "padded"
    if query.device.type == "cpu":
        # A loop over the sequences would be compiled anew for every number of sequences.
        if torch.compiler.is_compiling():
            return "padded"
        if dropout > 0:
            return "single"
        is_long = key_layout.num_tokens >= _LONG_TOKENS * key_layout.batch_size
        return "each" if is_long and key_layout.batch_size > 1 else "padded"
    # A compiler cannot follow the trials, nor the operators' sizes, which are numbers of the batch.
    if not query.is_cuda or torch.compiler.is_compiling():
        return "padded"
    return best_way(query.device.index, query.dtype, query.shape[-1]).way


def way_in_window(query: Tensor, layout: PackedLayout, dropout: float) -> str:
    """As `attention_way`, for self-attention in a window."""
    if layout.masks_tokens or torch.compiler.is_compiling():
        return "blocks"
    if query.device.type == "cpu":
        if dropout > 0:
            return "single"
        return "each" if layout.max_seqlen <= _SHORT_FOR_A_WINDOW else "blocks"
    if not query.is_cuda:
        return "blocks"
    return best_way(query.device.index, query.dtype, query.shape[-1], in_window=True).way


def _attend_each(inputs: AttentionInputs) -> Tensor:
    lengths, key_lengths = inputs.layout.lengths.tolist(), inputs.key_layout.lengths.tolist()
    is_near_MM = None
    if inputs.window is not None:
        places_M = torch.arange(inputs.layout.max_seqlen, device=inputs.query_NAD.device)
        is_near_MM = (places_M[:, None] - places_M).abs() <= inputs.window
    attended = []
    rows = (tensor.split(of) for tensor, of in zip(inputs.rows, (lengths, key_lengths, key_lengths), strict=True))
    for parts in zip(*rows, strict=True):
        query, key, value = (part.transpose(0, 1)[None] for part in parts)
        count = query.shape[2]
        mask = None if is_near_MM is None else is_near_MM[:count, :count]
        attended.append(scaled_dot_product_attention(query, key, value, mask, inputs.dropout, scale=inputs.scaling))
    return torch.cat([out_1AnD[0].transpose(0, 1) for out_1AnD in attended])


_WAYS: dict[str, Way] = {**WAYS, "each": _attend_each, "single": attend_with_dropout}
_WINDOW_WAYS = {**WINDOW_WAYS, "each": _attend_each, "single": attend_with_dropout}

AttentionInterface.register(IMPLEMENTATION, packed_attention)
