from __future__ import annotations

import math

import pytest

from bnb_ds.train.schedule import learning_rate_multiplier


def test_warm_up_rises_linearly_and_wastes_no_step():
    multiplier = learning_rate_multiplier(100, warmup_ratio=0.1)
    assert [multiplier(step) for step in range(10)] == pytest.approx([(step + 1) / 10 for step in range(10)])


@pytest.mark.parametrize("final_ratio", [0.0, 0.25])
def test_linear_decay_ends_at_the_final_ratio(final_ratio):
    multiplier = learning_rate_multiplier(100, warmup_ratio=0.1, decay="linear", final_ratio=final_ratio)
    assert multiplier(10) == 1.0
    assert multiplier(55) == pytest.approx(final_ratio + (1 - final_ratio) / 2)
    assert multiplier(100) == multiplier(1000) == pytest.approx(final_ratio)


def test_cosine_decay_is_the_half_wave():
    multiplier = learning_rate_multiplier(90, warmup_ratio=0.0, decay="cosine")
    assert multiplier(0) == 1.0
    assert multiplier(30) == pytest.approx(0.5 * (1 + math.cos(math.pi / 3)))
    assert multiplier(90) == pytest.approx(0.0)


def test_constant_stays():
    multiplier = learning_rate_multiplier(10, warmup_ratio=0.2, decay="constant", final_ratio=0.1)
    assert [multiplier(step) for step in (1, 5, 10)] == [1.0, 1.0, 1.0]


def test_all_warm_up_does_not_divide_by_zero():
    assert learning_rate_multiplier(3, warmup_ratio=1.0)(3) == 1.0
