"""packed_attention against the formula, one sequence at a time."""

from __future__ import annotations

import pytest
import torch
from transformers import AttentionInterface
from transformers.models.bert.modeling_bert import BertCrossAttention, BertSelfAttention

from bnb_ds.model.attention import IMPLEMENTATION, attention_way, packed_attention
from tests.tiny import bert_config, layout_of

HEADS, SIZE = 3, 5
DECODER = bert_config(is_decoder=True, add_cross_attention=True, hidden_size=HEADS * SIZE)
SELF, CROSS = BertSelfAttention(DECODER, is_causal=True), BertCrossAttention(DECODER)


def packed_heads(num_tokens: int, seed: int) -> torch.Tensor:
    """Random values [1, A, N, D] with the memory order of the BERT layers."""
    rows = torch.randn(1, num_tokens, HEADS, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return rows.transpose(1, 2).requires_grad_()


def by_formula(query, key, value, query_lengths, key_lengths, scaling):
    """[1, N, A, D] by softmax attention of one sequence after the other."""
    outputs = []
    pieces = (query.split(query_lengths, 2), key.split(key_lengths, 2), value.split(key_lengths, 2))
    for q, k, v in zip(*pieces, strict=True):
        outputs.append((q @ k.transpose(2, 3) * scaling).softmax(-1) @ v)
    return torch.cat(outputs, 2).transpose(1, 2)


@pytest.fixture(params=["padded", "each", "single", "jagged"], autouse=True)
def way(request, monkeypatch):
    """Run with each implementation that works on a CPU. By itself, `attention_way` would choose only one."""
    monkeypatch.setattr("bnb_ds.model.attention.attention_way", lambda query, key_layout, dropout: request.param)


def check(module, query_lengths, key_lengths, scaling, **layouts):
    query, key, value = (packed_heads(sum(n), s) for s, n in enumerate((query_lengths, key_lengths, key_lengths)))
    got, weights = packed_attention(module, query, key, value, None, scaling=scaling, **layouts)
    expected = by_formula(query, key, value, query_lengths, key_lengths, scaling or SIZE**-0.5)
    assert weights is None
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    signal = torch.randn_like(got)
    for ours, plain in zip(
        torch.autograd.grad(got, (query, key, value), signal),
        torch.autograd.grad(expected, (query, key, value), signal),
        strict=True,
    ):
        torch.testing.assert_close(ours, plain, rtol=0, atol=1e-12)


@pytest.mark.parametrize("lengths", [[4, 1, 7], [3, 3], [1], [6, 1, 1, 1]])
@pytest.mark.parametrize("scaling", [None, 0.3])
def test_self_attention_sees_its_sequence_and_nothing_else(lengths, scaling):
    # The module is marked as causal, as BERT's decoder layers are. A non-autoregressive decoder must not be causal.
    check(SELF, lengths, lengths, scaling, layout=layout_of(lengths), memory_layout=layout_of([2] * len(lengths)))


@pytest.mark.parametrize(
    ("slots", "sources"), [([8, 2, 6], [4, 1, 3]), ([2, 2], [3, 3]), ([2, 2], [5, 1]), ([1, 4], [3, 3])]
)
def test_cross_attention_takes_keys_from_the_memory(slots, sources):
    check(CROSS, slots, sources, None, layout=layout_of(slots), memory_layout=layout_of(sources))


def test_dropout_drops_weights_and_keeps_the_mean():
    lengths = [50, 40]
    layout = layout_of(lengths)
    query, key = packed_heads(90, 0), packed_heads(90, 1)
    value = torch.ones(1, HEADS, 90, SIZE, dtype=torch.float64)
    torch.manual_seed(0)
    dropped, _ = packed_attention(SELF, query, key, value, None, dropout=0.25, layout=layout)
    kept, _ = packed_attention(SELF, query, key, value, None, dropout=0.0, layout=layout)
    torch.testing.assert_close(kept, torch.ones_like(kept))
    assert dropped.std() > 0.01
    assert abs(dropped.mean() - 1) < 0.02


def test_gradients_are_those_of_the_weights_that_were_kept():
    """With a fixed seed, attention with dropout is a smooth function."""
    lengths = [5, 1, 3]
    layout = layout_of(lengths)
    inputs = [packed_heads(sum(lengths), seed) for seed in range(3)]

    def attended(query, key, value):
        torch.manual_seed(7)
        return packed_attention(SELF, query, key, value, None, dropout=0.4, layout=layout)[0]

    assert torch.autograd.gradcheck(attended, inputs)


def test_the_way_on_a_cpu_depends_on_dropout():
    assert attention_way(packed_heads(3, 0), layout_of([2, 1]), 0.0) == "padded"
    assert attention_way(packed_heads(3, 0), layout_of([2, 1]), 0.1) == "single"
    assert attention_way(packed_heads(128, 0), layout_of([100, 28]), 0.0) == "each"
    assert attention_way(packed_heads(127, 0), layout_of([100, 27]), 0.0) == "padded"
    assert attention_way(packed_heads(100, 0), layout_of([100]), 0.0) == "padded"


def test_the_implementation_is_registered():
    assert AttentionInterface()[IMPLEMENTATION] is packed_attention
