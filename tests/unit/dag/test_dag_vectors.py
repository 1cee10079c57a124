"""Losses, gradients, paths, strategies and n-gram counts against values that were found by enumeration elsewhere."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from bnb_ds.dag import alignment
from bnb_ds.dag.beam_search import BeamOptions, search
from bnb_ds.dag.loss import linear_dag_loss
from bnb_ds.dag.ngrams import linear_dag_ngram_loss, ngram_matches
from bnb_ds.dag.paths import dag_best_path
from bnb_ds.dag.strategies import dag_decode, viterbi
from tests.plain_dag import links_of

DTYPES = [(torch.float64, 1e-9), (torch.float32, 1e-5)]


@pytest.fixture(params=[False, True], ids=["scaled", "in logs"])
def either_way(request, monkeypatch):
    """The quick dynamic programme, and the one for graphs that it cannot be trusted with."""
    if request.param:
        monkeypatch.setattr(alignment, "_DROPPED", -math.inf)


def close(got: Tensor, expected: list | float, tolerance: float) -> None:
    expected = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(got.detach().double(), expected, rtol=tolerance, atol=tolerance)


def graph(case: dict, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Logits [L, V], scores [L, L] and links [L, L], the first two leaves."""
    logits, scores = (torch.tensor(case[name], dtype=dtype).requires_grad_() for name in ("logits", "link_scores"))
    return logits, scores, links_of(scores)


def arguments(logits: Tensor, links: Tensor, target: list[int]) -> tuple:
    """Logits as hidden states of a projection that changes nothing."""
    lengths = torch.tensor([len(logits)]), torch.tensor([len(target)])
    return (
        logits[None],
        torch.eye(logits.shape[1], dtype=logits.dtype),
        None,
        links[None],
        torch.tensor([target]),
        *lengths,
    )


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.usefixtures("either_way")
def test_losses_gradients_and_posteriors(vectors, dtype, tolerance):
    for case in vectors["dag_loss"]:
        logits, scores, links = graph(case, dtype)
        links.retain_grad()
        got = linear_dag_loss(*arguments(logits, links, case["target"]), reduction="sum", zero_infinity=False)
        close(got.loss, float(case["nll"]), tolerance)
        assert got.infeasible.tolist() == [case["nll"] == "inf"]
        if case["nll"] == "inf":
            continue
        got.loss.backward()
        close(logits.grad, case["d_nll_d_logits"], tolerance)
        close(scores.grad, case["d_nll_d_link_scores"], tolerance)
        close(-links.grad.triu(1), case["edge_posterior"], tolerance)
        own = logits.detach().log_softmax(1)[None, :, case["target"]]
        lengths = torch.tensor([len(logits)]), torch.tensor([len(case["target"])])
        _, posteriors = alignment.nll_and_posteriors(own, links.detach()[None], *lengths)
        close(posteriors.slots[0], case["vertex_posterior"], tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
def test_best_paths(vectors, dtype, tolerance):
    for case in vectors["dag_loss"]:
        logits, _, links = graph(case, dtype)
        path, log_prob = dag_best_path(*arguments(logits, links, case["target"]))
        close(log_prob[0], float(case["best_alignment_log_prob"]), tolerance)
        expected = [-1] * len(logits)
        for token, slot in enumerate(case["best_alignment"] or []):
            expected[slot] = token
        assert path.tolist() == [expected]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.usefixtures("either_way")
def test_uniform_graphs(vectors, dtype, tolerance):
    for case in vectors["dag_loss_uniform"]:
        num_slots, num_tokens = case["num_vertices"], case["num_tokens"]
        links = links_of(torch.zeros(num_slots, num_slots, dtype=dtype))
        got = linear_dag_loss(
            *arguments(torch.zeros(num_slots, 1, dtype=dtype), links, [0] * num_tokens), reduction="sum"
        )
        assert got.loss.item() == pytest.approx(case["nll"], rel=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.usefixtures("either_way")
def test_ctc_without_merging_is_a_graph(vectors, dtype, tolerance):
    case = vectors["sctc_equals_dag"]
    links = [[-math.inf if value is None else float(value) for value in row] for row in case["link_log_probs"]]
    emissions = torch.tensor(case["emission_log_probs_without_blank"], dtype=dtype)
    target = [token - 1 for token in case["target"]]
    got = linear_dag_loss(*arguments(emissions, torch.tensor(links, dtype=dtype), target), reduction="sum")
    close(got.loss, case["nll"], tolerance)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_strategies(vectors, dtype):
    for case in vectors["dag_decoding"]:
        logits, _, links = graph(case, dtype)
        for name, expected in case.items():
            if not isinstance(expected, dict) or "path" not in expected:
                continue
            strategy = name.removesuffix("_" + name.split("_")[-1]) if "_" in name else name
            options = {}
            if strategy == "lookahead_beta":
                strategy, options["lookahead_beta"] = "lookahead", float(name.split("_")[-1])
            elif strategy.endswith("_length_penalty"):
                strategy = strategy.removesuffix("_length_penalty")
                options["length_penalty"] = float(name.split("_")[-1])
            log_probs = logits.log_softmax(1)[None]
            ids, length = dag_decode(
                log_probs, links[None], torch.tensor([len(logits)]), strategy, merge_duplicates=False, **options
            )
            assert ids[0, : length[0]].tolist() == expected["tokens"], name
            merged, length = dag_decode(log_probs, links[None], torch.tensor([len(logits)]), strategy, **options)
            unique = [t for i, t in enumerate(expected["tokens"]) if i == 0 or t != expected["tokens"][i - 1]]
            assert merged[0, : length[0]].tolist() == unique, name
            if "score" in expected:
                emissions = log_probs.amax(2) if strategy == "joint_viterbi" else torch.zeros_like(log_probs[..., 0])
                path, length, score = viterbi(
                    emissions, links[None], torch.tensor([len(logits) - 1]), options["length_penalty"]
                )
                assert path[0, : length[0]].tolist() == expected["path"]
                close(score[0], expected["score"], 1e-9 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize("merge_duplicates", [False, True])
def test_an_unlimited_beam_finds_the_most_probable_outputs(vectors, merge_duplicates):
    for case in vectors["dag_decoding"]:
        found = unlimited(case, length_penalty=0.0, merge_duplicates=merge_duplicates)
        for one, expected in zip(found, case["top5_marginal" + "_duplicates_merged" * merge_duplicates], strict=False):
            assert list(one.tokens) == expected["tokens"]
            assert one.log_prob == pytest.approx(expected["log_prob"], abs=1e-9)
        assert sum(math.exp(one.log_prob) for one in found) == pytest.approx(1, abs=1e-9)


def test_a_beam_with_a_language_model(vectors):
    case = vectors["dag_decoding"][0]
    given = case["top5_with_bigram_lm"]

    def lm(text, token):
        return given["bigram_log_probs"][text[-1]][token] if text else 0.0

    found = unlimited(case, lm=lm, lm_weight=given["gamma"], length_penalty=given["alpha"], merge_duplicates=False)
    for one, expected in zip(found, given["outputs"], strict=False):
        assert list(one.tokens) == expected["tokens"]
        assert one.score == pytest.approx(expected["score"], abs=1e-9)


def unlimited(case: dict, *, lm=None, lm_weight: float = 0.0, **options) -> list:
    """What a beam finds that drops nothing."""
    logits, _, links = graph(case)
    ranked = logits.detach().log_softmax(1).sort(1, descending=True)
    beam = BeamOptions(10**6, 10**6, lm, lm_weight)
    return search(ranked.indices.numpy(), ranked.values.numpy(), links.detach().numpy(), beam, **options)


def test_expected_ngrams(vectors):
    for case in vectors["fa_dat"]:
        logits, _, links = graph(case)
        size, target = case["n"], case["target"]
        got = ngram_matches(logits.softmax(1)[:, target], links.exp(), target, size)
        close(got.passing, case["passing_probability"], 1e-9)
        close(got.expected_length, case["expected_length"], 1e-9)
        close(got.expected_ngrams, case["expected_ngrams"], 1e-9)
        close(got.matched, case["matched_clipped"], 1e-9)
        close(got.loss, case["loss"], 1e-9)
        order = list(dict.fromkeys(tuple(target[i : i + size]) for i in range(len(target) - size + 1)))
        by_ngram = {tuple(one["ngram"]): one["expected"] for one in case["reference_ngrams"]}
        assert set(order) == set(by_ngram)
        close(got.expected, [by_ngram[ngram] for ngram in order], 1e-9)


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
def test_ngram_losses(vectors, dtype, tolerance):
    for case in vectors["fa_dat"]:
        logits, _, links = graph(case, dtype)
        got = linear_dag_ngram_loss(*arguments(logits, links, case["target"]), size=case["n"])
        close(got.loss, case["loss"], tolerance)
