"""torch's varlen attention operators on a CPU, by the formula, so that calls of them run where there is no GPU.

torch has them for CUDA only. Here they take the same arguments, through torch's dispatcher and its derivatives.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


def _sequences(query: Tensor, key: Tensor, value: Tensor, starts: tuple[Tensor, Tensor]) -> Iterator[list[Tensor]]:
    """Query, key and value [A, q or k, D] of one sequence after the other."""
    ends = [of.tolist()[1:-1] for of in starts]
    parts = (query.tensor_split(ends[0]), key.tensor_split(ends[1]), value.tensor_split(ends[1]))
    for row in zip(*parts, strict=True):
        yield [tensor.transpose(0, 1) for tensor in row]


def _scale(query: Tensor, scale: float | None) -> float:
    return query.shape[-1] ** -0.5 if scale is None else scale


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    starts: tuple[Tensor, Tensor],
    scale: float | None,
    window: int | None = None,
) -> Tensor:
    """[Nq, A, D] by softmax attention, of all keys or of those that are at most ``window`` places away."""
    scale = _scale(query, scale)
    outs = [_weights(q, k, scale, window) @ v for q, k, v in _sequences(query, key, value, starts)]
    return torch.cat([out.transpose(0, 1) for out in outs])


def _weights(q: Tensor, k: Tensor, scale: float, window: int | None) -> Tensor:
    scores = q @ k.transpose(1, 2) * scale
    if window is not None:
        distances = torch.arange(q.shape[1])[:, None] - torch.arange(k.shape[1])
        scores = scores.masked_fill(distances.abs() > window, -torch.inf)
    return scores.softmax(-1)


def _check(query: Tensor, starts: tuple[Tensor, Tensor], longest: tuple[int, int], dropout: float, flags: Any) -> None:
    """What the kernels rely on without checking it."""
    for of, most in zip(starts, longest, strict=True):
        assert of.dtype == torch.int32
        assert of.is_contiguous()
        assert int(of.diff().max()) == most
    assert query.shape[-1] % 8 == 0
    assert query.stride(-1) == 1
    assert 0 <= dropout < 1
    assert not any(flags)


def _gradients(
    grad: Tensor,
    leaves: list[Tensor],
    starts: tuple[Tensor, Tensor],
    scale: float | None,
    window: int | None = None,
) -> list[Tensor]:
    """Of query, key and value, by hand: torch records nothing below its derivatives."""
    scale, found = _scale(leaves[0], scale), []
    of_queries = grad.tensor_split(starts[0].tolist()[1:-1])
    for (q, k, v), signal in zip(_sequences(*leaves, starts), of_queries, strict=True):
        g, weights = signal.transpose(0, 1), _weights(q, k, scale, window)
        of_weights = g @ v.transpose(1, 2)
        of_scores = weights * (of_weights - (weights * of_weights).sum(-1, keepdim=True)) * scale
        found.append((of_scores @ k, of_scores.transpose(1, 2) @ q, weights.transpose(1, 2) @ g))
    return [torch.cat([part.transpose(0, 1) for part in parts]) for parts in zip(*found, strict=True)]


def _flash(query, key, value, cum_q, cum_k, max_q, max_k, dropout, is_causal, debug, *, scale=None, **more):
    window = _window(more)
    _check(query, (cum_q, cum_k), (max_q, max_k), dropout, (is_causal, debug, *more.values()))
    nothing = query.new_empty(0)
    return attend(query, key, value, (cum_q, cum_k), scale, window), nothing, nothing, nothing, nothing


def _flash_backward(grad, query, key, value, out, sums, cum_q, cum_k, max_q, max_k, p, causal, rng, unused, **more):
    return tuple(_gradients(grad, [query, key, value], (cum_q, cum_k), more.get("scale"), _window(more)))


def _window(more):
    """The window, the same to both sides; it is taken out of the arguments."""
    left, right = (more.pop(f"window_size_{side}", None) for side in ("left", "right"))
    assert left == right
    return left


def _efficient(query, key, value, bias, cum_q, cum_k, max_q, max_k, dropout, mask, sums=False, *, scale=None, **more):
    _check(query, (cum_q, cum_k), (max_q, max_k), dropout, (bias is not None, mask, *more.values()))
    nothing = query.new_empty(0)
    out = attend(query[0], key[0], value[0], (cum_q, cum_k), scale)[None]
    return out, nothing, nothing, nothing, max_q, max_k


def _efficient_backward(grad, query, key, value, bias, out, cum_q, cum_k, *rest, scale=None, **more):
    leaves = [tensor[0] for tensor in (query, key, value)]
    grads = _gradients(grad[0], leaves, (cum_q, cum_k), scale)
    return *(each[None] for each in grads), query.new_empty(0)


@contextmanager
def on_cpu() -> Iterator[None]:
    """Within the block, the operators run on a CPU."""
    library = torch.library.Library("aten", "IMPL")
    for name, function in (
        ("_flash_attention_forward", _flash),
        ("_flash_attention_backward", _flash_backward),
        ("_efficient_attention_forward", _efficient),
        ("_efficient_attention_backward", _efficient_backward),
    ):
        library.impl(name, function, "CPU")
    try:
        yield
    finally:
        library._destroy()
