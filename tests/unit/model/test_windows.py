"""Attention in a window against the formula, one sequence at a time."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from bnb_ds.model import attention
from bnb_ds.model.attention import attend, way_in_window
from bnb_ds.model.varlen import kernel_choice as choice
from bnb_ds.model.varlen.attention_inputs import AttentionInputs
from bnb_ds.model.varlen.kernel_choice import best_way, fault_of
from bnb_ds.model.varlen.operators import WINDOW_WAYS
from bnb_ds.model.varlen.windows import attend_in_blocks
from tests import plain_varlen
from tests.tiny import layout_of

HEADS, SIZE = 3, 8
ON_CPU = ["each", "blocks", "single"]


def leaves_of(num_tokens: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(num_tokens, HEADS, SIZE, dtype=torch.float64, generator=generator).requires_grad_()
        for _ in range(3)
    ]


def check(way, lengths, window, monkeypatch):
    monkeypatch.setattr(attention, "way_in_window", lambda query, layout, dropout: way)
    layout, leaves = layout_of(lengths), leaves_of(sum(lengths))
    got = attend(AttentionInputs(*leaves, layout, layout, scaling=0.3, window=window))
    expected = plain_varlen.attend(*leaves, (layout.cu_seqlens, layout.cu_seqlens), 0.3, window)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    signal = torch.randn_like(got)
    gradients = zip(*(torch.autograd.grad(each, leaves, signal) for each in (got, expected)), strict=True)
    for ours, plain in gradients:
        torch.testing.assert_close(ours, plain, rtol=0, atol=1e-12)


@pytest.mark.parametrize("way", ON_CPU)
@pytest.mark.parametrize(
    ("lengths", "window"),
    [
        ([4, 1, 7], 2),
        ([9], 1),
        ([5, 5], 0),
        ([3, 1, 2], 6),  # all sequences are within the window
        ([127, 2, 129], 3),
        ([128, 128], 5),  # blocks end where sequences do
        ([1, 300, 7], 64),
        ([260, 150], 100),
    ],
)
def test_a_token_reads_its_window_of_its_sequence_and_nothing_else(way, lengths, window, monkeypatch):
    check(way, lengths, window, monkeypatch)


@pytest.mark.parametrize(("lengths", "window"), [([4, 1, 7], 2), ([70, 3], 4)])
def test_flash_attention_gets_the_window(lengths, window, monkeypatch):
    with plain_varlen.on_cpu():
        check("flash", lengths, window, monkeypatch)


def test_a_window_as_wide_as_the_sequences_is_no_window(monkeypatch):
    monkeypatch.setattr(attention, "way_in_window", lambda *_: pytest.fail("there is nothing outside of the window"))
    layout, leaves = layout_of([4, 6]), leaves_of(10)
    expected = plain_varlen.attend(*leaves, (layout.cu_seqlens, layout.cu_seqlens), None)
    got = attend(AttentionInputs(*leaves, layout, layout, window=5))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("columns", [9, 140])
def test_masked_tokens_are_not_read(columns):
    """Rows with padding in them, as a graph of fixed shape has them: real tokens get what they get without it."""
    lengths, window = [columns, 3, columns - 2], 4
    layout, leaves = layout_of([columns] * 3), leaves_of(3 * columns)
    is_real = torch.arange(columns) < torch.tensor(lengths)[:, None]
    padded = replace(layout, key_mask=is_real[:, None, None])
    assert way_in_window(leaves[0], padded, 0.0) == "blocks"
    got = attend(AttentionInputs(*leaves, padded, padded, window=window))
    assert got.isfinite().all()
    packed, real = layout_of(lengths), [leaf[is_real.flatten()] for leaf in leaves]
    expected = plain_varlen.attend(*real, (packed.cu_seqlens, packed.cu_seqlens), None, window)
    torch.testing.assert_close(got[is_real.flatten()], expected, rtol=0, atol=1e-12)
    gradients = torch.autograd.grad(got[is_real.flatten()].sum(), leaves[1])[0]
    assert not gradients[~is_real.flatten()].any()


def test_gradients_with_dropout_are_those_of_the_weights_that_were_kept(monkeypatch):
    monkeypatch.setattr("bnb_ds.model.varlen.dropout_attention._QUERIES_OF_A_PART", 3)
    layout = layout_of([5, 1])
    leaves = [leaf[:, :1, :2].detach().requires_grad_() for leaf in leaves_of(6)]

    def attended(query, key, value):
        torch.manual_seed(7)
        return attend(AttentionInputs(query, key, value, layout, layout, dropout=0.4, window=2))

    assert torch.autograd.gradcheck(attended, leaves)
    assert not torch.equal(attended(*leaves), attend(AttentionInputs(*leaves, layout, layout, window=2)))


def test_the_way_on_a_cpu():
    query = torch.zeros(1, HEADS, SIZE)
    assert way_in_window(query, layout_of([384, 100]), 0.0) == "each"
    assert way_in_window(query, layout_of([385, 1]), 0.0) == "blocks"
    assert way_in_window(query, layout_of([385, 1]), 0.1) == "single"


@pytest.mark.parametrize(
    ("capability", "dtype", "broken", "expected"),
    [
        ((8, 0), torch.bfloat16, (), "flash"),
        ((8, 0), torch.bfloat16, ("flash",), "blocks"),
        ((8, 0), torch.float32, (), "blocks"),
        ((7, 0), torch.float16, (), "blocks"),
    ],
)
def test_the_way_on_a_gpu(capability, dtype, broken, expected, monkeypatch):
    names = {way: name for name, way in WINDOW_WAYS.items()}
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(choice, "fault_of", lambda way, *_: "no kernel" if names[way] in broken else None)
    best_way.cache_clear()
    try:
        assert best_way(0, dtype, 64, in_window=True).way == expected
    finally:
        best_way.cache_clear()


def test_a_kernel_is_tried_with_a_window():
    def forgets_the_window(inputs):
        return attend_in_blocks(inputs._replace(window=99))

    cpu = torch.device("cpu")
    assert fault_of(attend_in_blocks, cpu, torch.float32, SIZE, True) is None
    assert fault_of(forgets_the_window, cpu, torch.float32, SIZE, True).startswith("wrong by")
