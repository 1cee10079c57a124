"""Which rank is slow, and at what."""

from __future__ import annotations

import pytest
import torch

from bnb_ds.distributed.stragglers import Slow, Stragglers, find_slow


@pytest.mark.parametrize(
    ("data", "forward", "expected"),
    [
        ([1, 1, 1, 1], [2, 2, 2, 2], []),
        ([1, 1, 1, 1], [2, 2, 5, 2], [(2, "forward", 5, 2)]),
        ([9, 1, 1, 1], [2, 2, 5, 2], [(0, "data", 9, 1), (2, "forward", 5, 2)]),
        ([1, 1], [2, 3.1], [(1, "forward", 3.1, 2)]),  # of two ranks, the other is the measure
        ([1, 1, 1, 1], [2, 2, 2.9, 2], []),  # not 1.5 times the others
        ([0.1, 0.1, 0.4, 0.1], [2, 2, 2, 2], []),  # 4 times the others, but it costs 3% of the time
        ([1, 1, 1, 1], [0, 0, 0, 3], [(3, "forward", 3, 0)]),
        ([1], [2], []),
    ],
)
def test_slow_ranks(data, forward, expected):
    rows = [{"data": one, "forward": other} for one, other in zip(data, forward, strict=True)]
    if len(rows) == 1:
        assert Stragglers(torch.device("cpu"), 1, 1.5).step_done(1, 10.0) == []
        return
    assert find_slow(rows, whole=10.0, factor=1.5) == [Slow(*values) for values in expected]
