"""Attention over unpadded tokens, called by Hugging Face's BERT layers.

Hidden states are one row of real tokens. Attention is the only operation that must know the sequences in this row.
`packed_attention` is registered as the attention implementation ``"bnb_packed"``. The layers pass the layouts to it
through their keyword arguments.

Seven implementations compute the same numbers. `attention_way` chooses one:

- ``flash_attn``, ``flash``, ``efficient``, ``jagged``: varlen kernels for GPUs (`bnb_ds.model.varlen`).
- ``single``: one sequence after the other (:mod:`bnb_ds.model.varlen.dropout_attention`); for dropout on a CPU.
- ``each``: SDPA for one sequence after the other, without padding or mask; for long sequences on a CPU.
- ``padded``: sequences are padded for SDPA and unpadded after it; for every device.

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
from bnb_ds.model.varlen.dropout_attention import attend_with_dropout, sequences
from bnb_ds.model.varlen.kernel_choice import best_way
from bnb_ds.model.varlen.operators import WAYS

IMPLEMENTATION = "bnb_packed"

# Mean length from which single sequences are faster on a CPU than padding: 1.2 to 2.2 times as fast on two cores,
# whether the lengths are similar or not.
_LONG_TOKENS = 64


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
    query_NAD, key_NAD, value_NAD = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    way = _WAYS[attention_way(query, key_layout, dropout)]
    return way(query_NAD, key_NAD, value_NAD, layout, key_layout, dropout, scaling)[None], None


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


def _attend_each(
    query_NAD: Tensor,
    key_NAD: Tensor,
    value_NAD: Tensor,
    layout: PackedLayout,
    key_layout: PackedLayout,
    dropout: float,
    scaling: float | None,
) -> Tensor:
    lengths = layout.lengths.tolist(), key_layout.lengths.tolist()
    attended = [
        scaled_dot_product_attention(query_AnD[None], key_AnD[None], value_AnD[None], dropout_p=dropout, scale=scaling)
        for query_AnD, key_AnD, value_AnD in sequences(lengths, (query_NAD,), (key_NAD, value_NAD))
    ]
    return torch.cat([out_1AnD[0].transpose(0, 1) for out_1AnD in attended])


_WAYS = {**WAYS, "each": _attend_each, "single": attend_with_dropout}

AttentionInterface.register(IMPLEMENTATION, packed_attention)
