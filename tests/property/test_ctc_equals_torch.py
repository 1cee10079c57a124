"""The fused CTC head equals torch's plain path for random lengths, repeats, blanks, layouts and chunk sizes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bnb_ds.ctc.loss import ctc_loss, linear_ctc_loss
from tests.plain_ctc import plain_linear_ctc

HIDDEN = 5


@st.composite
def batches(draw):
    """Lengths from 0 to 12. Targets have few distinct tokens, so they repeat, and are often too long to fit."""
    vocab_size = draw(st.integers(2, 9))
    blank = draw(st.integers(0, vocab_size - 1))
    token = st.sampled_from([label for label in range(vocab_size) if label != blank][:3])
    lengths = draw(st.lists(st.integers(0, 12), min_size=1, max_size=4).filter(any))
    targets = [draw(st.lists(token, max_size=length + 1)) for length in lengths]
    seed = draw(st.integers(0, 2**16))
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randn(length, HIDDEN, dtype=torch.float64, generator=generator) for length in lengths]
    weight = torch.randn(vocab_size, HIDDEN, dtype=torch.float64, generator=generator)
    bias = torch.randn(vocab_size, dtype=torch.float64, generator=generator) if draw(st.booleans()) else None
    options = {
        "blank": blank,
        "reduction": draw(st.sampled_from(["none", "sum", "mean", "token_sum", "sample_sum"])),
    }
    if options["reduction"] != "none":
        options["kl_weight"] = draw(st.sampled_from([0.0, 0.7]))
    return rows, weight, bias, targets, options, draw(st.integers(1, 9)), draw(st.booleans())


def run(loss_function, rows, targets, is_padded, dtype):
    """Call ``loss_function(values, targets, input_lengths, target_lengths, cu_seqlens=)`` in either layout."""
    lengths = torch.tensor([len(row) for row in rows])
    target_lengths = torch.tensor([len(target) for target in targets])
    if is_padded:
        values = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=torch.nan).to(dtype)
        labels = torch.full((len(rows), max(map(len, targets)) + 1), -100)
        for row, target in zip(labels, targets, strict=True):
            row[: len(target)] = torch.tensor(target, dtype=torch.int64)
        return loss_function(values, labels, lengths, target_lengths)
    labels = torch.tensor([token for target in targets for token in target], dtype=torch.int64)
    cu_seqlens = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int()
    return loss_function(torch.cat(rows).to(dtype), labels, None, target_lengths, cu_seqlens=cu_seqlens)


def scalar(loss):
    """Reduce an unreduced loss to one number, with a different weight for each entry."""
    return (loss * torch.arange(1, loss.numel() + 1)).sum() if loss.dim() else loss


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@settings(max_examples=150, deadline=None)
@given(batch=batches())
def test_fused_loss_and_gradients_equal_torch(dtype, batch):
    rows, weight, bias, targets, options, chunk_tokens, is_padded = batch
    leaves = [tensor.requires_grad_() for tensor in (*rows, weight, bias) if tensor is not None]
    expected = plain_linear_ctc(rows, weight, bias, targets, **options)
    ours_leaves = [leaf.detach().to(dtype).requires_grad_() for leaf in leaves]
    ours_rows = ours_leaves[: len(rows)]
    ours_weight, ours_bias = ours_leaves[len(rows)], ours_leaves[-1] if bias is not None else None

    def fused(values, *arguments, **layout):
        return linear_ctc_loss(
            values, ours_weight, ours_bias, *arguments, chunk_tokens=chunk_tokens, **layout, **options
        )

    got = run(fused, ours_rows, targets, is_padded, dtype)
    tolerance = (
        {"rtol": 0, "atol": 1e-10} if dtype == torch.float64 else {"rtol": 2e-5, "atol": 2e-5 * len(torch.cat(rows))}
    )
    torch.testing.assert_close(got.loss.double(), expected, **tolerance)
    theirs = torch.autograd.grad(scalar(expected), leaves, allow_unused=True, materialize_grads=True)
    ours = torch.autograd.grad(scalar(got.loss), ours_leaves, allow_unused=True, materialize_grads=True)
    size = max(gradient.abs().max().item() for gradient in theirs if gradient.numel())
    for one, other in zip(ours, theirs, strict=True):
        atol = 1e-9 if dtype == torch.float64 else 2e-5 * max(size, 1.0)
        torch.testing.assert_close(one.double(), other, rtol=0, atol=atol)


@settings(max_examples=100, deadline=None)
@given(batch=batches())
def test_ctc_of_log_probabilities_equals_torch(batch):
    rows, weight, bias, targets, options, _, is_padded = batch
    leaves = [row.requires_grad_() for row in rows]
    expected = plain_linear_ctc(rows, weight, bias, targets, **options)
    logits = [row @ weight.T if bias is None else row @ weight.T + bias for row in rows]
    got = run(
        lambda values, *arguments, **layout: ctc_loss(values, *arguments, **layout, **options),
        [row.log_softmax(-1) for row in logits],
        targets,
        is_padded,
        torch.float64,
    )
    torch.testing.assert_close(got.loss, expected, rtol=0, atol=1e-10)
    theirs = torch.autograd.grad(scalar(expected), leaves, allow_unused=True, materialize_grads=True)
    ours = torch.autograd.grad(scalar(got.loss), leaves, allow_unused=True, materialize_grads=True)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)
