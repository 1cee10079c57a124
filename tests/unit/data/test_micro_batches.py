from __future__ import annotations

import numpy as np
import pytest

from bnb_ds.data.micro_batches import deal_by_count, deal_by_tokens


def test_by_count_short_ones_first():
    groups = deal_by_count(np.array([9, 2, 7, 1, 8, 3]), 2)
    assert [group.tolist() for group in groups] == [[3, 1], [5, 2], [4, 0]]


def fewest_groups(lengths, max_tokens):
    """Next fit over the sorted lengths, in its simplest form."""
    groups, room = 0, 0
    for length in sorted(lengths):
        if length > room:
            groups, room = groups + 1, max_tokens
        room -= length
    return groups


@pytest.mark.parametrize("seed", range(30))
def test_by_tokens_within_the_budget_equal_numbers_for_ranks_and_even(seed):
    rng = np.random.default_rng(seed)
    world_size = int(rng.integers(1, 5))
    lengths = np.minimum(rng.lognormal(3, 1, world_size * rng.integers(1, 20)).astype(int) + 3, 120)
    max_tokens = int(rng.integers(lengths.max(), 400))
    groups = deal_by_tokens(lengths, max_tokens, world_size)
    assert sorted(np.concatenate(groups).tolist()) == list(range(lengths.size))
    assert all(group.size for group in groups)
    assert len(groups) % world_size == 0
    assert len(groups) - fewest_groups(lengths, max_tokens) < world_size
    tokens = [int(lengths[group].sum()) for group in groups]
    assert max(tokens) <= max_tokens
    # Groups are runs of sorted samples, so none exceeds the mean by more than its longest sample.
    assert max(tokens) <= lengths.sum() / len(groups) + lengths.max()
    assert (np.diff(lengths[np.concatenate(groups)]) >= 0).all()


def test_by_tokens_with_samples_as_long_as_the_budget():
    assert [g.tolist() for g in deal_by_tokens(np.array([5, 5, 5, 5]), 5, 2)] == [[0], [1], [2], [3]]


def test_by_tokens_more_ranks_than_groups_are_needed():
    assert sorted(g.size for g in deal_by_tokens(np.array([1, 1, 1, 1]), 100, 4)) == [1, 1, 1, 1]


def test_a_sample_above_the_budget_is_refused():
    with pytest.raises(ValueError, match="a sample of 9 tokens does not fit a micro batch of 8"):
        deal_by_tokens(np.array([1, 9]), 8, 1)
