"""The loss of a graph equals plain loops with autograd, whatever lengths, links, layout and chunking are drawn."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bnb_ds.dag import tiles
from bnb_ds.dag.loss import linear_dag_loss
from bnb_ds.dag.paths import dag_best_path
from bnb_ds.dag.strategies import dag_decode
from tests.plain_dag import links_of, path_log_prob, plain_linear_dag

pytestmark = pytest.mark.slow

HIDDEN = 5


@st.composite
def batches(draw):
    """Lengths 0 to 9, targets of few kinds of tokens, often too long or too short; some links are missing."""
    vocab_size = draw(st.integers(1, 7))
    token = st.integers(0, min(vocab_size, 3) - 1)
    lengths = draw(st.lists(st.integers(0, 9), min_size=1, max_size=4).filter(any))
    targets = [draw(st.lists(token, min_size=min(length, 1), max_size=length + 1)) for length in lengths]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    rows = [torch.randn(length, HIDDEN, dtype=torch.float64, generator=generator) for length in lengths]
    weight = torch.randn(vocab_size, HIDDEN, dtype=torch.float64, generator=generator)
    bias = torch.randn(vocab_size, dtype=torch.float64, generator=generator) if draw(st.booleans()) else None
    sigma, missing = draw(st.sampled_from([1.0, 40.0])), draw(st.sampled_from([0.0, 0.3]))
    links = []
    for length in lengths:
        one = (
            links_of(sigma * torch.randn(length, length, dtype=torch.float64, generator=generator)) if length else None
        )
        one = torch.zeros(0, 0, dtype=torch.float64) if one is None else one
        links.append(one.masked_fill(torch.rand(length, length, generator=generator) < missing, -math.inf))
    reduction = draw(st.sampled_from(["none", "sum", "mean", "token_sum", "sample_sum"]))
    return rows, weight, bias, links, targets, reduction, draw(st.integers(1, 9)), draw(st.booleans())


def arguments(rows, links, targets, is_padded, dtype):
    """Hidden states; links; and targets, input lengths, target lengths and cu_seqlens by name; in either layout."""
    lengths = torch.tensor([len(row) for row in rows])
    longest, target_lengths = int(lengths.max()), torch.tensor([len(target) for target in targets])
    padded_links = torch.stack(
        [torch.nn.functional.pad(one, (0, longest - len(one), 0, longest - len(one)), value=torch.nan) for one in links]
    )
    if is_padded:
        values = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=torch.nan)
        labels = torch.full((len(rows), max(map(len, targets)) + 1), -100)
        for row, target in zip(labels, targets, strict=True):
            row[: len(target)] = torch.tensor(target, dtype=torch.int64)
        named = {"targets": labels, "input_lengths": lengths}
    else:
        values, labels = torch.cat(rows), torch.tensor([token for target in targets for token in target]).long()
        cu_seqlens = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int()
        named = {"targets": labels, "input_lengths": None, "cu_seqlens": cu_seqlens}
    return values.to(dtype), padded_links.to(dtype), {**named, "target_lengths": target_lengths}


def scalar(loss):
    """One number with a different weight for each entry of an unreduced loss."""
    return (loss * torch.arange(1, loss.numel() + 1)).sum() if loss.dim() else loss


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@settings(max_examples=120, deadline=None)
@given(batch=batches(), tile_bytes=st.sampled_from([8, 64, 10 << 20]))
def test_loss_and_gradients_equal_plain_loops(dtype, batch, tile_bytes):
    rows, weight, bias, links, targets, reduction, chunk_tokens, is_padded = batch
    leaves = [tensor.requires_grad_() for tensor in (*rows, *links, weight, bias) if tensor is not None]
    expected = plain_linear_dag(rows, weight, bias, links, targets, reduction=reduction)
    ours_leaves = [leaf.detach().to(dtype).requires_grad_() for leaf in leaves]
    count = len(rows)
    ours_weight, ours_bias = ours_leaves[2 * count], ours_leaves[-1] if bias is not None else None
    hidden, log_links, named = arguments(ours_leaves[:count], ours_leaves[count : 2 * count], targets, is_padded, dtype)
    options = {"reduction": reduction, "chunk_tokens": chunk_tokens, **named}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "_TILE_BYTES", tile_bytes)
        got = linear_dag_loss(hidden, ours_weight, ours_bias, log_links, **options)
        ours = torch.autograd.grad(scalar(got.loss), ours_leaves, allow_unused=True, materialize_grads=True)
    tolerance = {"rtol": 0, "atol": 1e-9} if dtype == torch.float64 else {"rtol": 2e-5, "atol": 1e-4}
    torch.testing.assert_close(got.loss.double(), expected, **tolerance)
    theirs = torch.autograd.grad(scalar(expected), leaves, allow_unused=True, materialize_grads=True)
    size = max(gradient.abs().max().item() for gradient in theirs if gradient.numel())
    for one, other in zip(ours, theirs, strict=True):
        atol = 1e-9 if dtype == torch.float64 else 3e-5 * max(size, 1.0)
        torch.testing.assert_close(one.double(), other, rtol=0, atol=atol)


@settings(max_examples=80, deadline=None)
@given(batch=batches())
def test_the_best_path_has_the_probability_it_says_and_no_more_than_all_paths(batch):
    rows, weight, bias, links, targets, _, chunk_tokens, is_padded = batch
    hidden, log_links, named = arguments(rows, links, targets, is_padded, torch.float64)
    path, log_prob = dag_best_path(hidden, weight, bias, log_links, chunk_tokens=chunk_tokens, **named)
    output = linear_dag_loss(hidden, weight, bias, log_links, reduction="none", zero_infinity=False, **named)
    assert (log_prob <= -output.nll + 1e-9).all()
    for index, (row, one, target) in enumerate(zip(rows, links, targets, strict=True)):
        slots = (path[index] >= 0).nonzero()[:, 0].tolist()
        if output.infeasible[index]:
            assert slots == []
            assert log_prob[index] == -math.inf
            continue
        assert path[index][slots].tolist() == list(range(len(target)))
        assert slots[0] == 0
        assert slots[-1] == len(row) - 1
        logits = row @ weight.T if bias is None else row @ weight.T + bias
        emitted = logits.log_softmax(1)[slots, target].sum()
        assert log_prob[index].item() == pytest.approx((emitted + path_log_prob(one, tuple(slots))).item(), abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(batch=batches(), strategy=st.sampled_from(["greedy", "lookahead", "viterbi", "joint_viterbi", "beam"]))
def test_every_strategy_writes_what_a_graph_can_emit(batch, strategy):
    """From the best token of the first slot to that of the last, no longer than the graph, no neighbours alike."""
    rows, weight, bias, links, *_ = batch
    for row, one in zip(rows, links, strict=True):
        if not len(row):
            continue
        log_probs = (row @ weight.T if bias is None else row @ weight.T + bias).log_softmax(1)
        ids, lengths = dag_decode(log_probs[None], one[None], torch.tensor([len(row)]), strategy)
        tokens = ids[0, : lengths[0]].tolist()
        assert 1 <= len(tokens) <= len(row)
        assert all(a != b for a, b in itertools.pairwise(tokens))
        if strategy != "beam":
            assert tokens[0] == log_probs[0].argmax()
            assert tokens[-1] == log_probs[-1].argmax()
