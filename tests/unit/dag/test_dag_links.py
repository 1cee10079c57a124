"""The network of links against its formula, head by head."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from bnb_ds.common.packing import PackedLayout
from bnb_ds.dag import links as dag_links
from bnb_ds.dag.links import LinkNetwork

HIDDEN, HEADS = 6, 3


def network(dtype: torch.dtype = torch.float64) -> LinkNetwork:
    torch.manual_seed(0)
    return LinkNetwork(HIDDEN, HEADS, max_slots=9, initializer_range=0.7).to(dtype)


def packed(lengths: list[int], dtype: torch.dtype = torch.float64) -> tuple[Tensor, PackedLayout]:
    layout = PackedLayout.from_lengths(torch.tensor(lengths), num_tokens=sum(lengths), max_seqlen=max(lengths))
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(sum(lengths), HIDDEN, dtype=torch.float64, generator=generator)
    return hidden.to(dtype).requires_grad_(), layout


def plain(network: LinkNetwork, hidden: Tensor, furthest: list[int] | None = None) -> Tensor:
    """[L, L] of one sequence, link by link."""
    num_slots = len(hidden)
    states = torch.cat((hidden, network.positions.weight[:num_slots]), 1)
    query, key = (linear(states).unflatten(1, (HEADS, HIDDEN // HEADS)) for linear in (network.query, network.key))
    gate = network.gate(states).log_softmax(1)
    rows = []
    for i in range(num_slots):
        last = num_slots - 1 if furthest is None else furthest[i]
        row = [hidden.new_tensor(-math.inf)] * num_slots
        if last > i:
            scores = torch.stack(
                [(query[i] * key[j]).sum(1) / math.sqrt(HIDDEN // HEADS) for j in range(i + 1, last + 1)]
            )
            mixed = torch.logsumexp(gate[i] + scores.log_softmax(0), 1)
            row[i + 1 : last + 1] = list(mixed)
        rows.append(torch.stack(row))
    return torch.stack(rows)


@pytest.mark.parametrize("block_bytes", [1, 8 * HEADS * 7 * 4 * 3, 1 << 20])
@pytest.mark.parametrize("has_segments", [False, True])
def test_equals_the_formula(monkeypatch, block_bytes, has_segments):
    monkeypatch.setattr(dag_links, "_BLOCK_BYTES", block_bytes)
    model, lengths = network(), [7, 1, 4, 2]
    hidden, layout = packed(lengths)
    furthest = [[3, 3, 3, 6, 6, 5, 6], [0], [3, 3, 3, 3], [1, 1]] if has_segments else [None] * 4
    furthest_N = torch.tensor([slot for one in furthest for slot in one]) if has_segments else None
    got = model(hidden, layout, furthest_N)
    assert got.shape == (4, 7, 7)
    expected = torch.full_like(got, -math.inf)
    for b, (rows, last) in enumerate(zip(hidden.split(lengths), furthest, strict=True)):
        expected[b, : lengths[b], : lengths[b]] = plain(model, rows, last)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    assert (got.exp().sum(2)[got.amax(2) > -math.inf] - 1).abs().max() < 1e-12
    is_link = got > -math.inf
    weights = torch.randn(int(is_link.sum()), dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    leaves = [hidden, *model.parameters()]
    ours = torch.autograd.grad((got[is_link] * weights).sum(), leaves)
    theirs = torch.autograd.grad((expected[is_link] * weights).sum(), leaves)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_gradients_that_are_not_numbers_where_there_is_no_link_change_nothing():
    model = network()
    hidden, layout = packed([5, 2])
    links = model(hidden, layout)
    poisoned = torch.where(links > -math.inf, 1.0, math.nan).double()
    assert all(g.isfinite().all() for g in torch.autograd.grad(links, (hidden, *model.parameters()), poisoned))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_links_are_float32_under_autocast_and_in_a_model_of_16_bits(dtype):
    """bf16 scores would be off by percents."""
    hidden, layout = packed([7, 3], torch.float32)
    plain_links = network(torch.float32)(hidden, layout)
    with torch.autocast("cpu", dtype):
        under_autocast = network(torch.float32)(hidden, layout)
    assert under_autocast.dtype == torch.float32
    assert torch.equal(under_autocast, plain_links)
    half = network(torch.float32).to(dtype)
    states = hidden.detach().to(dtype).requires_grad_()
    got = half(states, layout)
    assert got.dtype == torch.float32
    assert torch.equal(got, half.float()(states.float(), layout))
    model = network(torch.float32).to(dtype)
    model(states, layout)[:, 0, 1].sum().backward()
    assert states.grad.dtype == model.query.weight.grad.dtype == dtype


def test_the_same_slots_in_other_company_have_the_same_links():
    model = network()
    hidden, layout = packed([5, 7, 3])
    together = model(hidden, layout)
    for b, (rows, n) in enumerate(zip(hidden.split([5, 7, 3]), [5, 7, 3], strict=True)):
        alone = model(rows, PackedLayout.from_lengths(torch.tensor([n]), num_tokens=n, max_seqlen=n))
        torch.testing.assert_close(together[b, :n, :n], alone[0], rtol=0, atol=1e-12)


def test_peaked_scores_are_finite():
    model = network(torch.float32)
    hidden, layout = packed([7], torch.float32)
    links = model(1e3 * hidden, layout)
    assert links[0][torch.ones(7, 7, dtype=torch.bool).triu(1)].isfinite().all()
    links[0, :-1].exp().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_a_second_derivative_is_refused():
    hidden, layout = packed([4])
    link = network()(hidden, layout)[0, 0, 1]
    with pytest.raises(
        RuntimeError, match=r"links have no second derivative.* Call backward without create_graph=True"
    ):
        torch.autograd.grad(link, hidden, create_graph=True)


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match="num_heads is 4: give a divisor of the hidden size 6"):
        LinkNetwork(6, 4, 9)
    with pytest.raises(ValueError, match="num_heads is 0"):
        LinkNetwork(6, 0, 9)
    hidden, layout = packed([10])
    with pytest.raises(
        ValueError, match="a graph of 10 slots is longer than the 9 places of the links: make max_slots"
    ):
        network()(hidden, layout)


def test_blocks_of_a_gpu_are_few():
    numbers = {device: torch.empty(20, 8, 1024, 64, device=device) for device in ("cpu", "meta")}
    assert {device: len(list(dag_links._blocks(query))) for device, query in numbers.items()} == {"cpu": 41, "meta": 4}
