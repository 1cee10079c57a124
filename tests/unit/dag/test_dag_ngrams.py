"""Expected matches of n-grams against enumeration of all outputs and paths."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bnb_ds.dag.ngrams import linear_dag_ngram_loss, ngram_matches
from tests.plain_dag import joint_log_prob, links_of, paths, random_links

VOCAB = 3


def enumerated(log_probs: Tensor, links: Tensor, target: list[int], size: int) -> dict[str, float | Counter]:
    """The same by definition."""
    length = ngrams = 0.0
    counts: Counter = Counter()
    for path in paths(len(links)):
        for tokens in itertools.product(range(VOCAB), repeat=len(path)):
            probability = math.exp(joint_log_prob(log_probs, links, path, list(tokens)))
            length += probability * len(path)
            ngrams += probability * max(len(path) - size + 1, 0)
            for start in range(len(path) - size + 1):
                counts[tokens[start : start + size]] += probability
    reference = Counter(tuple(target[i : i + size]) for i in range(len(target) - size + 1))
    matched = sum(min(counts[ngram], count) for ngram, count in reference.items())
    return {"length": length, "ngrams": ngrams, "counts": counts, "matched": matched, "reference": reference}


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("target", [[0, 1, 0, 1], [2, 2, 2, 2, 2, 2, 1], [1, 0]], ids=str)
def test_equals_enumeration(size, target):
    generator = torch.Generator().manual_seed(0)
    log_probs = torch.randn(6, VOCAB, dtype=torch.float64, generator=generator).log_softmax(1)
    links = random_links(6)
    got = ngram_matches(log_probs.exp()[:, target], links.exp(), target, size)
    expected = enumerated(log_probs, links, target, size)
    assert got.expected_length.item() == pytest.approx(expected["length"], abs=1e-12)
    assert got.passing[[0, -1]].tolist() == pytest.approx([1, 1])
    assert got.expected_ngrams.item() == pytest.approx(expected["ngrams"], abs=1e-12)
    counts = [expected["counts"][ngram] for ngram in expected["reference"]]
    assert got.expected.tolist() == pytest.approx(counts, abs=1e-12)
    assert got.matched.item() == pytest.approx(expected["matched"], abs=1e-12)
    if not expected["reference"]:
        assert got.loss == 0
        return
    brevity = min(1.0, math.exp(1 - len(target) / expected["length"]))
    assert got.loss.item() == pytest.approx(-brevity * expected["matched"] / expected["ngrams"], abs=1e-12)


@pytest.mark.parametrize("num_slots", [5, 64, 1024])
def test_uniform_links_have_a_harmonic_length(num_slots):
    links = links_of(torch.zeros(num_slots, num_slots, dtype=torch.float64))
    got = ngram_matches(torch.ones(num_slots, 2, dtype=torch.float64), links.exp(), [0, 0], 2)
    harmonic = sum(1 / k for k in range(1, num_slots))
    assert got.expected_length.item() == pytest.approx(1 + harmonic, rel=1e-12)
    assert got.expected_ngrams.item() == pytest.approx(harmonic, rel=1e-12)
    assert got.passing[1:].tolist() == pytest.approx([1 / (num_slots - slot) for slot in range(1, num_slots)], rel=1e-9)


def arguments(dtype: torch.dtype = torch.float64) -> tuple:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(3, 6, 4, dtype=torch.float64, generator=generator)
    weight, bias = torch.randn(9, 4, dtype=torch.float64, generator=generator), torch.randn(9, generator=generator)
    lengths, targets = [6, 1, 4], [[1, 2, 1, 2, 8], [3, 3], [7]]
    links = torch.stack([F.pad(random_links(n), (0, 6 - n, 0, 6 - n), value=math.nan) for n in lengths])
    labels = torch.tensor([token for target in targets for token in target])
    leaves = [tensor.to(dtype).requires_grad_() for tensor in (hidden, weight, bias, links)]
    return *leaves, labels, torch.tensor(lengths), torch.tensor([len(target) for target in targets])


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_the_fused_loss_equals_autograd_over_all_probabilities(reduction, dtype, tolerance):
    """A target of one token has no bigram; one slot writes none; both count in the mean."""
    given = arguments(dtype)
    got = linear_dag_ngram_loss(*given, reduction=reduction)
    hidden, weight, bias, links, *_ = given
    plain = ngram_matches(
        F.softmax(hidden[0] @ weight.T + bias, 1)[:, [1, 2, 1, 2, 8]].double(),
        links[0].exp().double(),
        [1, 2, 1, 2, 8],
        2,
    ).loss
    assert got.scores[0].item() == pytest.approx(plain.item(), abs=tolerance)
    assert got.scores[1:].tolist() == [0, 0]
    expected = plain / 3 if reduction == "mean" else plain
    assert got.loss.dtype == got.scores.dtype == dtype
    assert got.loss.item() == pytest.approx(expected.item(), abs=tolerance)
    ours, theirs = (torch.autograd.grad(loss, given[:4]) for loss in (got.loss, expected))
    is_link = torch.ones(6, 6, dtype=torch.bool).triu(1)
    for one, other in zip(ours[:3], theirs[:3], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance)
    torch.testing.assert_close(ours[3][0][is_link], theirs[3][0][is_link], rtol=0, atol=tolerance)
    assert (ours[3][1:] == 0).all()


def test_wrong_input_is_refused():
    given = arguments()
    with pytest.raises(ValueError, match="size is 0: give n-grams of at least 1 token"):
        linear_dag_ngram_loss(*given, size=0)
    with pytest.raises(ValueError, match="reduction is 'none': the n-gram loss knows mean and sum"):
        linear_dag_ngram_loss(*given, reduction="none")
    with pytest.raises(ValueError, match="reduction is 'average': use one of"):
        linear_dag_ngram_loss(*given, reduction="average")


def test_a_target_without_n_grams_has_no_loss_even_where_its_class_is_off():
    hidden, weight = torch.randn(4, 3, requires_grad=True), torch.randn(VOCAB, 3)
    bias = torch.tensor([0.0, -torch.inf, 0.0])
    links = random_links(4)[None].float()
    lengths = {"target_lengths": torch.tensor([1]), "cu_seqlens": torch.tensor([0, 4], dtype=torch.int32)}
    output = linear_dag_ngram_loss(hidden, weight, bias, links, torch.tensor([1]), None, size=2, **lengths)
    assert output.loss == 0
    output.loss.backward()
    assert (hidden.grad == 0).all()
