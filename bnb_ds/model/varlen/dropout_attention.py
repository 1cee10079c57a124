"""Attention with dropout on a CPU that keeps no attention weights for the backward pass.

torch's fused CPU kernel has no dropout. With dropout, scaled_dot_product_attention keeps several [B, A, M, M] tensors
for every layer. Here one sequence is computed after the other, each at its own length, and the backward pass computes
weights and mask again. Only inputs, outputs and one seed are kept. A long sequence is computed in parts: some queries,
and all keys or the keys near them.

Shapes: A heads, D head size; Nq and Nk tokens of all queries and keys; q and k tokens of one sequence or part.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bnb_ds.model.varlen.attention_inputs import AttentionInputs

_LEVELS = 1 << 16  # values of 16 random bits, so probabilities are multiples of 1/65536
_PAIRS_OF_A_PART = 1 << 22  # the weights of a part for one head, so 2,048 tokens are one part
_QUERIES_OF_A_PART = 128  # with a window

#: queries, and the keys that they read: first and last place + 1 of each in its row
Part = tuple[int, int, int, int]


def attend_with_dropout(inputs: AttentionInputs) -> Tensor:
    """Softmax attention of each sequence to its own keys. Some weights are dropped, and the others are scaled up.

    Args:
        inputs: on the CPU.

    Returns:
        float [Nq, A, D]. One draw of torch's default generator decides which weights are dropped.
    """
    seed = int(torch.randint(torch.iinfo(torch.int64).max, ()))
    scaling = inputs.query_NAD.shape[-1] ** -0.5 if inputs.scaling is None else inputs.scaling
    parts = _parts(inputs.layout.lengths.tolist(), inputs.key_layout.lengths.tolist(), inputs.window)
    return _Attention.apply(*inputs.rows, parts, inputs.window, inputs.dropout, scaling, seed)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query_NAD: Tensor,
        key_NAD: Tensor,
        value_NAD: Tensor,
        parts: list[Part],
        window: int | None,
        dropout: float,
        scaling: float,
        seed: int,
    ) -> Tensor:
        ctx.settings = parts, window, dropout, scaling, seed
        attended_NAD = torch.empty_like(query_NAD)
        masks = _masks(dropout, seed)
        for part in parts:
            query, out, key, value = _views(part, (query_NAD, attended_NAD), (key_NAD, value_NAD))
            weights = _weights(query, key, scaling, _out_of_window(part, window))
            out.copy_(weights.mul_(_next_mask(masks, weights)) @ value)
        ctx.save_for_backward(query_NAD, key_NAD, value_NAD, attended_NAD)
        return attended_NAD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NAD: Tensor) -> tuple[Tensor | None, ...]:
        parts, window, dropout, scaling, seed = ctx.settings
        query_NAD, key_NAD, value_NAD, attended_NAD = ctx.saved_tensors
        grads = [torch.zeros_like(tensor) for tensor in (query_NAD, key_NAD, value_NAD)]
        of_queries = query_NAD, attended_NAD, grad_NAD, grads[0]
        of_keys = key_NAD, value_NAD, grads[1], grads[2]
        masks = _masks(dropout, seed)
        for part in parts:
            query, out, grad, grad_query, key, value, grad_key, grad_value = _views(part, of_queries, of_keys)
            weights = _weights(query, key, scaling, _out_of_window(part, window))
            mask = _next_mask(masks, weights)
            grad_value.add_((weights * mask).transpose(1, 2) @ grad)
            grad_scores = (grad @ value.transpose(1, 2)).mul_(mask)
            # Gradient of the softmax. The weighted sum of a row's gradients equals its output times its output's
            # gradient.
            grad_scores.sub_((grad * out).sum(-1, keepdim=True)).mul_(weights).mul_(scaling)
            grad_query.copy_(grad_scores @ key)
            grad_key.add_(grad_scores.transpose(1, 2) @ query)  # other parts may read the same key
        return *grads, None, None, None, None, None


def _parts(lengths: Sequence[int], key_lengths: Sequence[int], window: int | None) -> list[Part]:
    ends, key_ends = ([0, *accumulate(of)] for of in (lengths, key_lengths))
    parts: list[Part] = []
    for (start, end), (first_key, last_key) in zip(pairwise(ends), pairwise(key_ends), strict=True):
        step = max(_PAIRS_OF_A_PART // (last_key - first_key), 1) if window is None else _QUERIES_OF_A_PART
        for first in range(start, end, step):
            last = min(first + step, end)
            if window is None:
                parts.append((first, last, first_key, last_key))
            else:
                parts.append((first, last, max(first_key, first - window), min(last_key, last + window)))
    return parts


def _views(part: Part, of_queries: Sequence[Tensor], of_keys: Sequence[Tensor]) -> list[Tensor]:
    """Views [A, q or k, D] of a part of every tensor."""
    first, last, first_key, last_key = part
    parts = [tensor[first:last] for tensor in of_queries] + [tensor[first_key:last_key] for tensor in of_keys]
    return [tensor.transpose(0, 1) for tensor in parts]


def _out_of_window(part: Part, window: int | None) -> Tensor | None:
    """bool [q, k], the keys that a query must not read; None: it reads all."""
    first, last, first_key, last_key = part
    if window is None or max(last - 1 - first_key, last_key - 1 - first) <= window:
        return None
    return (torch.arange(first, last)[:, None] - torch.arange(first_key, last_key)).abs() > window


def _weights(query_AqD: Tensor, key_AkD: Tensor, scaling: float, unread_qk: Tensor | None) -> Tensor:
    """The attention weights [A, q, k], in the inputs' dtype. The softmax is computed in at least float32."""
    scores = (query_AqD * scaling) @ key_AkD.transpose(1, 2)
    if unread_qk is not None:
        scores.masked_fill_(unread_qk, -torch.inf)
    wide = torch.promote_types(scores.dtype, torch.float32)
    return scores.softmax(-1, dtype=wide).to(scores.dtype)


def _masks(dropout: float, seed: int) -> tuple[torch.Generator, int]:
    """The arguments of `_next_mask`: a generator, and how many of the levels mean that a weight is kept."""
    return torch.Generator().manual_seed(seed), max(1, _LEVELS - round(dropout * _LEVELS))


def _next_mask(masks: tuple[torch.Generator, int], weights_Aqk: Tensor) -> Tensor:
    """A mask like the weights: 0 with the probability of dropout, else the factor that keeps the mean."""
    generator, num_kept = masks
    # Each draw of 64 bits gives four 16-bit numbers. This is several times as fast as torch.bernoulli for each weight.
    draws = torch.empty(-(-weights_Aqk.numel() // 4), dtype=torch.int64)
    draws.random_(torch.iinfo(torch.int64).min, None, generator=generator)
    levels = draws.view(torch.int16)[: weights_Aqk.numel()].view(weights_Aqk.shape)
    return (levels <= num_kept - 1 - _LEVELS // 2).to(weights_Aqk.dtype).mul_(_LEVELS / num_kept)
