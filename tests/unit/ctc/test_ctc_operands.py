"""Sums of rows and matrix products of the CTC head: how a GPU does them, tried on devices that have none."""

from __future__ import annotations

import contextlib
import types

import pytest
import torch

from bnb_ds.ctc import head as ctc_head
from bnb_ds.ctc import operands, sparse
from bnb_ds.ctc.loss import linear_ctc_loss
from tests.compiled import Counted

CPU, META = torch.device("cpu"), torch.device("meta")


def test_rows_are_added_as_by_index_add():
    generator = torch.Generator().manual_seed(0)
    rows, total = torch.randn(400, 6, generator=generator), torch.randn(30, 6, generator=generator)
    for index in (torch.full((400,), 7), torch.randint(0, 30, (400,), generator=generator)):
        expected = total.clone().index_add_(0, index, rows)
        torch.testing.assert_close(total + sparse.sum_of_rows(index, rows, 30), expected)


def test_a_gpu_adds_rows_of_equal_indices_side_by_side():
    """``index_put_`` would add them one after the other; for rows of one number, it adds up a warp at a time."""
    total, index = torch.empty(30, 6, device=META), torch.empty(400, dtype=torch.int64, device=META)
    with Counted() as counted:
        sparse.add_rows(total, index, torch.empty(400, 6, device=META))
    assert counted.names == ["embedding_dense_backward", "add_"]


def test_the_head_adds_each_gradient_once_and_no_id_many_times(monkeypatch):
    """Padding of targets of different lengths must not meet at the blank."""
    added = []
    monkeypatch.setattr(ctc_head, "add_rows", lambda total, index, rows: added.append(index))
    leaves = [torch.randn(size, requires_grad=True) for size in ((90, 6), (40, 6), (40,))]
    targets = torch.arange(1, 31).expand(3, -1)
    lengths = {"input_lengths": None, "target_lengths": torch.tensor([30, 1, 0])}
    cu_seqlens = torch.tensor([0, 70, 80, 90], dtype=torch.int32)
    linear_ctc_loss(*leaves, targets, **lengths, cu_seqlens=cu_seqlens, max_input_length=70, max_target_length=30)
    assert len(added) == 2  # of the weight, and of the bias
    for index in added:
        assert len(index) == 3 * 31
        assert index.bincount().max() <= 6  # 62 if all padding stood at the blank


def test_padding_is_spread_over_the_vocabulary():
    table = torch.tensor([[0, 5, 6, 0, 0], [0, 7, 0, 0, 0]])
    may_add = torch.tensor([[True, True, True, False, False], [True, True, False, False, False]])
    spread = sparse.spread(table, may_add, 9)
    assert spread[may_add].tolist() == [0, 5, 6, 0, 7]
    assert sorted(spread[~may_add].tolist()) == [0, 3, 4, 7, 8]


def test_rows_on_a_gpu_keep_their_alignment():
    for num_columns, stride in ((28_996, 29_056), (30_522, 30_528), (64, 64)):
        rows = operands.empty_rows(3, num_columns, torch.float32, META)
        assert rows.shape == (3, num_columns)
        assert rows.stride() == (stride, 1)
        for dtype in (torch.float32, torch.bfloat16):
            rounded = operands.operand_rows(rows.to(dtype), torch.bfloat16)
            assert rounded.dtype == torch.float32  # the meta device cannot add up 16 bits in float32
            assert rounded.stride() == (stride, 1)
    assert operands.empty_rows(3, 28_996, torch.float32, CPU).is_contiguous()
    numbers = torch.randn(3, 70)
    assert torch.equal(operands.operand_rows(numbers, torch.bfloat16), numbers.bfloat16().float())


def test_sixteen_bits_held_in_float32_run_on_tensor_cores(monkeypatch):
    """As on torch 2.6 and 2.7, where products of 16 bits cannot be added up in float32. TF32 holds them exactly."""

    def context_of(dtype, device_type, held=torch.float32):
        left = types.SimpleNamespace(dtype=held, device=torch.device(device_type))
        return operands._tensor_cores(left, dtype)

    before = torch.backends.cuda.matmul.allow_tf32
    for dtype in (torch.bfloat16, torch.float16):
        with context_of(dtype, "cuda"):
            assert torch.backends.cuda.matmul.allow_tf32
        assert torch.backends.cuda.matmul.allow_tf32 is before
        assert isinstance(context_of(dtype, "cpu"), contextlib.nullcontext)
    assert isinstance(context_of(torch.float32, "cuda"), contextlib.nullcontext)
    with pytest.raises(RuntimeError), operands.tf32():
        raise RuntimeError
    assert torch.backends.cuda.matmul.allow_tf32 is before


def test_a_product_is_added_in_place_only_where_torch_can():
    """`torch.addmm` with a dtype of its own exists on CUDA alone, and there not in all releases."""
    assert not operands._adds_in_place(CPU, torch.bfloat16)
    generator = torch.Generator().manual_seed(0)
    left, right, total = (torch.randn(4, 4, generator=generator) for _ in range(3))
    expected = total + left @ right
    operands.add_product(total, left, right, torch.bfloat16)
    torch.testing.assert_close(total, expected)
