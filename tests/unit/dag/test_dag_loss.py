"""The loss of a graph against brute force, closed forms and plain loops; what is refused."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bnb_ds.dag import alignment
from bnb_ds.dag.inputs import fits
from bnb_ds.dag.loss import linear_dag_loss
from bnb_ds.dag.paths import dag_best_path
from tests.plain_dag import brute_force_best, brute_force_nll, links_of, plain_linear_dag, plain_nll, random_links

VOCAB, HIDDEN = 4, 3


@pytest.fixture(params=[False, True], ids=["scaled", "in logs"])
def either_way(request, monkeypatch):
    """The quick dynamic programme, and the one for graphs that it cannot be trusted with."""
    if request.param:
        monkeypatch.setattr(alignment, "_DROPPED", -math.inf)


def head(seed: int = 0, vocab_size: int = VOCAB, hidden_size: int = HIDDEN) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(vocab_size, hidden_size, dtype=torch.float64, generator=generator)
    return weight.requires_grad_(), torch.randn(vocab_size, dtype=torch.float64, generator=generator).requires_grad_()


def states(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def graphs(lengths: list[int], sigma: float = 1.0, fill: float = -math.inf) -> Tensor:
    """[B, L, L] with one random graph for each length, and ``fill`` beyond them."""
    longest = max(lengths)
    padded = [
        F.pad(random_links(n, seed=7 + i, sigma=sigma), (0, longest - n, 0, longest - n), value=fill)
        for i, n in enumerate(lengths)
    ]
    return torch.stack(padded)


def loss_of(hidden, lengths, targets, weight, bias, links, function=linear_dag_loss, **options):
    """Padded form with Python lists for lengths and targets."""
    labels = torch.tensor([token for target in targets for token in target], dtype=torch.int64)
    target_lengths = torch.tensor([len(target) for target in targets])
    return function(hidden, weight, bias, links, labels, torch.tensor(lengths), target_lengths, **options)


CASES = [
    ("one slot, one token", [1], [[1]]),
    ("ragged batch", [6, 2, 5], [[1, 2, 0], [3, 3], [2, 1, 3, 3]]),
    ("as many slots as tokens", [4, 2], [[1, 1, 1, 1], [2, 0]]),
    ("from the first slot to the last at once", [5, 3], [[1, 2], [3, 3]]),
    ("one long graph and short ones", [8, 1, 2], [[1, 2, 1, 2, 2], [2], [0, 0]]),
]


@pytest.mark.parametrize(("lengths", "targets"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
@pytest.mark.usefixtures("either_way")
def test_equals_brute_force_over_all_paths(lengths, targets):
    (weight, bias), hidden = head(), states(len(lengths), max(lengths), HIDDEN)
    links = graphs(lengths).requires_grad_()
    got = loss_of(hidden, lengths, targets, weight, bias, links, reduction="none")
    log_probs = F.log_softmax(hidden @ weight.T + bias, -1)
    expected = torch.stack(
        [brute_force_nll(log_probs[b, :n], links[b, :n, :n], targets[b]) for b, n in enumerate(lengths)]
    )
    torch.testing.assert_close(got.loss, expected, rtol=0, atol=1e-10)
    textbook = torch.stack([plain_nll(log_probs[b, :n], links[b, :n, :n], targets[b]) for b, n in enumerate(lengths)])
    torch.testing.assert_close(textbook, expected, rtol=0, atol=1e-10)
    assert torch.equal(got.nll, got.loss)
    assert not got.infeasible.any()
    leaves = (hidden, weight, bias, links)
    weights = torch.arange(1.0, 1 + len(lengths))
    for ours, plain in zip(
        torch.autograd.grad((weights * got.loss).sum(), leaves),
        torch.autograd.grad((weights * expected).sum(), leaves, allow_unused=True, materialize_grads=True),
        strict=True,
    ):
        torch.testing.assert_close(ours, plain, rtol=0, atol=1e-10)
    path, log_prob = loss_of(hidden, lengths, targets, weight, bias, links, dag_best_path)
    for b, n in enumerate(lengths):
        best, best_log_prob = brute_force_best(log_probs[b, :n], links[b, :n, :n], targets[b])
        assert log_prob[b].item() == pytest.approx(best_log_prob, abs=1e-10)
        assert [slot for slot in range(max(lengths)) if path[b, slot] >= 0] == list(best)
        assert path[b][path[b] >= 0].tolist() == list(range(len(best)))


def stirling(n: int, k: int) -> int:
    """Unsigned Stirling numbers of the first kind."""
    row = [1]
    for size in range(n):
        row = [size * (row[j] if j < len(row) else 0) + (row[j - 1] if j else 0) for j in range(len(row) + 1)]
    return row[k] if k < len(row) else 0


@pytest.mark.slow
@pytest.mark.parametrize(("num_slots", "num_tokens"), [(2, 2), (5, 3), (64, 20), (256, 32), (1024, 128)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.usefixtures("either_way")
def test_closed_form_of_uniform_links(num_slots, num_tokens, dtype, tolerance):
    """Of one class, and links uniform over later slots: nll = log (L - 1)! - log c(L - 1, S - 1)."""
    hidden, weight = torch.zeros(1, num_slots, 1, dtype=dtype), torch.zeros(1, 1, dtype=dtype)
    links = links_of(torch.zeros(num_slots, num_slots, dtype=dtype))[None].requires_grad_()
    got = loss_of(hidden, [num_slots], [[0] * num_tokens], weight, None, links, reduction="sum")
    expected = math.lgamma(num_slots) - math.log(stirling(num_slots - 1, num_tokens - 1))
    assert got.loss.item() == pytest.approx(expected, rel=tolerance, abs=tolerance)
    got.loss.backward()
    # A path of S slots takes S - 1 links, leaves the first slot once and arrives at the last once.
    taken = -links.grad[0]
    assert taken.sum().item() == pytest.approx(num_tokens - 1, rel=1e-5)
    assert taken[0].sum().item() == pytest.approx(1, rel=1e-5)
    assert taken[:, -1].sum().item() == pytest.approx(1, rel=1e-5)


def test_probabilities_of_all_outputs_add_up_to_1():
    num_slots, vocab_size = 6, 2
    outputs = [
        list(tokens)
        for length in range(2, num_slots + 1)
        for tokens in itertools.product(range(vocab_size), repeat=length)
    ]
    (weight, bias), hidden = head(vocab_size=vocab_size), states(1, num_slots, HIDDEN)
    every = len(outputs)
    got = loss_of(
        hidden.expand(every, -1, -1),
        [num_slots] * every,
        outputs,
        weight,
        bias,
        random_links(num_slots).expand(every, -1, -1),
        reduction="none",
    )
    assert (-got.nll).exp().sum().item() == pytest.approx(1, abs=1e-12)


def ctc_without_merging(log_probs_LV: Tensor, target: list[int]) -> Tensor:
    """Blank is class 0; equal neighbours are two tokens, and the first and the last slot are no blanks."""
    ways = [log_probs_LV[0, target[0]]] + [log_probs_LV.new_tensor(-math.inf)] * (len(target) - 1)
    for log_probs_V in log_probs_LV[1:-1]:
        ways = [
            torch.logaddexp(ways[s] + log_probs_V[0], ways[s - 1] + log_probs_V[token] if s else ways[s] - math.inf)
            for s, token in enumerate(target)
        ]
    return -(ways[-2] + log_probs_LV[-1, target[-1]])


@pytest.mark.parametrize(("num_slots", "num_tokens"), [(7, 4), (150, 30), (400, 60)])
@pytest.mark.usefixtures("either_way")
def test_ctc_without_merging_is_a_graph(num_slots, num_tokens):
    """A link skips blanks: E_ij = (1 - blank_j) * product of blanks between; P(v|j) = p_j(v) / (1 - blank_j)."""
    log_probs = states(num_slots, VOCAB + 1).detach().log_softmax(1)
    log_probs[[0, -1], 0] = -math.inf
    log_probs[[0, -1]] = log_probs[[0, -1]].log_softmax(1)
    target = [1 + i * i % VOCAB for i in range(num_tokens)]
    blank = log_probs[:, 0]
    is_token = torch.log1p(-blank.exp())
    links = torch.full((num_slots, num_slots), -math.inf, dtype=torch.float64)
    for source in range(num_slots - 1):
        skipped = F.pad(blank[source + 1 : -1].cumsum(0), (1, 0))
        links[source, source + 1 :] = skipped + is_token[source + 1 :]
    emissions = log_probs[:, 1:] - is_token[:, None]
    got = loss_of(
        emissions[None],
        [num_slots],
        [[token - 1 for token in target]],
        torch.eye(VOCAB, dtype=torch.float64),
        None,
        links[None],
        reduction="sum",
    )
    assert got.loss.item() == pytest.approx(ctc_without_merging(log_probs, target).item(), rel=1e-10)


def test_packed_equals_padded_and_ignores_what_lies_beyond_lengths():
    lengths, targets = [4, 2, 6], [[1, 2, 2], [3, 0], [2, 2, 1]]
    (weight, bias), hidden = head(), states(3, 6, HIDDEN)
    packed = torch.cat([hidden[b, :n] for b, n in enumerate(lengths)]).detach().requires_grad_()
    labels = torch.tensor([token for target in targets for token in target])
    target_lengths = torch.tensor([3, 2, 3])
    cu_seqlens = torch.tensor([0, 4, 6, 12], dtype=torch.int32)
    links = graphs(lengths).requires_grad_()
    first = linear_dag_loss(packed, weight, bias, links, labels, None, target_lengths, cu_seqlens=cu_seqlens)

    dirty, padded_targets = hidden.detach().clone(), torch.full((3, 5), -100)
    for b, target in enumerate(targets):
        dirty[b, lengths[b] :] = math.nan
        padded_targets[b, : len(target)] = torch.tensor(target)
    dirty.requires_grad_()
    dirty_links = graphs(lengths, fill=math.nan).requires_grad_()
    second = linear_dag_loss(dirty, weight, bias, dirty_links, padded_targets, torch.tensor(lengths), target_lengths)
    for ours, other in zip(first, second, strict=True):
        assert torch.equal(ours, other)
    packed_grads = torch.autograd.grad(first.loss, (weight, bias, links, packed))
    padded_grads = torch.autograd.grad(second.loss, (weight, bias, dirty_links, dirty))
    for ours, other in zip(packed_grads[:3], padded_grads[:3], strict=True):
        torch.testing.assert_close(ours, other, rtol=0, atol=1e-12)
    for b, n in enumerate(lengths):
        assert torch.equal(padded_grads[3][b, :n], packed_grads[3][cu_seqlens[b] : cu_seqlens[b + 1]])
        assert (padded_grads[3][b, n:] == 0).all()


def test_packed_rows_take_links_that_are_wider_than_the_longest():
    (weight, bias), hidden = head(), states(5, HIDDEN)
    wide = F.pad(random_links(5), (0, 3, 0, 3), value=1.0)[None].requires_grad_()
    arguments = (torch.tensor([[1, 2, 3]]), None, torch.tensor([3]))
    cu_seqlens = torch.tensor([0, 5], dtype=torch.int32)
    got = linear_dag_loss(hidden, weight, bias, wide, *arguments, cu_seqlens=cu_seqlens)
    narrow = linear_dag_loss(hidden, weight, bias, wide[:, :5, :5], *arguments, cu_seqlens=cu_seqlens)
    assert got.loss == narrow.loss
    assert torch.autograd.grad(got.loss, wide)[0].shape == (1, 8, 8)
    path, _ = dag_best_path(hidden, weight, bias, wide, *arguments, cu_seqlens=cu_seqlens)
    assert path.shape == (1, 8)
    assert (path[0, 5:] == -1).all()


def test_each_sequence_stands_for_itself():
    """Alone, in company, and in another order: the same loss."""
    lengths, targets = [6, 2, 5, 1], [[1, 2, 0], [3, 3], [2, 1, 3, 3], [1]]
    (weight, bias), hidden = head(), states(4, 6, HIDDEN)
    links = graphs(lengths)
    together = loss_of(hidden, lengths, targets, weight, bias, links, reduction="none").nll
    for b, n in enumerate(lengths):
        alone = loss_of(hidden[b : b + 1, :n], [n], [targets[b]], weight, bias, links[b : b + 1, :n, :n]).nll
        torch.testing.assert_close(alone, together[b : b + 1], rtol=1e-12, atol=0)
    order = [2, 0, 3, 1]
    turned = loss_of(
        hidden[order], [lengths[i] for i in order], [targets[i] for i in order], weight, bias, links[order]
    )
    torch.testing.assert_close(turned.nll, together[order], rtol=1e-12, atol=0)


@pytest.mark.parametrize("reduction", ["sum", "mean", "token_sum", "sample_sum"])
@pytest.mark.parametrize("zero_infinity", [True, False])
def test_reductions_and_what_does_not_fit(reduction, zero_infinity):
    """A target longer than its graph, one token for several slots, an empty target, and one that fits."""
    lengths, targets = [2, 4, 3, 5], [[1, 2, 0], [1], [], [1, 2, 0, 3]]
    (weight, bias), hidden = head(), states(4, 5, HIDDEN)
    links = graphs(lengths).requires_grad_()
    got = loss_of(hidden, lengths, targets, weight, bias, links, reduction=reduction, zero_infinity=zero_infinity)
    assert got.infeasible.tolist() == [not fits(len(t), n) for n, t in zip(lengths, targets, strict=True)]
    assert got.infeasible.tolist() == [True, True, True, False]
    instead = 0.0 if zero_infinity else math.inf
    assert got.nll[:3].tolist() == [instead] * 3
    leaves = (hidden, weight, bias, links)
    gradients = torch.autograd.grad(got.loss, leaves)
    rows, graphs_ = [hidden[b, :n] for b, n in enumerate(lengths)], [links[b, :n, :n] for b, n in enumerate(lengths)]
    expected = plain_linear_dag(rows, weight, bias, graphs_, targets, reduction=reduction)
    assert got.loss.item() == pytest.approx(expected.item() if zero_infinity else math.inf, rel=1e-12)
    for ours, plain in zip(gradients, torch.autograd.grad(expected, leaves), strict=True):
        torch.testing.assert_close(ours, plain, rtol=0, atol=1e-10)
    path, log_prob = loss_of(hidden, lengths, targets, weight, bias, links, dag_best_path)
    assert (path[:3] == -1).all()
    assert (log_prob[:3] == -math.inf).all()


def test_a_link_or_a_class_of_probability_0():
    """Where a target needs one, it is infeasible; where it does not, nothing is poisoned."""
    (weight, bias), hidden = head(), states(2, 4, HIDDEN)
    links = graphs([4, 4]).detach()
    links[0, 0] = torch.tensor([-math.inf, -math.inf, -math.inf, 0.0])  # straight to the last slot
    off = bias.detach().clone()
    off[3] = -math.inf
    links.requires_grad_()
    for first, is_infeasible in (([1, 2], False), ([1, 2, 0], True), ([1, 3], True)):
        got = loss_of(hidden, [4, 4], [first, [2, 1, 0]], weight, off, links, reduction="sum")
        assert got.infeasible.tolist() == [is_infeasible, False]
        gradients = torch.autograd.grad(got.loss, (hidden, weight, links))
        assert all(gradient.isfinite().all() for gradient in gradients)
        assert (gradients[0][0] == 0).all() == is_infeasible


@pytest.mark.parametrize("targets", [[[1, 2], [2, 1]], [[1], [2, 1]]], ids=["fits", "does not fit"])
def test_a_nan_in_a_real_slot_stays_a_nan(targets):
    (weight, bias), hidden = head(), states(2, 3, HIDDEN)
    poisoned = hidden.detach().clone()
    poisoned[0, 1, 0] = math.nan
    got = loss_of(poisoned, [3, 3], targets, weight, bias, graphs([3, 3]), reduction="none")
    assert got.nll[0].isnan()
    assert got.nll[1].isfinite()


def test_low_precision_is_accumulated_in_float32():
    (weight, bias), hidden = head(vocab_size=300, hidden_size=8), states(1, 9, 8)
    links = random_links(9)[None]
    exact = loss_of(hidden, [9], [[1, 2, 7]], weight, bias, links, reduction="sum").loss
    for dtype in (torch.bfloat16, torch.float16):
        got = loss_of(
            hidden.to(dtype), [9], [[1, 2, 7]], weight.to(dtype), bias.to(dtype), links.float(), reduction="sum"
        )
        assert got.loss.dtype == got.nll.dtype == torch.float32
        assert got.loss.item() == pytest.approx(exact.item(), rel=0.02)
