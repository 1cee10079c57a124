"""Attention of packed sequences by kernels that take the sequences' starts (``cu_seqlens``), for GPUs.

``flash`` and ``efficient`` call torch's operators directly. SDPA on nested tensors (``jagged``) reaches the same
kernels through some 2 ms of Python a call, which is more than the kernels take.

Shapes: A heads, D head size; Nq and Nk tokens of all queries and keys.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from bnb_ds.common.packing import PackedLayout
from bnb_ds.model.varlen.windows import attend_in_blocks

#: query [Nq, A, D], key and value [Nk, A, D], layouts of queries and keys, dropout, scaling (None: ``D ** -0.5``)
#: -> [Nq, A, D]
Way = Callable[[Tensor, Tensor, Tensor, PackedLayout, PackedLayout, float, "float | None"], Tensor]
#: the same with one more argument: the largest distance of a key from its query, in tokens; only self-attention has it
WindowWay = Callable[[Tensor, Tensor, Tensor, PackedLayout, PackedLayout, float, "float | None", int], Tensor]

_NO_MASK = 0


def attend_flash(
    query_NAD: Tensor,
    key_NAD: Tensor,
    value_NAD: Tensor,
    layout: PackedLayout,
    key_layout: PackedLayout,
    dropout: float,
    scaling: float | None,
    window: int | None = None,
) -> Tensor:
    """torch's flash attention: 16 bits, a head size that is a multiple of 8 and at most 256, capability 8.0."""
    attended_NAD, *_ = torch.ops.aten._flash_attention_forward(
        query_NAD,
        key_NAD,
        value_NAD,
        layout.cu_seqlens,
        key_layout.cu_seqlens,
        layout.max_seqlen,
        key_layout.max_seqlen,
        dropout,
        False,  # never causal
        False,  # no mask for debugging
        scale=scaling,
        window_size_left=window,
        window_size_right=window,
    )
    return attended_NAD


def attend_efficient(
    query_NAD: Tensor,
    key_NAD: Tensor,
    value_NAD: Tensor,
    layout: PackedLayout,
    key_layout: PackedLayout,
    dropout: float,
    scaling: float | None,
) -> Tensor:
    """torch's memory-efficient attention: also float32, and older GPUs; a head size that is a multiple of 8."""
    # Only a backward pass reads the logarithms of the sums.
    needs_sums = torch.is_grad_enabled() and any(x.requires_grad for x in (query_NAD, key_NAD, value_NAD))
    attended_1NAD, *_ = torch.ops.aten._efficient_attention_forward(
        query_NAD[None],
        key_NAD[None],
        value_NAD[None],
        None,  # no bias
        layout.cu_seqlens,
        key_layout.cu_seqlens,
        layout.max_seqlen,
        key_layout.max_seqlen,
        dropout,
        _NO_MASK,
        needs_sums,
        scale=scaling,
    )
    return attended_1NAD[0]


def attend_jagged(
    query_NAD: Tensor,
    key_NAD: Tensor,
    value_NAD: Tensor,
    layout: PackedLayout,
    key_layout: PackedLayout,
    dropout: float,
    scaling: float | None,
) -> Tensor:
    """SDPA on jagged nested tensors, which pads head sizes and chooses a kernel by itself."""
    attended = scaled_dot_product_attention(
        _jagged(query_NAD, layout),
        _jagged(key_NAD, key_layout),
        _jagged(value_NAD, key_layout),
        dropout_p=dropout,
        scale=scaling,
    )
    return attended.transpose(1, 2).values()


def _jagged(rows_NAD: Tensor, layout: PackedLayout) -> Tensor:
    """The sequences as a nested tensor [B, A, jagged, D]. Its bounds are given, so the host never waits for a GPU."""
    nested = torch.nested.nested_tensor_from_jagged(
        rows_NAD.contiguous(), layout.cu_seqlens, min_seqlen=1, max_seqlen=layout.max_seqlen
    )
    return nested.transpose(1, 2)


def attend_flash_attn(
    query_NAD: Tensor,
    key_NAD: Tensor,
    value_NAD: Tensor,
    layout: PackedLayout,
    key_layout: PackedLayout,
    dropout: float,
    scaling: float | None,
    window: int | None = None,
) -> Tensor:
    """The package flash-attn: as `attend_flash`, with any head size of at most 256."""
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
        window_size=(-1, -1) if window is None else (window, window),
    )


def attend_padded(
    query_NAD: Tensor,
    key_NAD: Tensor,
    value_NAD: Tensor,
    layout: PackedLayout,
    key_layout: PackedLayout,
    dropout: float,
    scaling: float | None,
) -> Tensor:
    """SDPA on padded sequences with a mask: for every device, and the only way that can mask tokens."""
    attended_BAMD = scaled_dot_product_attention(
        layout.pad(query_NAD).transpose(1, 2),
        key_layout.pad(key_NAD).transpose(1, 2),
        key_layout.pad(value_NAD).transpose(1, 2),
        attn_mask=key_layout.key_mask,
        dropout_p=dropout,
        scale=scaling,
    )
    return layout.unpad(attended_BAMD.transpose(1, 2))


#: name -> implementation
WAYS: dict[str, Way] = {
    "flash_attn": attend_flash_attn,
    "flash": attend_flash,
    "efficient": attend_efficient,
    "jagged": attend_jagged,
    "padded": attend_padded,
}

#: name -> implementation with a window
WINDOW_WAYS: dict[str, WindowWay] = {
    "flash_attn": attend_flash_attn,
    "flash": attend_flash,
    "blocks": attend_in_blocks,
}
