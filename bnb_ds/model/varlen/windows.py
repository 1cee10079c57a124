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

from bnb_ds.model.varlen.attention_inputs import AttentionInputs

# Smaller blocks read fewer keys in vain, but there are more of them. On a CPU, 128 queries are as fast as 64 or 256.
_FEWEST_QUERIES = 128


def attend_in_blocks(inputs: AttentionInputs) -> Tensor:
    """SDPA on blocks of queries and the keys near them: for every device, for compilers, and with masked tokens.

    Args:
        inputs: of self-attention within a window.

    Returns:
        float [N, A, D].
    """
    (query_NAD, key_NAD, value_NAD), layout, window = inputs.rows, inputs.layout, inputs.window
    assert window is not None, "all keys are read"
    num_tokens, device = query_NAD.shape[0], query_NAD.device
    size = max(_FEWEST_QUERIES, 2 * window)  # so a key is near two blocks at most
    num_blocks = (num_tokens + size - 1) // size

    def in_blocks(rows: Tensor, value: int) -> Tensor:
        """[N, ...] -> [C, Q, ...]."""
        behind = num_blocks * size - num_tokens
        return F.pad(rows, (*(0, 0) * (rows.dim() - 1), 0, behind), value=value).unflatten(0, (num_blocks, size))

    def near(rows: Tensor, value: int = 0) -> Tensor:
        """[N, ...] -> [C, K, ...], each block with the last rows of the one before and the first of the next."""
        blocks = in_blocks(rows, value)
        beyond = blocks.new_full((1, window, *rows.shape[1:]), value)
        before = torch.cat((beyond, blocks[:-1, size - window :]))
        return torch.cat((before, blocks, torch.cat((blocks[1:, :window], beyond))), 1)

    # Places beyond the row are a sequence of their own, which no token reads.
    mask_CQK = in_blocks(layout.sequence_ids, -1)[:, :, None] == near(layout.sequence_ids, -1)[:, None]
    distance_QK = torch.arange(-window, size + window, device=device) - torch.arange(size, device=device)[:, None]
    mask_CQK = mask_CQK & (distance_QK.abs() <= window)
    if layout.masks_tokens:
        assert layout.key_mask is not None
        # Every query reads itself, because a softmax over no keys is not a number.
        mask_CQK = mask_CQK & (near(layout.key_mask.flatten())[:, None] | (distance_QK == 0))
    attended_CAQD = scaled_dot_product_attention(
        in_blocks(query_NAD, 0).transpose(1, 2),
        near(key_NAD).transpose(1, 2),
        near(value_NAD).transpose(1, 2),
        attn_mask=mask_CQK[:, None],
        dropout_p=inputs.dropout,
        scale=inputs.scaling,
    )
    return attended_CAQD.transpose(1, 2).flatten(0, 1)[:num_tokens]
