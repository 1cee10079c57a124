"""A graph in blocks: forced slots, and links that no block's path may leave by."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from bnb_ds.common.packing import PackedLayout
from bnb_ds.dag.loss import linear_dag_loss
from bnb_ds.dag.paths import dag_best_path
from bnb_ds.errors import ConfigError
from bnb_ds.modeling import BnbConfig, BnbForConditionalGeneration
from bnb_ds.targets.blocks import blocks_of
from tests.plain_dag import joint_log_prob, paths, random_links
from tests.tiny import bert_config

BOS, EOS, MASK = 2, 3, 1


def layout_of(lengths: list[int]) -> PackedLayout:
    return PackedLayout.from_lengths(torch.tensor(lengths), num_tokens=sum(lengths), max_seqlen=max(lengths))


def test_separators_stand_in_proportion_and_links_end_at_them():
    targets = [[BOS, 7, MASK, 8, 9, MASK, 7, EOS], [BOS, MASK, EOS], [MASK, 7, MASK], [BOS, 7, MASK, 8, EOS]]
    slots = [15, 3, 9, 4]  # the last one has no room
    flat = torch.tensor([token for target in targets for token in target])
    blocks = blocks_of(flat, torch.tensor([len(target) for target in targets]), MASK, layout_of(slots))
    forced, furthest = (values.split(slots) for values in (blocks.forced, blocks.furthest))
    assert [(slot, index) for slot, index in enumerate(forced[0].tolist()) if index >= 0] == [(4, 2), (10, 5)]
    assert furthest[0].tolist() == [4] * 4 + [10] * 6 + [14] * 5
    assert forced[1].tolist() == [-1, 1, -1]
    assert furthest[1].tolist() == [1, 2, 2]
    assert [set(values.tolist()) for values in (*forced[2:], *furthest[2:])] == [{-1}, {-1}, {8}, {3}]


@pytest.mark.parametrize("length", [5, 9, 40])
def test_every_segment_of_a_target_that_fits_has_a_slot_for_each_token(length):
    generator = torch.Generator().manual_seed(length)
    for slots in range(length, 3 * length):
        target = torch.where(torch.rand(length, generator=generator) < 0.3, MASK, 7)
        target[[0, -1]] = torch.tensor([BOS, EOS])
        forced = blocks_of(target, torch.tensor([length]), MASK, layout_of([slots])).forced
        places = [(0, 0), *((slot, index) for slot, index in enumerate(forced.tolist()) if index >= 0)]
        places.append((slots - 1, length - 1))
        assert len(places) == 2 + int((target == MASK).sum())
        for (slot, index), (next_slot, next_index) in itertools.pairwise(places):
            assert next_slot - slot >= next_index - index


def forced_nll(log_probs: Tensor, links: Tensor, target: list[int], forced: list[int]) -> Tensor:
    """Over the paths on which each forced slot emits its token; what it emits costs nothing."""
    free, every = log_probs.clone(), []
    for slot, index in enumerate(forced):
        if index >= 0:
            free[slot] = 0.0
    for path in paths(len(links), len(target)):
        if all(index < 0 or path[index] == slot for slot, index in enumerate(forced)):
            every.append(joint_log_prob(free, links, path, target))
    return -torch.logsumexp(torch.stack(every), 0)


@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize("packed", [False, True])
def test_the_loss_adds_up_the_paths_through_forced_slots(reduction, packed):
    generator = torch.Generator().manual_seed(3)
    shapes = ((2, 7, 3), (5, 3), (5,))
    hidden, weight, bias = (torch.randn(*s, generator=generator, dtype=torch.float64) for s in shapes)
    links = torch.stack([random_links(7, seed=seed) for seed in (1, 2)])
    leaves = [value.requires_grad_() for value in (hidden, weight, bias, links)]
    targets, forced = [[2, 4, 1, 4, 3], [2, 1, 3]], [[-1, -1, -1, 2, -1, -1, -1], [-1, 1, -1, -1, -1, -1, -1]]
    labels = torch.tensor([token for target in targets for token in target])
    lengths, given = torch.tensor([7, 7]), torch.tensor(forced)
    options = {"reduction": reduction, "forced": given}
    rows, input_lengths = hidden, lengths
    if packed:
        rows, input_lengths = hidden.flatten(0, 1), None
        options |= {"cu_seqlens": torch.tensor([0, 7, 14], dtype=torch.int32), "forced": given.flatten()}
    loss = linear_dag_loss(rows, weight, bias, links, labels, input_lengths, torch.tensor([5, 3]), **options).loss.sum()
    log_probs = (hidden @ weight.T + bias).log_softmax(-1)
    expected = sum(forced_nll(*case) for case in zip(log_probs, links, targets, forced, strict=True))
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-12)
    for got, wanted in zip(*(torch.autograd.grad(each, leaves) for each in (loss, expected)), strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)
    options.pop("reduction")
    best, _ = dag_best_path(rows, weight, bias, links, labels, input_lengths, torch.tensor([5, 3]), **options)
    assert best[0, 3] == 2
    assert best[1, 1] == 1


@pytest.mark.parametrize(
    ("forced", "message"),
    [
        (torch.zeros(1, 3, dtype=torch.int64), r"forced has shape \(1, 3\): give \[1, 4\]"),
        (
            torch.tensor([[-1, 3, -1, -1]]),
            r"forced\[0, 1\] is 3: give -1, or the index of one of the target's 3 tokens",
        ),
        (torch.tensor([[-1, -2, -1, -1]]), r"forced\[0, 1\] is -2: give -1"),
    ],
)
def test_what_cannot_be_forced_is_refused(forced, message):
    with pytest.raises(ValueError, match=message):
        linear_dag_loss(
            torch.zeros(1, 4, 2),
            torch.zeros(5, 2),
            None,
            random_links(4)[None].float(),
            torch.tensor([[1, 2, 3]]),
            torch.tensor([4]),
            torch.tensor([3]),
            forced=forced,
        )


def new_model(**fields: object) -> BnbForConditionalGeneration:
    sizes = {"vocab_size": 30, "hidden_size": 16, "num_attention_heads": 4, "max_position_embeddings": 64}
    halves = {"encoder": bert_config(**sizes), "decoder": bert_config(**sizes)}
    settings = {"target": "dag", "decoder_tokens": True, "decoder_length_ratio": 4.0, "mask_token_id": MASK, **fields}
    torch.manual_seed(0)
    return BnbForConditionalGeneration(BnbConfig(**halves, bos_token_id=BOS, eos_token_id=EOS, **settings)).eval()


def test_a_model_learns_and_writes_segments_in_blocks():
    model, plain = new_model(segment_blocks=True, deep_supervision=True), new_model(deep_supervision=True)
    source = torch.tensor([[BOS, 7, MASK, 8, MASK, EOS]])
    whole, parts = torch.tensor([[BOS, 7, 8, 9, EOS]]), torch.tensor([[BOS, 7, MASK, 9, MASK, 8, 8, EOS]])
    for labels, is_same in ((whole, True), (parts, False)):
        losses = [each(source, labels=labels).loss.item() for each in (model, plain)]
        assert (losses[0] == losses[1]) == is_same
        assert all(math.isfinite(loss) for loss in losses)
    written = model(source, labels=parts, return_best=True).best[0]
    assert MASK in written  # two that stand side by side become one
    model.train()
    draws = torch.rand(24, generator=torch.Generator().manual_seed(1))
    loss = model(source, labels=parts, glance_ratio=1.0, glance_draws=draws).loss
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"target": "ctc"}, "segment_blocks is for target 'dag': set it to false"),
        ({"mask_token_id": None, "decoder_tokens": False}, r"segment_blocks needs mask_token_id, the id of \[MASK\]"),
    ],
)
def test_models_that_have_no_blocks(fields, message):
    with pytest.raises(ConfigError, match=message):
        new_model(segment_blocks=True, **fields)
