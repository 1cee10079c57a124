"""For any mix of lengths, outputs do not depend on padding or packing, on the order or on the other sequences."""

from __future__ import annotations

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiny import bnb_model, packed_form, padded_form, source_ids

LENGTHS = st.lists(st.integers(1, 12), min_size=1, max_size=6)
FEW = settings(max_examples=40, deadline=None)


@functools.cache
def model(positions: str = "shared", ratio: float = 2.0, policy: str = "source"):
    halves = {"decoder": {"hidden_size": 15, "num_hidden_layers": 1}, "encoder": {"num_hidden_layers": 1}}
    lengths = {"decoder_length": policy, "length_difference_min": -7, "length_difference_max": 4}
    return bnb_model(decoder_positions=positions, decoder_length_ratio=ratio, kl_weight=0.3, **lengths, **halves)


def same(first, second):
    torch.testing.assert_close(first, second, rtol=0, atol=1e-10)


@FEW
@given(
    LENGTHS,
    st.sampled_from(["absolute", "shared"]),
    st.sampled_from([2.0, 1.0, 0.4]),
    st.sampled_from(["source", "predicted"]),
    st.integers(0, 99),
)
def test_padded_equals_packed(lengths, positions, ratio, policy, seed):
    sources = source_ids(lengths, seed)
    targets = source_ids([(length + 1) // 2 for length in lengths], seed + 1)
    network = model(positions, ratio, policy)
    padded = network(**padded_form(sources, targets), return_logits=True)
    packed = network(**packed_form(sources, targets), return_logits=True)
    same(padded.loss_sum, packed.loss_sum)
    assert padded.loss_count == packed.loss_count
    assert padded.num_infeasible == packed.num_infeasible
    assert (padded.length_loss is None) == (policy == "source")
    assert torch.equal(padded.decoder_lengths, packed.decoder_lengths)
    rows = [padded.logits[b, :length] for b, length in enumerate(padded.decoder_lengths)]
    same(torch.cat(rows), packed.logits)
    states = [padded.encoder_last_hidden_state[b, :length] for b, length in enumerate(lengths)]
    same(torch.cat(states), packed.encoder_last_hidden_state)
    gradients = [torch.autograd.grad(output.loss_sum, network.model.parameters()) for output in (padded, packed)]
    for first, second in zip(*gradients, strict=True):
        same(first, second)


@FEW
@given(LENGTHS, st.randoms(use_true_random=False))
def test_padding_may_stand_anywhere(lengths, random):
    sources = source_ids(lengths)
    width = max(lengths) + 3
    ids, mask = torch.zeros(len(lengths), width, dtype=torch.int64), torch.zeros(len(lengths), width)
    for row, source in enumerate(sources):
        columns = sorted(random.sample(range(width), len(source)))
        ids[row, columns], mask[row, columns] = source, 1.0
    scattered, tidy = model()(ids, mask), model()(**padded_form(sources))
    same(scattered.logits, tidy.logits)
    real = tidy.encoder_last_hidden_state[padded_form(sources)["attention_mask"].bool()]
    same(scattered.encoder_last_hidden_state[mask.bool()], real)


@pytest.mark.slow
@FEW
@given(LENGTHS, st.sampled_from(["source", "predicted"]), st.randoms(use_true_random=False))
def test_neither_order_nor_company_matters(lengths, policy, random):
    network = model(policy=policy)
    sources = source_ids(lengths)
    together = network(**padded_form(sources))
    order = list(range(len(sources)))
    random.shuffle(order)
    shuffled = network(**padded_form([sources[b] for b in order]))
    same(shuffled.logits, together.logits[order])
    for b, source in enumerate(sources):
        alone = network(source[None])
        same(alone.logits[0], together.logits[b, : int(alone.decoder_lengths)])
    beam = {"length_beam": 3} if policy == "predicted" else {}
    generated = network.generate(**padded_form(sources), **beam)
    assert torch.equal(network.generate(**padded_form([sources[b] for b in order]), **beam), generated[order])
