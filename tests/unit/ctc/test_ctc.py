"""The CTC head against brute force, closed forms and torch; wrong arguments; the collapse."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bnb_ds.ctc.greedy import _collapse_on_device, collapse, linear_argmax, row_max
from bnb_ds.ctc.loss import linear_ctc_loss
from tests.plain_ctc import brute_force_nll, ctc_loss_reference, simple_collapse

VOCAB, HIDDEN = 4, 3


def head(seed: int = 0, vocab_size: int = VOCAB, hidden_size: int = HIDDEN) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(vocab_size, hidden_size, dtype=torch.float64, generator=generator)
    return weight.requires_grad_(), torch.randn(vocab_size, dtype=torch.float64, generator=generator).requires_grad_()


def states(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def loss_of(hidden, lengths, targets, weight, bias, **options):
    """The loss in padded form, from Python lists of lengths and targets."""
    labels = torch.tensor([token for target in targets for token in target], dtype=torch.int64)
    target_lengths = torch.tensor([len(target) for target in targets])
    return linear_ctc_loss(hidden, weight, bias, labels, torch.tensor(lengths), target_lengths, **options)


CASES = [
    ("one position, one token", [1], [[1]]),
    ("ragged batch", [5, 2, 4], [[1, 2], [3], [2, 1, 3]]),
    ("repeats need a blank between them", [5, 3], [[2, 2], [1, 1]]),
    ("empty target: the all-blank path", [4, 3], [[], [3]]),
    ("all targets empty", [2, 1], [[], []]),
    ("no position and no target", [3, 0], [[1], []]),
    ("as many positions as tokens", [3, 3], [[1, 2, 1], [3, 1, 3]]),
    ("one long row and short ones", [6, 1, 1], [[1, 2, 3], [2], [1]]),
]


@pytest.mark.parametrize(("lengths", "targets"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
@pytest.mark.parametrize("blank", [0, 2, 3])
def test_equals_brute_force_over_all_paths(lengths, targets, blank):
    shift = [[(token + blank) % VOCAB for token in target] for target in targets]
    (weight, bias), hidden = head(), states(len(lengths), max(lengths), HIDDEN)
    got = loss_of(hidden, lengths, shift, weight, bias, blank=blank, reduction="none")
    log_probs = F.log_softmax(hidden @ weight.T + bias, -1)
    expected = torch.stack([brute_force_nll(log_probs[b, :n], shift[b], blank) for b, n in enumerate(lengths)])
    torch.testing.assert_close(got.loss, expected, rtol=0, atol=1e-10)
    textbook = torch.stack([ctc_loss_reference(log_probs[b, :n], shift[b], blank) for b, n in enumerate(lengths)])
    torch.testing.assert_close(textbook, expected, rtol=0, atol=1e-10)
    assert torch.equal(got.nll, got.loss)
    assert not got.infeasible.any()
    leaves = (hidden, weight, bias)
    for ours, plain in zip(
        torch.autograd.grad(got.loss.sum(), leaves), torch.autograd.grad(expected.sum(), leaves), strict=True
    ):
        torch.testing.assert_close(ours, plain, rtol=0, atol=1e-10)


@pytest.mark.parametrize("vocab_size", [5, 211])
def test_closed_form_of_uniform_predictions(vocab_size):
    # hidden = 0: every path has probability V^-T, and C(T + L - r, 2L) of them collapse to the target.
    target = [1, 2, 2, 2, 3, 4, 4, 1]
    positions, length, repeats = 40, len(target), 3
    got = loss_of(
        torch.zeros(1, positions, 2), [positions], [target], torch.randn(vocab_size, 2), None, reduction="sum"
    )
    expected = positions * math.log(vocab_size) - math.log(math.comb(positions + length - repeats, 2 * length))
    assert got.loss.item() == pytest.approx(expected, rel=1e-6)


def test_packed_equals_padded_and_ignores_what_lies_beyond_lengths():
    lengths, targets = [4, 1, 6], [[1, 2], [3], [2, 2, 1]]
    (weight, bias), hidden = head(), states(3, 6, HIDDEN)
    rows = [hidden[b, :n] for b, n in enumerate(lengths)]
    packed = torch.cat(rows).detach().requires_grad_()
    labels = torch.tensor([token for target in targets for token in target])
    target_lengths = torch.tensor([2, 1, 3])
    cu_seqlens = torch.tensor([0, 4, 5, 11], dtype=torch.int32)
    options = {"reduction": "mean", "kl_weight": 0.3}
    first = linear_ctc_loss(packed, weight, bias, labels, None, target_lengths, cu_seqlens=cu_seqlens, **options)

    dirty = hidden.detach().clone()
    padded_targets = torch.full((3, 5), -100)
    for b, target in enumerate(targets):
        dirty[b, lengths[b] :] = math.nan
        padded_targets[b, : len(target)] = torch.tensor(target)
    dirty.requires_grad_()
    second = linear_ctc_loss(dirty, weight, bias, padded_targets, torch.tensor(lengths), target_lengths, **options)

    for ours, other in zip(first, second, strict=True):
        assert torch.equal(ours, other)
    packed_grads = torch.autograd.grad(first.loss, (weight, bias, packed))
    padded_grads = torch.autograd.grad(second.loss, (weight, bias, dirty))
    for ours, other in zip(packed_grads[:2], padded_grads[:2], strict=True):
        torch.testing.assert_close(ours, other, rtol=0, atol=1e-12)
    for b, n in enumerate(lengths):
        assert torch.equal(padded_grads[2][b, :n], packed_grads[2][cu_seqlens[b] : cu_seqlens[b + 1]])
        assert (padded_grads[2][b, n:] == 0).all()


def test_infeasible_rows_are_flagged_and_add_nothing():
    # Row 1 needs 3 positions for two equal tokens. Row 2 needs 2 positions but has 1.
    lengths, targets = [4, 2, 1], [[1, 1], [1, 1], [1, 2]]
    (weight, bias), hidden = head(), states(3, 4, HIDDEN)
    got = loss_of(hidden, lengths, targets, weight, bias, reduction="sum")
    assert got.infeasible.tolist() == [False, True, True]
    assert got.nll[1:].tolist() == [0, 0]
    alone = loss_of(hidden[:1], lengths[:1], targets[:1], weight, bias, reduction="sum")
    assert torch.equal(got.loss, alone.loss)
    for ours, other in zip(
        torch.autograd.grad(got.loss, (hidden, weight, bias)),
        torch.autograd.grad(alone.loss, (hidden, weight, bias)),
        strict=True,
    ):
        torch.testing.assert_close(ours, other, rtol=0, atol=1e-12)


def test_without_zero_infinity_the_loss_is_infinite_and_other_rows_are_sound():
    (weight, bias), hidden = head(), states(2, 2, HIDDEN)
    got = loss_of(hidden, [2, 2], [[1, 1], [1, 2]], weight, bias, reduction="none", zero_infinity=False)
    assert got.nll[0] == math.inf
    (gradient,) = torch.autograd.grad(got.nll[1], hidden)
    assert gradient[1].isfinite().all()
    assert gradient[1].abs().max() > 0


def test_a_batch_of_infeasible_rows_has_loss_and_gradient_zero():
    (weight, bias), hidden = head(), states(2, 2, HIDDEN)
    got = loss_of(hidden, [1, 2], [[1, 2], [1, 1]], weight, bias, reduction="sum")
    assert got.infeasible.all()
    assert got.loss == 0
    assert all((gradient == 0).all() for gradient in torch.autograd.grad(got.loss, (hidden, weight, bias)))


def test_reductions_have_torchs_meaning():
    lengths, targets = [5, 4, 6], [[1, 2, 3], [], [2]]
    (weight, bias), hidden = head(), states(3, 6, HIDDEN)
    log_probs = F.log_softmax(hidden @ weight.T + bias, -1).transpose(0, 1)
    labels, target_lengths = torch.tensor([1, 2, 3, 2]), torch.tensor([3, 0, 1])
    for reduction in ("none", "sum", "mean"):
        got = loss_of(hidden, lengths, targets, weight, bias, reduction=reduction)
        expected = F.ctc_loss(log_probs, labels, torch.tensor(lengths), target_lengths, reduction=reduction)
        torch.testing.assert_close(got.loss, expected, rtol=0, atol=1e-12)


def test_kl_is_that_of_the_uniform_distribution_over_real_positions():
    lengths, targets = [3, 1], [[1], [2]]
    (weight, bias), hidden = head(), states(2, 3, HIDDEN)
    got = loss_of(hidden, lengths, targets, weight, bias, reduction="sum", kl_weight=0.25)
    log_probs = F.log_softmax(torch.cat((hidden[0], hidden[1, :1])) @ weight.T + bias, -1)
    uniform = torch.full_like(log_probs, 1 / VOCAB)
    expected = F.kl_div(log_probs, uniform, reduction="none").sum(-1).mean()
    torch.testing.assert_close(got.kl, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(got.loss, got.nll.sum() + 0.25 * expected, rtol=0, atol=1e-12)
    assert loss_of(hidden, lengths, targets, weight, bias).kl == 0
    assert loss_of(hidden[:, :0], [0, 0], [[], []], weight, bias, kl_weight=1.0).loss == 0


def test_a_nan_in_a_real_position_stays_a_nan():
    (weight, bias), hidden = head(), states(2, 3, HIDDEN)
    poisoned = hidden.detach().clone()
    poisoned[0, 1, 0] = math.nan
    got = loss_of(poisoned, [3, 3], [[1], [2]], weight, bias, reduction="none")
    assert got.nll[0].isnan()
    assert got.nll[1].isfinite()


def test_low_precision_is_accumulated_in_float32():
    (weight, bias), hidden = head(vocab_size=300, hidden_size=8), states(1, 9, 8)
    exact = loss_of(hidden, [9], [[1, 2, 7]], weight, bias, reduction="sum").loss
    for dtype in (torch.bfloat16, torch.float16):
        got = loss_of(hidden.to(dtype), [9], [[1, 2, 7]], weight.to(dtype), bias.to(dtype), reduction="sum")
        assert got.loss.dtype == got.nll.dtype == torch.float32
        assert got.loss.item() == pytest.approx(exact.item(), rel=0.02)


def test_gradients_pass_gradcheck():
    (weight, bias), hidden = head(), states(7, HIDDEN)
    labels, target_lengths = torch.tensor([1, 1, 2]), torch.tensor([2, 1])
    cu_seqlens = torch.tensor([0, 4, 7], dtype=torch.int32)

    def scalar(*leaves):
        return linear_ctc_loss(
            *leaves, labels, None, target_lengths, cu_seqlens=cu_seqlens, reduction="mean", kl_weight=0.5
        ).loss

    assert torch.autograd.gradcheck(scalar, (hidden, weight, bias))


GOOD = {
    "hidden": torch.zeros(2, 3, HIDDEN),
    "targets": torch.tensor([[1, 2], [3, -100]]),
    "input_lengths": torch.tensor([3, 3]),
    "target_lengths": torch.tensor([2, 1]),
}
PACKED = {"hidden": torch.zeros(6, HIDDEN), "input_lengths": None}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"targets": torch.tensor([[1, 4], [3, 0]])}, ValueError, r"holds the label 4: labels must lie in \[0, 4\)"),
        ({"targets": torch.tensor([[1, -100], [3, 0]])}, ValueError, "holds the label -100"),
        (
            {"targets": torch.tensor([[1, 0], [3, 0]])},
            ValueError,
            "holds the blank 0: mark padding of labels with -100",
        ),
        ({"target_lengths": torch.tensor([3, 1])}, ValueError, "target_lengths holds 3: .* between 0 and 2"),
        ({"target_lengths": torch.tensor([-1, 1])}, ValueError, "target_lengths holds -1: .* between 0 and 2"),
        ({"target_lengths": torch.tensor([2])}, ValueError, "target_lengths has 1 entries for a batch of 2"),
        ({"input_lengths": torch.tensor([4, 3])}, ValueError, "input_lengths holds 4: .* between 0 and 3"),
        ({"input_lengths": torch.tensor([-2, 3])}, ValueError, "input_lengths holds -2"),
        ({"input_lengths": torch.tensor([3])}, ValueError, "input_lengths has 1 entries for a batch of 2"),
        (
            {"input_lengths": torch.tensor([3.0, 3.0])},
            TypeError,
            "input_lengths has dtype torch.float32: give integers",
        ),
        ({"target_lengths": torch.tensor([2.0, 1.0])}, TypeError, "target_lengths has dtype torch.float32"),
        ({"targets": torch.ones(2, 2)}, TypeError, "targets are floating point: give integer token ids"),
        ({"targets": torch.tensor([1, 2])}, ValueError, "targets hold 2 tokens, but target_lengths add up to 3"),
        ({"targets": torch.ones(3, 2, dtype=torch.int64)}, ValueError, r"targets have shape \(3, 2\): give \[2, S\]"),
        (
            {"hidden": torch.zeros(0, 3, HIDDEN), "input_lengths": torch.zeros(0, dtype=torch.int64)},
            ValueError,
            "the batch is empty: give at least one sequence",
        ),
        ({"target_lengths": torch.tensor([[2], [1]])}, ValueError, r"target_lengths has shape \(2, 1\): give one row"),
        ({"target_lengths": [2, 1]}, TypeError, "target_lengths is of type list: give a tensor of integers"),
        ({"weight": torch.zeros(4, HIDDEN + 1)}, ValueError, rf"weight has shape .*: give \[V, {HIDDEN}\]"),
        ({"bias": torch.zeros(5)}, ValueError, r"bias has shape \(5,\): give \[4\]"),
        ({"blank": 4}, ValueError, r"blank is 4: give an id in \[0, 4\)"),
        ({"blank": -1}, ValueError, "blank is -1"),
        ({"chunk_tokens": 0}, ValueError, "chunk_tokens is 0: give at least 1 position, or None"),
        ({"reduction": "average"}, ValueError, "reduction is 'average': use one of: none, sum, mean"),
        ({"reduction": "none", "kl_weight": 0.1}, ValueError, "kl_weight needs a reduction other than 'none'"),
        ({"hidden": torch.zeros(6, HIDDEN)}, ValueError, "hidden has 2 dimensions"),
        ({"input_lengths": None}, ValueError, "give input_lengths with padded hidden"),
        ({"cu_seqlens": torch.tensor([0, 3, 6])}, ValueError, "or cu_seqlens with packed hidden"),
        ({**PACKED, "cu_seqlens": torch.tensor([0, 3, 5])}, ValueError, "cu_seqlens spans 5 positions.* 6 rows"),
        ({**PACKED, "cu_seqlens": torch.tensor([0, 9, 6])}, ValueError, "cu_seqlens holds -3"),
    ],
)
def test_wrong_input_is_refused(changes, error, message):
    weight, bias = head()
    arguments = {**GOOD, "weight": weight.float(), "bias": bias.float(), **changes}
    with pytest.raises(error, match=message):
        linear_ctc_loss(**arguments)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (
            [1, 1, 0, 1, 2],
            [1, 1, 2],
        ),  # repeats are merged before blanks are dropped, so a blank keeps two equal tokens apart
        ([0, 0, 0], []),
        ([3, 3, 3], [3]),
        ([0, 2, 0, 2, 2, 0], [2, 2]),
    ],
)
def test_collapse_merges_then_drops_blanks(path, expected):
    ids, lengths = collapse(torch.tensor([path]), torch.tensor([len(path)]))
    assert lengths.tolist() == [len(expected)]
    assert ids.tolist() == [expected + [0] * (len(path) - len(expected))]


@pytest.mark.parametrize("way", [collapse, _collapse_on_device], ids=["host", "device"])
def test_collapse_equals_groupby_for_any_blank_and_lengths(way):
    generator = torch.Generator().manual_seed(0)
    paths = torch.randint(0, 3, (200, 9), generator=generator)
    lengths = torch.randint(0, 10, (200,), generator=generator)
    for blank in (0, 2):
        ids, out_lengths = way(paths, lengths, blank)
        for row, length, path, n in zip(ids.tolist(), out_lengths.tolist(), paths.tolist(), lengths, strict=True):
            expected = simple_collapse(path[:n], blank)
            assert row == expected + [blank] * (9 - len(expected))
            assert length == len(expected)


def test_collapse_of_no_positions():
    ids, lengths = collapse(torch.zeros(2, 0, dtype=torch.int64), torch.tensor([0, 0]))
    assert ids.shape == (2, 0)
    assert lengths.tolist() == [0, 0]


def test_collapse_wants_a_batch():
    with pytest.raises(ValueError, match=r"the path has 1 dimensions: give \[B, T\]"):
        collapse(torch.tensor([1, 2]), torch.tensor([2]))


def test_argmax_compares_logits_in_float32():
    """If logits were rounded to bf16, the first two classes would tie."""
    weight = torch.tensor([[1.0, 0.0], [1.0, 2.0**-7]]).bfloat16()
    hidden = torch.tensor([[1.0, 0.25]]).bfloat16()
    assert F.linear(hidden, weight).argmax() == 0
    assert linear_argmax(hidden, weight, None).tolist() == [1]
    with torch.autocast("cpu", torch.bfloat16):
        assert linear_argmax(hidden.float(), weight.float(), torch.zeros(2)).tolist() == [1]


def test_argmax_of_no_positions():
    assert linear_argmax(torch.zeros(0, 3), torch.zeros(5, 3), None).tolist() == []


@pytest.mark.parametrize("num_rows", [1, 5, 7, 14])
def test_argmax_in_chunks_equals_argmax_of_logits(monkeypatch, num_rows):
    monkeypatch.setattr("bnb_ds.ctc.greedy.ARGMAX_CHUNK_TOKENS", 7)
    (weight, bias), hidden = head(), states(num_rows, HIDDEN)
    assert torch.equal(linear_argmax(hidden, weight, bias), (hidden @ weight.T + bias).argmax(-1))


@pytest.mark.parametrize("columns", [1, 127, 128, 129, 256, 1000])
def test_row_max_is_max(columns):
    few = torch.randint(0, 4, (60, columns)).double()  # many equal ones, of which the first counts
    other = torch.randn(60, columns, dtype=torch.float64)
    other[3] = -torch.inf
    other[4, columns // 2 :] = torch.inf
    other[5, columns - 1] = torch.nan
    other[6, columns // 3] = other[6, -1] = torch.nan
    for rows in (few, other, other.t().contiguous().t(), other[:0], other.float()):
        highest, place = row_max(rows)
        expected = rows.max(-1)
        assert torch.equal(place, expected.indices)
        assert torch.allclose(highest, expected.values, rtol=0, atol=0, equal_nan=True)
