"""Expected matches of n-grams against enumeration of all paths, and against the vectors."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bnb_ds.ctc.ngram_matches import expected_counts, linear_ctc_ngram_loss

VECTORS = Path(__file__).resolve().parents[3].parent / "shared" / "nar" / "vectors.json"
VOCAB, BLANK = 3, 1


def merged(path: tuple[int, ...], blank: int) -> list[int]:
    """The output of a path."""
    return [token for token, _ in itertools.groupby(path) if token != blank]


def ngrams(tokens: list[int], size: int) -> list[tuple[int, ...]]:
    return [tuple(tokens[i : i + size]) for i in range(len(tokens) - size + 1)]


def enumerated(log_probs_TV: Tensor, blank: int, size: int) -> Counter:
    """The expected count of every n-gram, by definition."""
    counts: Counter = Counter()
    for path in itertools.product(range(log_probs_TV.shape[1]), repeat=len(log_probs_TV)):
        probability = math.exp(sum(log_probs_TV[slot, token].item() for slot, token in enumerate(path)))
        for ngram in ngrams(merged(path, blank), size):
            counts[ngram] += probability
    return counts


def f1(counts: Counter, target: list[int], size: int) -> float:
    reference = Counter(ngrams(target, size))
    matched = sum(min(counts[ngram], count) for ngram, count in reference.items())
    return -2 * matched / (sum(counts.values()) + reference.total()) if reference else 0.0


def random_logits(slots: int, seed: int = 0, vocab: int = VOCAB) -> Tensor:
    return torch.randn(slots, vocab, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def loss_of_logits(rows: list[Tensor], targets: list[list[int]], **options) -> tuple[Tensor, Tensor]:
    """The loss where hidden states are logits, and the head is the identity."""
    vocab = rows[0].shape[1]
    lengths = torch.tensor([0, *map(len, rows)]).cumsum(0, dtype=torch.int32)
    given = (torch.cat(rows), torch.eye(vocab, dtype=torch.float64), None)
    flat = torch.tensor([token for target in targets for token in target], dtype=torch.int64)
    return linear_ctc_ngram_loss(*given, flat, None, torch.tensor([*map(len, targets)]), cu_seqlens=lengths, **options)


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("target", [[0, 2, 0, 2], [2, 2, 2, 2, 0], [0, 0]], ids=str)
def test_counts_equal_enumeration(size, target):
    probs = random_logits(6).softmax(1)
    if len(target) < size:
        return
    counted = expected_counts(probs[None, :, target], probs[None, :, BLANK], torch.tensor([target]), size)
    counts = enumerated(probs.log(), BLANK, size)
    assert counted[0].tolist() == pytest.approx([counts[ngram] for ngram in ngrams(target, size)], abs=1e-12)


@pytest.mark.parametrize("size", [1, 2])
def test_a_batch_equals_enumeration_whatever_its_chunks(size):
    rows = [random_logits(slots, slots) for slots in (5, 1, 7, 3)]
    targets = [[0, 2, 0, 2], [2, 0], [2, 2, 2, 0], [0]]
    expected = [
        f1(enumerated(row.log_softmax(1), BLANK, size), target, size) for row, target in zip(rows, targets, strict=True)
    ]
    for chunk_tokens in (None, 1, 4):
        loss, scores = loss_of_logits(rows, targets, blank=BLANK, size=size, chunk_tokens=chunk_tokens)
        assert scores.tolist() == pytest.approx(expected, abs=1e-12)
        assert loss.item() == pytest.approx(sum(expected) / 4, abs=1e-12)
    total, _ = loss_of_logits(rows, targets, blank=BLANK, size=size, reduction="sum")
    assert total.item() == pytest.approx(sum(expected), abs=1e-12)


@pytest.mark.parametrize("size", [1, 2])
def test_equals_the_vectors(size):
    if not VECTORS.is_file():
        pytest.skip(f"no vectors at {VECTORS}")
    compared = 0
    for case in json.loads(VECTORS.read_text())["ctc"]:
        logits = torch.tensor(case["logits"], dtype=torch.float64)
        probs, target = logits.softmax(1), case["target"]
        for row in case["expected_ngrams"][str(size)]:
            ngram = row["ngram"]
            counted = expected_counts(probs[None, :, ngram], probs[None, :, case["blank"]], torch.tensor([ngram]), size)
            assert counted.item() == pytest.approx(row["expected"], abs=1e-9)
        if case.get("nmla_f1_loss", {}).get(str(size)) is not None:
            loss, _ = loss_of_logits([logits], [target], blank=case["blank"], size=size)
            assert loss.item() == pytest.approx(case["nmla_f1_loss"][str(size)], abs=1e-9)
            compared += 1
    assert compared


@pytest.mark.parametrize("size", [1, 2])
def test_gradients(size):
    generator = torch.Generator().manual_seed(3)
    hidden, weight, bias = (
        torch.randn(shape, dtype=torch.float64, generator=generator, requires_grad=True)
        for shape in ((9, 4), (5, 4), (5,))
    )
    cu_seqlens = torch.tensor([0, 4, 4, 9], dtype=torch.int32)
    targets, lengths = torch.tensor([2, 4, 2, 1, 3, 3]), torch.tensor([3, 1, 2])

    def loss(*leaves: Tensor) -> Tensor:
        return linear_ctc_ngram_loss(
            *leaves, targets, None, lengths, size=size, chunk_tokens=3, cu_seqlens=cu_seqlens
        ).loss

    assert torch.autograd.gradcheck(loss, (hidden, weight, bias))
    whole = torch.autograd.grad(loss(hidden, weight, bias), (hidden, weight, bias))
    # What needs no gradient gets none, and changes nothing for the others.
    (alone,) = torch.autograd.grad(loss(hidden, weight.detach(), bias.detach()), (hidden,))
    assert torch.equal(alone, whole[0])


def test_packed_equals_padded_and_switched_off_classes_count_nothing():
    rows = [random_logits(5, 1, 4), random_logits(2, 2, 4)]
    bias = torch.tensor([0.0, 0.0, 0.0, -math.inf], dtype=torch.float64, requires_grad=True)
    eye = torch.eye(4, dtype=torch.float64, requires_grad=True)
    packed = linear_ctc_ngram_loss(
        torch.cat(rows), eye, bias, torch.tensor([1, 2, 3, 3, 1]), None, torch.tensor([3, 2]),
        cu_seqlens=torch.tensor([0, 5, 7], dtype=torch.int32),
    )  # fmt: skip
    padded = linear_ctc_ngram_loss(
        torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=7.0), eye, bias,
        torch.tensor([[1, 2, 3], [3, 1, 0]]), torch.tensor([5, 2]), torch.tensor([3, 2]),
    )  # fmt: skip
    assert torch.equal(packed.scores, padded.scores)
    assert packed.scores[1] == 0
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(packed.loss, (eye, bias)))


def test_a_certain_output_scores_minus_one():
    path = torch.tensor([2, 2, 0, 2, 3, 0, 4])  # 2 2 3 4
    logits = 60.0 * torch.nn.functional.one_hot(path, 5).double()
    loss, _ = loss_of_logits([logits], [[2, 2, 3, 4]])
    assert loss.item() == pytest.approx(-1, abs=1e-9)


def test_sixteen_bits_are_near_and_add_up_in_float32():
    rows = [random_logits(40, 1, 50), random_logits(25, 2, 50)]
    targets = [list(range(2, 22)), [5, 5, 6, 7]]
    exact, _ = loss_of_logits(rows, targets)
    lengths = torch.tensor([0, 40, 65], dtype=torch.int32)
    flat, sizes = torch.tensor([token for target in targets for token in target]), torch.tensor([20, 4])
    for dtype in (torch.bfloat16, torch.float16):
        loss, scores = linear_ctc_ngram_loss(
            torch.cat(rows).to(dtype), torch.eye(50, dtype=dtype), None, flat, None, sizes, cu_seqlens=lengths
        )
        assert loss.dtype == scores.dtype == torch.float32
        assert loss.item() == pytest.approx(exact.item(), abs=2e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 3}, "size is 3: CTC has a loss of n-grams of 1 or 2 tokens"),
        ({"reduction": "none"}, "reduction is 'none': the n-gram loss knows mean and sum"),
        ({"blank": 2}, "a target holds the blank 2"),
    ],
)
def test_refused(options, message):
    with pytest.raises(ValueError, match=message):
        loss_of_logits([random_logits(3)], [[2, 1]], **options)


def test_a_second_derivative_is_refused():
    hidden = random_logits(3).requires_grad_()
    loss, _ = loss_of_logits([hidden], [[2, 1]])
    with pytest.raises(RuntimeError, match="the n-gram loss has no second derivative"):
        torch.autograd.grad(loss, hidden, create_graph=True)
