"""Attention over unpadded tokens, called by Hugging Face's BERT layers.

Hidden states travel as one row of real tokens. Only here are they laid out as sequences, because attention is the one
operation that needs to know them. `packed_attention` is registered as the attention implementation ``"bnb_packed"``;
the layers pass it the layouts through their keyword arguments.

There are five ways to the same numbers, chosen by `attention_way`:

- ``flash_attn``: the varlen kernel of that package, if it is installed; CUDA of capability 8.0 or later, 16 bits.
- ``jagged``: torch's own varlen kernels, through SDPA on jagged nested tensors; the same GPUs, any float type.
- ``single``: one sequence after the other (:mod:`bnb_ds.model.dropout_attention`); dropout on a CPU.
- ``each``: SDPA for one sequence after the other, neither padded nor masked; long sequences on a CPU.
- ``padded``: sequences are padded for SDPA and unpadded after it; every device, V100 and CPU among them.

Shapes: B sequences, N real tokens of all sequences together, M tokens of the longest one, A heads, D head size.
Mq, Nq are those of the queries; Mk, Nk those of the keys.
"""

from __future__ import annotations

import functools
import importlib.util
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.models.bert.modeling_bert import BertCrossAttention

from bnb_ds.common.packing import PackedLayout
from bnb_ds.model.dropout_attention import attend_with_dropout, sequences

IMPLEMENTATION = "bnb_packed"

_FLASH_LARGEST_HEAD = 256
# Mean length from which calls for single sequences cost a CPU less than padding does: 1.2 to 2.2 times as fast on two
# cores, whether the lengths are alike or not.
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
    rows_NAD = [tensor[0].transpose(0, 1) for tensor in (query, key, value)]
    way = _WAYS[attention_way(query, key_layout, dropout)]
    return way(*rows_NAD, layout, key_layout, dropout, scaling)[None], None


def attention_way(query: Tensor, key_layout: PackedLayout, dropout: float) -> str:
    """Which of the ways of this module serves these queries (float [..., D]) and keys with this dropout."""
    # Nothing but `padded` knows a mask, which only the reference's own decoder length needs.
    if key_layout.masks_tokens:
        return "padded"
    if query.device.type == "cpu":
        # A loop over as many sequences as there happen to be would be compiled anew for every number of them.
        if torch.compiler.is_compiling():
            return "padded"
        if dropout > 0:
            return "single"
        is_long = key_layout.num_tokens >= _LONG_TOKENS * key_layout.batch_size
        return "each" if is_long and key_layout.batch_size > 1 else "padded"
    if not query.is_cuda or not _has_varlen_kernels(query.device.index):
        return "padded"
    is_half = query.dtype in (torch.float16, torch.bfloat16)
    if is_half and query.shape[-1] <= _FLASH_LARGEST_HEAD and _has_flash_attn():
        return "flash_attn"
    return "jagged"


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
        scaled_dot_product_attention(*(part_AnD[None] for part_AnD in parts), dropout_p=dropout, scale=scaling)
        for parts in sequences(lengths, (query_NAD,), (key_NAD, value_NAD))
    ]
    return torch.cat([out_1AnD[0].transpose(0, 1) for out_1AnD in attended])


def _attend_padded(
    query_NAD: Tensor,
    key_NAD: Tensor,
    value_NAD: Tensor,
    layout: PackedLayout,
    key_layout: PackedLayout,
    dropout: float,
    scaling: float | None,
) -> Tensor:
    attended_BAMD = scaled_dot_product_attention(
        layout.pad(query_NAD).transpose(1, 2),
        key_layout.pad(key_NAD).transpose(1, 2),
        key_layout.pad(value_NAD).transpose(1, 2),
        attn_mask=key_layout.key_mask,
        dropout_p=dropout,
        scale=scaling,
    )
    return layout.unpad(attended_BAMD.transpose(1, 2))


def _attend_jagged(
    query_NAD: Tensor,
    key_NAD: Tensor,
    value_NAD: Tensor,
    layout: PackedLayout,
    key_layout: PackedLayout,
    dropout: float,
    scaling: float | None,
) -> Tensor:
    attended = scaled_dot_product_attention(
        _jagged(query_NAD, layout),
        _jagged(key_NAD, key_layout),
        _jagged(value_NAD, key_layout),
        dropout_p=dropout,
        scale=scaling,
    )
    return attended.transpose(1, 2).values()


def _jagged(rows_NAD: Tensor, layout: PackedLayout) -> Tensor:
    """The sequences as a nested tensor [B, A, jagged, D]; with bounds given, so that nothing waits for the device."""
    nested = torch.nested.nested_tensor_from_jagged(
        rows_NAD.contiguous(), layout.cu_seqlens, min_seqlen=1, max_seqlen=layout.max_seqlen
    )
    return nested.transpose(1, 2)


def _attend_flash_attn(
    query_NAD: Tensor,
    key_NAD: Tensor,
    value_NAD: Tensor,
    layout: PackedLayout,
    key_layout: PackedLayout,
    dropout: float,
    scaling: float | None,
) -> Tensor:
    from flash_attn import flash_attn_varlen_func

    return flash_attn_varlen_func(
        query_NAD,
        key_NAD,
        value_NAD,
        layout.cu_seqlens,
        key_layout.cu_seqlens,
        layout.max_seqlen,
        key_layout.max_seqlen,
        dropout_p=dropout,
        softmax_scale=scaling,
        causal=False,
    )


@functools.cache
def _has_varlen_kernels(device_index: int) -> bool:
    return torch.cuda.get_device_capability(device_index) >= (8, 0)


@functools.cache
def _has_flash_attn() -> bool:
    return importlib.util.find_spec("flash_attn") is not None


_WAYS = {
    "each": _attend_each,
    "padded": _attend_padded,
    "single": attend_with_dropout,
    "jagged": _attend_jagged,
    "flash_attn": _attend_flash_attn,
}

AttentionInterface.register(IMPLEMENTATION, packed_attention)
