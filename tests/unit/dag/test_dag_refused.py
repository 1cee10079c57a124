"""What the loss and the best path of a graph refuse, and how they say it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from bnb_ds.dag.inputs import fits
from bnb_ds.dag.loss import linear_dag_loss
from bnb_ds.dag.paths import dag_best_path
from tests.plain_dag import random_links

VOCAB, HIDDEN = 4, 3


def graphs(lengths: list[int]) -> Tensor:
    return torch.stack([random_links(n, seed=i) for i, n in enumerate(lengths)])


GOOD = {
    "hidden": torch.zeros(2, 3, HIDDEN),
    "log_links": graphs([3, 3]).float(),
    "targets": torch.tensor([[1, 2], [3, 0]]),
    "input_lengths": torch.tensor([3, 3]),
    "target_lengths": torch.tensor([2, 2]),
}
PACKED = {"hidden": torch.zeros(6, HIDDEN), "input_lengths": None}


def changed(place: tuple[int, int, int], value: float) -> Tensor:
    links = GOOD["log_links"].clone()
    links[place] = value
    return links


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"targets": torch.tensor([[1, 4], [3, 0]])}, ValueError, r"holds the label 4: labels must lie in \[0, 4\)"),
        ({"targets": torch.tensor([[1, -1], [3, 0]])}, ValueError, r"holds the label -1: labels must lie in \[0, 4\)"),
        ({"target_lengths": torch.tensor([3, 1])}, ValueError, "target_lengths holds 3: .* between 0 and 2"),
        ({"target_lengths": torch.tensor([2])}, ValueError, "target_lengths has 1 entries for a batch of 2"),
        ({"target_lengths": torch.tensor([[2], [2]])}, ValueError, r"target_lengths has shape \(2, 1\): give one row"),
        ({"target_lengths": [2, 2]}, TypeError, "target_lengths is of type list: give a tensor of integers"),
        ({"input_lengths": torch.tensor([[3, 3]])}, ValueError, r"input_lengths has shape \(1, 2\): give one row"),
        ({"targets": [[1, 2], [3, 0]]}, TypeError, "targets are of type list: give a tensor of integer token ids"),
        ({"bias": torch.zeros(VOCAB + 1)}, ValueError, r"bias has shape \(5,\): give \[4\]"),
        ({"weight": torch.zeros(VOCAB, HIDDEN + 1)}, ValueError, r"weight has shape \(4, 4\): give \[V, 3\]"),
        ({"forced": torch.full((2, 3), -1.0)}, TypeError, "forced has dtype torch.float32: give integers"),
        ({"input_lengths": torch.tensor([4, 3])}, ValueError, "input_lengths holds 4: .* between 0 and 3"),
        ({"input_lengths": torch.tensor([3.0, 3.0])}, TypeError, "input_lengths has dtype torch.float32"),
        ({"targets": torch.ones(2, 2)}, TypeError, "targets are floating point: give integer token ids"),
        ({"chunk_tokens": 0}, ValueError, "chunk_tokens is 0: give at least 1 position, or None"),
        ({"hidden": torch.zeros(6, HIDDEN)}, ValueError, "hidden has 2 dimensions"),
        (
            {"log_links": graphs([2, 2]).float()},
            ValueError,
            r"log_links has shape \(2, 2, 2\): give \[B, L, L\] with B = 2 and L = 3",
        ),
        ({"log_links": torch.zeros(3, 3)}, ValueError, r"log_links has shape \(3, 3\)"),
        (
            {**PACKED, "cu_seqlens": torch.tensor([0, 3, 6]), "log_links": graphs([2, 2]).float()},
            ValueError,
            r"log_links has shape \(2, 2, 2\): give \[B, L, L\] with B = 2 and L = at least 3",
        ),
        ({"log_links": torch.zeros(2, 3, 3).long()}, TypeError, "log_links has dtype torch.int64: give log-prob"),
        ({"log_links": changed((1, 0, 2), math.nan)}, ValueError, r"log_links\[1, 0, 2\] is nan: .* -inf where there"),
        ({"log_links": changed((0, 2, 1), -3.0)}, ValueError, r"log_links\[0, 2, 1\] is -3: .* lead to a later slot"),
        ({"log_links": changed((0, 1, 1), 0.0)}, ValueError, r"log_links\[0, 1, 1\] is 0: .* lead to a later slot"),
        ({"log_links": changed((0, 0, 1), 0.5)}, ValueError, r"log_links\[0, 0, 1\] is 0.5: .* logarithm of a softmax"),
    ],
)
def test_wrong_input_is_refused(changes, error, message):
    weight, bias = torch.zeros(VOCAB, HIDDEN), torch.zeros(VOCAB)
    arguments = {**GOOD, "weight": weight, "bias": bias, **changes}
    for function in (linear_dag_loss, dag_best_path):
        with pytest.raises(error, match=message):
            function(**arguments)


def test_an_unknown_reduction_is_refused():
    weight, bias = torch.zeros(VOCAB, HIDDEN), torch.zeros(VOCAB)
    with pytest.raises(ValueError, match="reduction is 'average': use one of: none, sum, mean"):
        linear_dag_loss(**GOOD, weight=weight, bias=bias, reduction="average")


@pytest.mark.parametrize(
    ("num_tokens", "num_slots", "expected"),
    [
        (0, 0, False),
        (0, 3, False),
        (1, 1, True),
        (1, 2, False),
        (2, 1, False),
        (2, 2, True),
        (2, 9, True),
        (9, 8, False),
    ],
)
def test_what_fits(num_tokens, num_slots, expected):
    assert fits(num_tokens, num_slots) == expected


def test_where_no_graph_has_a_slot_every_target_is_infeasible():
    weight = torch.zeros(VOCAB, HIDDEN, requires_grad=True)
    none = torch.tensor([0, 0])
    given = {**GOOD, "weight": weight, "bias": None, "input_lengths": none}
    for reduction in ("mean", "none"):
        found = linear_dag_loss(**given, reduction=reduction)
        found.loss.sum().backward()
        assert found.infeasible.all()
        assert found.nll.tolist() == [0, 0]
        assert not weight.grad.any()
    path, log_prob = dag_best_path(**given)
    assert path.tolist() == [[-1] * 3] * 2
    assert log_prob.tolist() == [-math.inf] * 2
