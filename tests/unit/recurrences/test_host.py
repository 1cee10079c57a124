"""Copies between a device and the host."""

from __future__ import annotations

import pytest
import torch

from bnb_ds.common.packing import on_host
from bnb_ds.recurrences.host import through_host
from tests.stand_in import ELSEWHERE, Far, elsewhere


def test_tensors_of_several_dtypes_come_with_one_wait(monkeypatch):
    tensors = [
        torch.tensor([[True, False, True]]),
        torch.tensor([1.5, -torch.inf], dtype=torch.float64),
        torch.tensor([7, -7, 2], dtype=torch.int32),
        torch.empty(0, 3),
        torch.tensor(9),
        torch.arange(12.0, dtype=torch.bfloat16).view(3, 4).t(),
    ]
    with elsewhere(monkeypatch) as waits:
        got = on_host([Far(tensor) for tensor in tensors])
    assert len(waits) == 1, waits
    for ours, known in zip(got, tensors, strict=True):
        assert ours.device.type == "cpu"
        assert ours.dtype == known.dtype
        assert torch.equal(ours, known)


def test_a_recurrence_runs_on_the_host_and_what_is_missing_stays_so(monkeypatch):
    def recurrence(one, nothing, other):
        assert one.device.type == other.device.type == "cpu"
        assert nothing is None
        return one + other, None

    one, other = torch.tensor([1.0, 2.0]), torch.tensor([3, 4])
    with elsewhere(monkeypatch) as waits:
        total, nothing = through_host(recurrence, Far(one), None, Far(other))
        assert total.device == ELSEWHERE
        assert total.held.tolist() == [4.0, 6.0]
        assert nothing is None
    assert len(waits) == 1
    assert through_host(recurrence, one, None, other)[0].tolist() == [4.0, 6.0]


@pytest.mark.parametrize("there", [lambda tensor: tensor, Far])
def test_gradients_pass(there, monkeypatch):
    left, right = (torch.randn(3, dtype=torch.float64, generator=torch.Generator().manual_seed(n)) for n in (0, 1))
    with elsewhere(monkeypatch):
        given = [there(tensor).requires_grad_() for tensor in (left, right)]
        (product,) = through_host(lambda *operands: (operands[0] * operands[1],), *given)
        product.sum().backward()
        gradients = [getattr(leaf.grad, "held", leaf.grad) for leaf in given]
    torch.testing.assert_close(gradients, [right, left])
