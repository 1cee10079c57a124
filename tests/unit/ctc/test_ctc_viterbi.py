"""The most probable CTC path against enumeration of all paths."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch

from bnb_ds.ctc.viterbi import linear_ctc_best_path
from tests.plain_ctc import simple_collapse

VECTORS = Path(__file__).resolve().parents[3].parent / "shared" / "nar" / "vectors.json"


def best_by_enumeration(log_probs_TV, target, blank):
    num_slots, vocab_size = log_probs_TV.shape
    best = (-float("inf"), None)
    for path in itertools.product(range(vocab_size), repeat=num_slots):
        if simple_collapse(list(path), blank) == target:
            score = sum(log_probs_TV[slot, token].item() for slot, token in enumerate(path))
            best = max(best, (score, path))
    return best


def best_path(logits_NV, lengths, targets, blank, **more):
    """Log-probabilities are those of the logits: hidden states are logits, and the head is the identity."""
    cu_seqlens = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)
    return linear_ctc_best_path(
        logits_NV,
        torch.eye(logits_NV.shape[1], dtype=logits_NV.dtype),
        None,
        torch.tensor(list(itertools.chain(*targets)), dtype=torch.int64),
        None,
        torch.tensor([len(target) for target in targets]),
        blank=blank,
        cu_seqlens=cu_seqlens,
        **more,
    )


@pytest.mark.parametrize("blank", [0, 2])
def test_against_enumeration(blank):
    generator = torch.Generator().manual_seed(3)
    others = [token for token in range(4) if token != blank]
    a, b, c = others
    targets = [[a, b, a], [a, a], [], [c], [b, b, c], [a, b, c, a, b], [a, a, a]]
    lengths = [5, 4, 3, 1, 5, 5, 4]
    logits_NV = torch.randn(sum(lengths), 4, dtype=torch.float64, generator=generator) * 2
    path_N, log_prob_B = best_path(logits_NV, lengths, targets, blank)
    rows = logits_NV.log_softmax(1).split(lengths)
    for row, target, path, log_prob in zip(rows, targets, path_N.split(lengths), log_prob_B.tolist(), strict=True):
        expected, tokens = best_by_enumeration(row, target, blank)
        assert log_prob == pytest.approx(expected, abs=1e-12)
        if tokens is None:  # three equal tokens need five slots
            assert path.tolist() == [-1] * len(row)
        else:
            assert [blank if index < 0 else target[index] for index in path.tolist()] == list(tokens)


def test_each_token_of_a_path_names_its_own_place_in_the_target():
    logits_NV = torch.zeros(6, 3, dtype=torch.float64)
    for slot, token in enumerate([1, 1, 0, 1, 2, 2]):
        logits_NV[slot, token] = 5.0
    path_N, _ = best_path(logits_NV, [6], [[1, 1, 2]], 0)
    assert path_N.tolist() == [0, 0, -1, 1, 2, 2]


def test_chunks_and_neighbours_change_nothing():
    generator = torch.Generator().manual_seed(4)
    lengths, targets = [7, 2, 9], [[1, 2, 2], [3], [4, 1, 4, 2]]
    logits_NV = torch.randn(sum(lengths), 5, dtype=torch.float64, generator=generator)
    together = best_path(logits_NV, lengths, targets, 0, chunk_tokens=2)
    for index, row in enumerate(logits_NV.split(lengths)):
        path_T, log_prob_B = best_path(row, [lengths[index]], [targets[index]], 0)
        assert path_T.tolist() == together[0].split(lengths)[index].tolist()
        assert log_prob_B.item() == pytest.approx(together[1][index].item(), abs=1e-12)


def test_the_vectors():
    if not VECTORS.is_file():
        pytest.skip(f"no vectors at {VECTORS}")
    for case in json.loads(VECTORS.read_text())["ctc"]:
        logits_TV = torch.tensor(case["logits"], dtype=torch.float64)
        path_T, log_prob_B = best_path(logits_TV, [len(logits_TV)], [case["target"]], case["blank"])
        tokens = [case["blank"] if index < 0 else case["target"][index] for index in path_T.tolist()]
        assert tokens == case["best_alignment"]
        assert log_prob_B.item() == pytest.approx(case["best_alignment_log_prob"], abs=1e-9)
