"""Attention within a window: a token reads those of its sequence that are at most so many places away.

A row of packed tokens needs no padding for this. It is cut into blocks of queries, and a block reads itself and the
tokens that are near it. Work and memory grow with the number of tokens, not with its square. Two tokens of one sequence
are as far from each other in the row as in the sequence, so blocks need not begin where sequences do.

Shapes: N tokens of all sequences together, A heads, D head size; C blocks of Q queries, each with K keys near it.

Source: Beltagy et al., Longformer, 2020, section 3.1 (sliding window).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.functional import scaled_dot_product_attention

from bnb_ds.common.packing import PackedLayout

# Smaller blocks read fewer keys in vain, but there are more of them. On a CPU, 128 queries are as fast as 64 or 256.
_FEWEST_QUERIES = 128


def attend_in_blocks(
    query_NAD: Tensor,
    key_NAD: Tensor,
    value_NAD: Tensor,
    layout: PackedLayout,
    key_layout: PackedLayout,
    dropout: float,
    scaling: float | None,
    window: int,
) -> Tensor:
    """SDPA on blocks of queries and the keys near them: for every device, for compilers, and with masked tokens.

    Args:
        query_NAD: float [N, A, D].
        key_NAD: float [N, A, D].
        value_NAD: float [N, A, D].
        layout: layout of the row.
        key_layout: the same; attention within a window is always self-attention.
        dropout: probability that a weight is dropped.
        scaling: factor on the scores; None: ``D ** -0.5``.
        window: the largest distance of a key from its query, in tokens.

    Returns:
        float [N, A, D].
    """
    num_tokens, device = query_NAD.shape[0], query_NAD.device
    size = max(_FEWEST_QUERIES, 2 * window)  # so a key is near two blocks at most
    num_blocks = (num_tokens + size - 1) // size
    first_C1 = torch.arange(num_blocks, device=device)[:, None] * size
    query_place_CQ = first_C1 + torch.arange(size, device=device)
    key_place_CK = first_C1 + torch.arange(-window, size + window, device=device)
    mask_C1QK = _near(layout, query_place_CQ, key_place_CK, window)[:, None]
    keys = key_place_CK.clamp(0, num_tokens - 1).flatten()
    blocks_CQAD = F.pad(query_NAD, (0, 0, 0, 0, 0, num_blocks * size - num_tokens)).unflatten(0, (num_blocks, size))
    near_CKAD = [rows.index_select(0, keys).unflatten(0, (num_blocks, -1)) for rows in (key_NAD, value_NAD)]
    attended_CAQD = scaled_dot_product_attention(
        blocks_CQAD.transpose(1, 2),
        near_CKAD[0].transpose(1, 2),
        near_CKAD[1].transpose(1, 2),
        attn_mask=mask_C1QK,
        dropout_p=dropout,
        scale=scaling,
    )
    return attended_CAQD.transpose(1, 2).flatten(0, 1)[:num_tokens]


def _near(layout: PackedLayout, query_place_CQ: Tensor, key_place_CK: Tensor, window: int) -> Tensor:
    """bool [C, Q, K], whether a query reads a key. Every query reads itself, because a softmax over nothing is NaN."""
    last = layout.num_tokens - 1
    # Places behind the row stand for copies of its last token, which their block holds; nobody reads what they get.
    query_CQ1 = query_place_CQ.clamp(max=last)[:, :, None]
    key_C1K, real_key_C1K = key_place_CK.clamp(0, last)[:, None], key_place_CK[:, None]
    sequences_N = layout.sequence_ids
    is_near = (query_CQ1 - real_key_C1K).abs() <= window
    is_near &= sequences_N[query_CQ1] == sequences_N[key_C1K]
    is_near &= key_C1K == real_key_C1K
    if layout.masks_tokens:
        assert layout.key_mask is not None
        is_near &= layout.key_mask.flatten()[key_C1K]
        is_near |= query_CQ1 == real_key_C1K
    return is_near
