"""Attention over unpadded tokens, called by Hugging Face's BERT layers.

Hidden states travel as one row of real tokens. Only here are they laid out as sequences, because attention is the one
operation that needs to know them. `packed_attention` is registered as the attention implementation ``"bnb_packed"``;
the layers pass it the layouts through their keyword arguments.

Shapes: B sequences, N real tokens of all sequences together, M tokens of the longest one, A heads, D head size.
Mq, Nq are those of the queries; Mk, Nk those of the keys.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.models.bert.modeling_bert import BertCrossAttention

from bnb_ds.packing import PackedLayout

IMPLEMENTATION = "bnb_packed"


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
        module: the calling BERT attention; a cross-attention takes its keys from ``memory_layout``.
        query: float [1, A, Nq, D]; ``key`` and ``value``: float [1, A, Nk, D].
        attention_mask: always None, since packed rows hold no padding.
        scaling: factor on the scores, ``D ** -0.5`` when None.
        dropout: probability with which a weight is dropped; the caller passes 0 outside training.
        layout: sequences of the queries (and of the keys in self-attention).
        memory_layout: sequences of the keys in cross-attention.

    Returns:
        float [1, Nq, A, D], and None in place of the attention weights, which are never formed.
    """
    assert attention_mask is None, "packed rows hold no padding to mask"
    key_layout = memory_layout if isinstance(module, BertCrossAttention) else layout
    attended_BAMD = scaled_dot_product_attention(
        _sequences(query, layout),
        _sequences(key, key_layout),
        _sequences(value, key_layout),
        attn_mask=key_layout.key_mask,
        dropout_p=dropout,
        scale=scaling,
    )
    return layout.unpad(attended_BAMD.transpose(1, 2))[None], None


def _sequences(packed_1AND: Tensor, layout: PackedLayout) -> Tensor:
    """[1, A, N, D] -> [B, A, M, D]."""
    return layout.pad(packed_1AND[0].transpose(0, 1)).transpose(1, 2)


AttentionInterface.register(IMPLEMENTATION, packed_attention)
