"""Attention with dropout on a CPU: how often weights are dropped, and that a seed decides which."""

from __future__ import annotations

import pytest
import torch

from bnb_ds.model.varlen.attention_inputs import AttentionInputs
from bnb_ds.model.varlen.dropout_attention import attend_with_dropout
from tests.tiny import layout_of


def kept_weights(dropout: float, tokens: int = 300, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """The weights after dropout, [A, q, k]. All scores are equal and the values are unit vectors."""
    query = torch.zeros(tokens, 2, tokens, dtype=dtype)
    value = torch.eye(tokens, dtype=dtype)[:, None].expand(tokens, 2, tokens)
    layout = layout_of([tokens])
    inputs = AttentionInputs(query, query, value, layout, layout, dropout)
    return attend_with_dropout(inputs).transpose(0, 1) * tokens


@pytest.mark.parametrize("dropout", [0.0, 0.1, 0.5, 0.9])
def test_weights_are_dropped_at_the_rate_and_the_rest_keeps_the_mean(dropout):
    torch.manual_seed(3)
    weights = kept_weights(dropout)
    dropped = (weights == 0).double()
    spread = (dropout * (1 - dropout) / dropped.numel()) ** 0.5
    assert abs(dropped.mean() - dropout) <= 4 * spread + 1e-5
    kept = weights[weights != 0]
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - dropout)), rtol=2e-4, atol=0)


def test_neighbours_are_dropped_independently():
    """Four weights share a draw of 64 bits, but must be independent of each other."""
    torch.manual_seed(4)
    dropped = (kept_weights(0.5, 400) == 0).double().flatten().view(-1, 4)
    correlation = torch.corrcoef(dropped.T) - torch.eye(4)
    assert correlation.abs().max() < 5 * len(dropped) ** -0.5


def test_the_default_generator_decides():
    torch.manual_seed(5)
    first, second = kept_weights(0.3, 20), kept_weights(0.3, 20)
    torch.manual_seed(5)
    assert torch.equal(kept_weights(0.3, 20), first)
    assert not torch.equal(first, second)


@pytest.mark.slow
def test_a_long_sequence_is_computed_in_parts(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    leaves = [torch.randn(n, 2, 8, dtype=torch.float64, generator=generator).requires_grad_() for n in (13, 9, 9)]
    layouts = layout_of([12, 1]), layout_of([5, 4])

    def results(pairs, dropout):
        monkeypatch.setattr("bnb_ds.model.varlen.dropout_attention._PAIRS_OF_A_PART", pairs)
        torch.manual_seed(1)
        attended = attend_with_dropout(AttentionInputs(*leaves, *layouts, dropout))
        return attended, *torch.autograd.grad(attended.sin().sum(), leaves)

    for pairs in (1, 11, 26):
        for parts, whole in zip(results(pairs, 0.0), results(1000, 0.0), strict=True):
            torch.testing.assert_close(parts, whole, rtol=0, atol=1e-12)
    few = [leaf[:, :1, :2].detach().requires_grad_() for leaf in leaves]
    monkeypatch.setattr("bnb_ds.model.varlen.dropout_attention._PAIRS_OF_A_PART", 11)

    def attended(*rows):
        torch.manual_seed(7)
        return attend_with_dropout(AttentionInputs(*rows, *layouts, 0.4))

    assert torch.autograd.gradcheck(attended, few)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_trains(dtype):
    torch.manual_seed(6)
    rows = [torch.randn(7, 2, 8, dtype=dtype, requires_grad=True) for _ in range(3)]
    attended = attend_with_dropout(AttentionInputs(*rows, layout_of([3, 4]), layout_of([5, 2]), 0.2))
    assert attended.dtype == dtype
    for gradient in torch.autograd.grad(attended.float().sum(), rows):
        assert gradient.dtype == dtype
        assert gradient.isfinite().all()
