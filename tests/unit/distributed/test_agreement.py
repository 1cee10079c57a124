"""What every rank raises when one rank's loader fails. tests/distributed/test_loader_errors.py runs real ranks."""

from __future__ import annotations

import pytest
import torch

from bnb_ds.distributed import ranks
from bnb_ds.distributed.agreement import agreed
from bnb_ds.errors import DataError

CPU = torch.device("cpu")


def failing(error, after=2):
    yield from range(after)
    raise error


def test_steps_come_through():
    assert list(agreed(range(4), CPU)) == [0, 1, 2, 3]


def test_alone_an_error_is_itself():
    with pytest.raises(DataError, match=r"^a\.npy: cannot be read$"):
        list(agreed(failing(DataError("a.npy: cannot be read")), CPU))
    with pytest.raises(ZeroDivisionError):
        list(agreed(failing(ZeroDivisionError()), CPU))


@pytest.fixture
def others(monkeypatch):
    """Let this process be rank 0 of three, with given messages of the other ranks."""

    def set_messages(*messages):
        count = sum(message is not None for message in messages)
        monkeypatch.setattr(ranks, "world_size", lambda: 3)
        monkeypatch.setattr(ranks, "all_sum", lambda tensor: tensor + count)
        monkeypatch.setattr(ranks, "gather", lambda value: [value, *([message] for message in messages)])

    return set_messages


def test_another_ranks_error_ends_this_one_at_the_same_step(others):
    others(None, "b.npy: missing")
    with pytest.raises(DataError, match=r"^rank 2: b\.npy: missing$"):
        next(agreed(range(4), CPU))


def test_the_first_of_several_is_named_on_all(others):
    others("b.npy: missing", "c.npy: missing")
    with pytest.raises(DataError, match=r"^rank 0: a\.npy$"):
        next(agreed(failing(DataError("a.npy"), after=0), CPU))


def test_a_fault_of_ours_keeps_its_traceback_where_it_happened_and_is_named_elsewhere(others):
    others(None, None)
    with pytest.raises(ZeroDivisionError):
        next(agreed(failing(ZeroDivisionError("here"), after=0), CPU))
    others("ZeroDivisionError('there')", None)
    with pytest.raises(DataError, match=r"^rank 1: ZeroDivisionError\('there'\)$"):
        next(agreed(range(4), CPU))
