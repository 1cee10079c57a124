"""Attention with dropout on a CPU, without keeping a weight for the backward pass.

torch's fused CPU kernel knows no dropout; with it, scaled_dot_product_attention keeps several [B, A, M, M] tensors for
every layer. Here sequences are attended one after the other, each at its own length, and the backward pass computes
weights and mask again. Only inputs, outputs and one seed are kept.

Shapes: A heads, D head size; Nq and Nk tokens of all queries and keys; q and k tokens of one sequence.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bnb_ds.common.packing import PackedLayout

_LEVELS = 1 << 16  # of 16 random bits: a probability is met to 1/65536


def attend_with_dropout(
    query_NAD: Tensor,
    key_NAD: Tensor,
    value_NAD: Tensor,
    layout: PackedLayout,
    key_layout: PackedLayout,
    dropout: float,
    scaling: float | None = None,
) -> Tensor:
    """Softmax attention of each sequence on its own keys, weights dropped and the rest scaled up.

    Args:
        query_NAD: float [Nq, A, D] on the CPU; ``key_NAD`` and ``value_NAD``: float [Nk, A, D].
        layout: sequences of the queries; ``key_layout``: those of the keys.
        dropout: probability with which a weight is dropped, at least 0 and below 1.
        scaling: factor on the scores, ``D ** -0.5`` when None.

    Returns:
        float [Nq, A, D]. Which weights are dropped follows from one draw of torch's default generator.
    """
    seed = int(torch.randint(torch.iinfo(torch.int64).max, ()))
    scaling = query_NAD.shape[-1] ** -0.5 if scaling is None else scaling
    lengths = layout.lengths.tolist(), key_layout.lengths.tolist()
    return _Attention.apply(query_NAD, key_NAD, value_NAD, lengths, dropout, scaling, seed)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query_NAD: Tensor,
        key_NAD: Tensor,
        value_NAD: Tensor,
        lengths: tuple[Sequence[int], Sequence[int]],
        dropout: float,
        scaling: float,
        seed: int,
    ) -> Tensor:
        ctx.settings = lengths, dropout, scaling, seed
        attended_NAD = torch.empty_like(query_NAD)
        masks = _masks(dropout, seed)
        for query, out, key, value in sequences(lengths, (query_NAD, attended_NAD), (key_NAD, value_NAD)):
            weights = _weights(query, key, scaling)
            out.copy_(weights.mul_(_next_mask(masks, weights)) @ value)
        ctx.save_for_backward(query_NAD, key_NAD, value_NAD, attended_NAD)
        return attended_NAD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NAD: Tensor) -> tuple[Tensor | None, ...]:
        lengths, dropout, scaling, seed = ctx.settings
        query_NAD, key_NAD, value_NAD, attended_NAD = ctx.saved_tensors
        grads = [torch.empty_like(tensor) for tensor in (query_NAD, key_NAD, value_NAD)]
        of_queries = query_NAD, attended_NAD, grad_NAD, grads[0]
        of_keys = key_NAD, value_NAD, grads[1], grads[2]
        masks = _masks(dropout, seed)
        for query, out, grad, grad_query, key, value, grad_key, grad_value in sequences(lengths, of_queries, of_keys):
            weights = _weights(query, key, scaling)
            mask = _next_mask(masks, weights)
            grad_value.copy_((weights * mask).transpose(1, 2) @ grad)
            grad_scores = (grad @ value.transpose(1, 2)).mul_(mask)
            # Of the softmax: a row's gradients weighed by the row sum to its output times the gradient of its output.
            grad_scores.sub_((grad * out).sum(-1, keepdim=True)).mul_(weights).mul_(scaling)
            grad_query.copy_(grad_scores @ key)
            grad_key.copy_(grad_scores.transpose(1, 2) @ query)
        return *grads, None, None, None, None


def sequences(
    lengths: tuple[Sequence[int], Sequence[int]], of_queries: Sequence[Tensor], of_keys: Sequence[Tensor]
) -> Iterator[list[Tensor]]:
    """Views [A, q or k, D] of each sequence's part of all tensors."""
    parts = [tensor.split(lengths[0]) for tensor in of_queries] + [tensor.split(lengths[1]) for tensor in of_keys]
    for row in zip(*parts, strict=True):
        yield [tensor.transpose(0, 1) for tensor in row]


def _weights(query_AqD: Tensor, key_AkD: Tensor, scaling: float) -> Tensor:
    """[A, q, k] in the inputs' type; the softmax in at least float32."""
    scores = (query_AqD * scaling) @ key_AkD.transpose(1, 2)
    wide = torch.promote_types(scores.dtype, torch.float32)
    return scores.softmax(-1, dtype=wide).to(scores.dtype)


def _masks(dropout: float, seed: int) -> tuple[torch.Generator, int]:
    """What `_next_mask` needs: a generator, and how many of the levels are kept."""
    return torch.Generator().manual_seed(seed), max(1, _LEVELS - round(dropout * _LEVELS))


def _next_mask(masks: tuple[torch.Generator, int], weights_Aqk: Tensor) -> Tensor:
    """Shaped and typed like the weights: 0 with the probability of dropout, else what keeps the mean."""
    generator, num_kept = masks
    # Four 16-bit numbers from each draw of 64 bits: several times as fast as a draw of torch.bernoulli for each weight.
    draws = torch.empty(-(-weights_Aqk.numel() // 4), dtype=torch.int64)
    draws.random_(torch.iinfo(torch.int64).min, None, generator=generator)
    levels = draws.view(torch.int16)[: weights_Aqk.numel()].view(weights_Aqk.shape)
    return (levels <= num_kept - 1 - _LEVELS // 2).to(weights_Aqk.dtype).mul_(_LEVELS / num_kept)
