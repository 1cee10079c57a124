"""Layouts of packed rows, and packing of padded input."""

from __future__ import annotations

import pytest
import torch

from bnb_ds.common.packing import pack_inputs, types_of_pairs
from tests.tiny import layout_of, source_ids


def test_layout_of_ragged_sequences():
    layout = layout_of([2, 4, 1])
    assert layout.cu_seqlens.dtype == torch.int32
    assert layout.cu_seqlens.tolist() == [0, 2, 6, 7]
    assert layout.sequence_ids.tolist() == [0, 0, 1, 1, 1, 1, 2]
    assert layout.position_ids.tolist() == [0, 1, 0, 1, 2, 3, 0]
    assert layout.pad_index.tolist() == [0, 1, 4, 5, 6, 7, 8]
    assert layout.key_mask[:, 0, 0].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]]
    assert (layout.batch_size, layout.num_tokens, layout.lengths.tolist()) == (3, 7, [2, 4, 1])


def test_pad_and_unpad_are_inverse_and_carry_gradients():
    layout = layout_of([2, 4, 1])
    packed = torch.randn(7, 3, requires_grad=True)
    padded = layout.pad(packed, -1.0)
    assert padded.shape == (3, 4, 3)
    assert (padded[0, 2:] == -1).all()
    assert (padded[2, 1:] == -1).all()
    assert torch.equal(layout.unpad(padded), packed)
    weight = torch.randn(3, 4, 3)
    (padded * weight).sum().backward()
    assert torch.equal(packed.grad, layout.unpad(weight))


def test_equal_lengths_need_no_copy_and_no_mask():
    layout = layout_of([3, 3])
    packed = torch.randn(6, 2)
    assert layout.key_mask is None
    assert layout.pad(packed).data_ptr() == packed.data_ptr()
    assert layout.unpad(layout.pad(packed)).data_ptr() == packed.data_ptr()


def test_real_tokens_may_stand_anywhere():
    ids = torch.tensor([[0, 7, 8, 0], [5, 0, 0, 6]])
    inputs = pack_inputs(ids, attention_mask=ids != 0, token_type_ids=ids % 2)
    assert inputs.input_ids.tolist() == [7, 8, 5, 6]
    assert inputs.token_type_ids.tolist() == [1, 0, 1, 0]
    assert inputs.layout.position_ids.tolist() == [0, 1, 0, 1]
    assert inputs.restore(inputs.input_ids).tolist() == ids.tolist()


def test_without_a_mask_all_tokens_are_real():
    ids = torch.tensor([[0, 7, 8], [5, 0, 0]])
    inputs = pack_inputs(ids)
    assert inputs.layout.lengths.tolist() == [3, 3]
    assert inputs.token_type_ids.tolist() == [0] * 6


def test_types_of_pairs_are_those_of_a_bert_tokenizer():
    sep, cls = 3, 2
    rows = [[cls, 7, sep, 8, 9, sep], [cls, 7, 8, sep], [cls, sep, 8, sep], [cls, 7, sep, sep]]
    types = [[0, 0, 0, 1, 1, 1], [0, 0, 0, 0], [0, 0, 1, 1], [0, 0, 0, 1]]
    padded = torch.tensor([row + [0] * (6 - len(row)) for row in rows])
    packed = torch.tensor([token for row in rows for token in row])
    starts = torch.tensor([0, 6, 10, 14, 18], dtype=torch.int32)
    for inputs in (pack_inputs(padded, padded != 0), pack_inputs(packed, cu_seqlens=starts)):
        assert types_of_pairs(inputs, sep).tolist() == [kind for row in types for kind in row]


def test_packed_input_is_taken_as_it_is():
    row = torch.cat(source_ids([2, 3]))
    inputs = pack_inputs(row, cu_seqlens=torch.tensor([0, 2, 5], dtype=torch.int32))
    assert inputs.is_packed
    assert inputs.layout.max_seqlen == 3
    assert inputs.restore(row) is row


ROW = torch.arange(5)
PADDED = torch.ones(2, 3, dtype=torch.int64)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_ids": ROW}, "input_ids has 1 dimensions: give .B, L., or .N. with cu_seqlens"),
        (
            {"input_ids": PADDED, "attention_mask": PADDED[:, :2]},
            r"attention_mask has shape \(2, 2\) and input_ids \(2, 3\)",
        ),
        (
            {"input_ids": PADDED, "token_type_ids": PADDED[:1]},
            r"token_type_ids has shape \(1, 3\) and input_ids \(2, 3\)",
        ),
        (
            {"input_ids": PADDED, "attention_mask": torch.tensor([[1, 1, 0], [0, 0, 0]])},
            "attention_mask: sequence 1 has no real token: leave it out of the batch",
        ),
        ({"input_ids": PADDED[:0]}, "input_ids holds no sequence: give at least one"),
        ({"input_ids": PADDED, "cu_seqlens": torch.tensor([0, 6])}, "with cu_seqlens, input_ids must be one row"),
        (
            {"input_ids": ROW, "attention_mask": torch.ones(5), "cu_seqlens": torch.tensor([0, 5])},
            "without attention_mask",
        ),
        ({"input_ids": ROW, "cu_seqlens": torch.tensor([0.0, 5.0])}, r"cu_seqlens must be int32 \[B\+1\]"),
        ({"input_ids": ROW, "cu_seqlens": torch.tensor([5])}, r"cu_seqlens must be int32 \[B\+1\]"),
        ({"input_ids": ROW, "cu_seqlens": torch.tensor([0, 2, 4])}, "rise from 0 to the 5 tokens of input_ids"),
        ({"input_ids": ROW, "cu_seqlens": torch.tensor([1, 5])}, "rise from 0 to the 5 tokens of input_ids"),
        ({"input_ids": ROW, "cu_seqlens": torch.tensor([0, 2, 2, 5])}, "with no empty sequence"),
        (
            {"input_ids": ROW, "cu_seqlens": torch.tensor([0, 2, 5]), "max_seqlen": 4},
            "max_seqlen is 4, but the longest sequence of cu_seqlens has 3 tokens",
        ),
    ],
)
def test_shapes_that_do_not_belong_together_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        pack_inputs(**arguments)


def test_some_rows_of_a_layout():
    layout = layout_of([2, 4, 1, 3])
    part, places = layout.rows([3, 0])
    assert places.tolist() == [7, 8, 9, 0, 1]
    assert (part.lengths.tolist(), part.max_seqlen, part.num_tokens) == ([3, 2], 3, 5)
