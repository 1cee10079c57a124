"""Attention of packed sequences by kernels that take the sequences' starts (``cu_seqlens``), for GPUs.

``flash`` and ``efficient`` call torch's operators directly. SDPA on nested tensors (``jagged``) reaches the same
kernels through some 2 ms of Python a call, which is more than the kernels take.

Shapes: A heads, D head size; Nq and Nk tokens of all queries and keys.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from bnb_ds.common.packing import PackedLayout
from bnb_ds.model.varlen.attention_inputs import AttentionInputs, Way
from bnb_ds.model.varlen.windows import attend_in_blocks

_NO_MASK = 0


def attend_flash(inputs: AttentionInputs) -> Tensor:
    """torch's flash attention: 16 bits, a head size that is a multiple of 8 and at most 256, capability 8.0."""
    attended_NAD, *_ = torch.ops.aten._flash_attention_forward(
        *inputs.rows,
        inputs.layout.cu_seqlens,
        inputs.key_layout.cu_seqlens,
        inputs.layout.max_seqlen,
        inputs.key_layout.max_seqlen,
        inputs.dropout,
        False,  # never causal
        False,  # no mask for debugging
        scale=inputs.scaling,
        window_size_left=inputs.window,
        window_size_right=inputs.window,
    )
    return attended_NAD


def attend_efficient(inputs: AttentionInputs) -> Tensor:
    """torch's memory-efficient attention: also float32, and older GPUs; a head size that is a multiple of 8."""
    # Only a backward pass reads the logarithms of the sums.
    needs_sums = torch.is_grad_enabled() and any(x.requires_grad for x in inputs.rows)
    attended_1NAD, *_ = torch.ops.aten._efficient_attention_forward(
        *(row_NAD[None] for row_NAD in inputs.rows),
        None,  # no bias
        inputs.layout.cu_seqlens,
        inputs.key_layout.cu_seqlens,
        inputs.layout.max_seqlen,
        inputs.key_layout.max_seqlen,
        inputs.dropout,
        _NO_MASK,
        needs_sums,
        scale=inputs.scaling,
    )
    return attended_1NAD[0]


def attend_jagged(inputs: AttentionInputs) -> Tensor:
    """SDPA on jagged nested tensors, which pads head sizes and chooses a kernel by itself."""
    attended = scaled_dot_product_attention(
        _jagged(inputs.query_NAD, inputs.layout),
        _jagged(inputs.key_NAD, inputs.key_layout),
        _jagged(inputs.value_NAD, inputs.key_layout),
        dropout_p=inputs.dropout,
        scale=inputs.scaling,
    )
    return attended.transpose(1, 2).values()


def _jagged(rows_NAD: Tensor, layout: PackedLayout) -> Tensor:
    """The sequences as a nested tensor [B, A, jagged, D]. Its bounds are given, so the host never waits for a GPU."""
    nested = torch.nested.nested_tensor_from_jagged(
        rows_NAD.contiguous(), layout.cu_seqlens, min_seqlen=1, max_seqlen=layout.max_seqlen
    )
    return nested.transpose(1, 2)


def attend_flash_attn(inputs: AttentionInputs) -> Tensor:
    """The package flash-attn: as `attend_flash`, with any head size of at most 256."""
    from flash_attn import flash_attn_varlen_func

    return flash_attn_varlen_func(
        *inputs.rows,
        inputs.layout.cu_seqlens,
        inputs.key_layout.cu_seqlens,
        inputs.layout.max_seqlen,
        inputs.key_layout.max_seqlen,
        dropout_p=inputs.dropout,
        softmax_scale=inputs.scaling,
        causal=False,
        window_size=(-1, -1) if inputs.window is None else (inputs.window, inputs.window),
    )


def attend_padded(inputs: AttentionInputs) -> Tensor:
    """SDPA on padded sequences with a mask: for every device, and the only way that can mask tokens."""
    attended_BAMD = scaled_dot_product_attention(
        inputs.layout.pad(inputs.query_NAD).transpose(1, 2),
        inputs.key_layout.pad(inputs.key_NAD).transpose(1, 2),
        inputs.key_layout.pad(inputs.value_NAD).transpose(1, 2),
        attn_mask=inputs.key_layout.key_mask,
        dropout_p=inputs.dropout,
        scale=inputs.scaling,
    )
    return inputs.layout.unpad(attended_BAMD.transpose(1, 2))


#: name -> implementation
WAYS: dict[str, Way] = {
    "flash_attn": attend_flash_attn,
    "flash": attend_flash,
    "efficient": attend_efficient,
    "jagged": attend_jagged,
    "padded": attend_padded,
}

#: name -> implementation with a window
WINDOW_WAYS: dict[str, Way] = {
    "flash_attn": attend_flash_attn,
    "flash": attend_flash,
    "blocks": attend_in_blocks,
}
