"""Outputs of graphs: drawn ones, and searches with a language model, without some words, without repeated n-grams."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest
import torch
from torch import Tensor

from bnb_ds.dag.sampling import draw
from bnb_ds.dag.strategies import DagOptions, dag_decode, decode_candidates
from bnb_ds.data.subwords.rules import WordPieceRules
from bnb_ds.decoding.ngram_lm import NgramLm
from bnb_ds.decoding.options import DecodeOptions
from bnb_ds.errors import ConfigError
from tests.plain_dag import output_probabilities, random_links
from tests.tiny import bnb_model, source_ids
from tests.unit.decoding.test_ngram_lm import ARPA, PIECES

DAG = {"target": "dag", "decoder_length_ratio": 2.0}


def graph(num_slots: int, vocab_size: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 1.5 * torch.randn(num_slots, vocab_size, dtype=torch.float64, generator=generator)
    return logits.log_softmax(-1), random_links(num_slots, seed=seed + 1)


def draws_of(log_probs: Tensor, links: Tensor, number: int, **options: object) -> Counter[tuple[int, ...]]:
    """How often outputs are drawn, by consecutive keys."""
    many = (values.expand(number, *values.shape) for values in (log_probs, links))
    lengths = torch.full((number,), len(links))
    ids, ends = dag_decode(*many, lengths, "sample", **options)
    return Counter(tuple(row[:end]) for row, end in zip(ids.tolist(), ends.tolist(), strict=True))


def sharpened(log_probs: Tensor, links: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    last = links[-1:]  # it has no links
    return (log_probs / temperature).log_softmax(-1), torch.cat(((links[:-1] / temperature).log_softmax(-1), last))


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("merge", [True, False])
def test_outputs_are_drawn_as_often_as_they_are_probable(temperature, merge):
    log_probs, links = graph(4, 3, seed=5)
    number = 6_000
    found = draws_of(log_probs, links, number, temperature=temperature, merge_duplicates=merge)
    exact = output_probabilities(*sharpened(log_probs, links, temperature), merge_duplicates=merge)
    for output, probability in exact.items():
        margin = 5 * math.sqrt(probability / number) + 1 / number
        assert found[output] / number == pytest.approx(probability, abs=margin)


def test_a_low_temperature_or_a_small_nucleus_is_greedy():
    log_probs, links = graph(9, 4, seed=1)
    ids, end = dag_decode(log_probs[None], links[None], torch.tensor([9]), "greedy")
    greedy = tuple(ids[0, : int(end)].tolist())
    for temperature in (1e-3, 1e-320):  # by the second of them no number but 0 can be divided
        assert draws_of(log_probs, links, 50, temperature=temperature) == {greedy: 50}
    assert draws_of(log_probs, links, 50, top_p=1e-9) == {greedy: 50}
    assert len(draws_of(log_probs, links, 50)) > 10


def test_a_nucleus_is_the_fewest_choices_that_hold_enough():
    log_probs = torch.tensor([0.1, 0.4, 0.2, 0.3]).log()
    uniforms = torch.linspace(0, 0.999, 1000, dtype=torch.float64)
    for top_p, shares in ((0.4, [0, 1, 0, 0]), (0.41, [0, 4 / 7, 0, 3 / 7]), (0.95, [0.1, 0.4, 0.2, 0.3])):
        found = draw(log_probs.expand(1000, 4), uniforms, 1.0, top_p).bincount(minlength=4) / 1000
        torch.testing.assert_close(found, torch.tensor(shares, dtype=found.dtype), rtol=0, atol=2e-3)
    assert draw(torch.full((2, 3), -math.inf), torch.tensor([0.0, 0.9]).double(), 1.0, 1.0).tolist() == [0, 0]


def test_what_is_drawn_depends_on_the_source_and_the_seed_alone():
    model = bnb_model(**DAG)
    rows = source_ids([6, 3, 5, 6, 4])
    options = {"strategy": "sample", "temperature": 1.5, "seed": 3}
    alone = [model.generate(row[None], **options)[0].tolist() for row in rows]
    padded = torch.zeros(5, 6, dtype=torch.int64)
    for place, row in enumerate(rows):
        padded[place, : len(row)] = row
    for order in ([0, 1, 2, 3, 4], [4, 2, 0, 3, 1]):
        mask = padded[order] != 0
        for budget in (None, 30):
            together = model.generate(padded[order], mask, token_budget=budget, **options)
            for place, index in enumerate(order):
                assert together[place, : len(alone[index])].tolist() == alone[index]
                assert not together[place, len(alone[index]) :].any()
    others = [model.generate(row[None], **{**options, "seed": 4})[0].tolist() for row in rows]
    assert others != alone


@pytest.mark.parametrize("rule", [{"no_repeat_ngram_size": 1}, {"no_repeat_ngram_size": 2}, {"bad_words_ids": "own"}])
@pytest.mark.parametrize("strategy", ["greedy", "lookahead", "joint_viterbi", "beam", "sample"])
def test_every_strategy_keeps_rules_on_ngrams_and_words(rule, strategy):
    model = bnb_model(**DAG, decoder_length_offset=12)
    rows = source_ids([6, 3, 5])
    for row in rows:
        plain = model.generate(row[None], strategy=strategy, merge_duplicates=False)[0].tolist()
        options = dict(rule)
        if rule.get("bad_words_ids"):
            options["bad_words_ids"] = [plain[1:3]]
        kept = model.generate(row[None], strategy=strategy, merge_duplicates=False, **options)[0].tolist()
        size = options.get("no_repeat_ngram_size", 0)
        ngrams = [tuple(kept[i : i + size]) for i in range(len(kept) - size + 1)] if size else []
        assert len(set(ngrams)) == len(ngrams)
        for words in options.get("bad_words_ids", []):
            assert list(words) not in [kept[i : i + len(words)] for i in range(len(kept))]


def allowed(text: tuple[int, ...]) -> bool:
    pairs = list(itertools.pairwise(text))
    return len(set(pairs)) == len(pairs) and (1, 2, 0) not in [text[i : i + 3] for i in range(len(text))]


@pytest.mark.parametrize("seed", range(3))
def test_a_beam_that_drops_nothing_finds_the_best_output_that_keeps_the_rules(seed):
    log_probs, links = graph(6, 3, seed)
    options = DecodeOptions(
        beam_size=500,
        strategy="beam",
        length_penalty=0.0,
        merge_duplicates=False,
        no_repeat_ngram_size=2,
        bad_words_ids=[[1, 2, 0]],
    )
    exact = output_probabilities(log_probs, links)
    assert decoded(log_probs, links, options.dag_options()) == max(filter(allowed, exact), key=exact.__getitem__)


def decoded(log_probs: Tensor, links: Tensor, options: DagOptions) -> tuple[int, ...]:
    best, tokens = log_probs.sort(-1, descending=True)
    ids, end = decode_candidates(tokens[None], best[None], links[None], torch.tensor([len(links)]), options)
    return tuple(ids[0, : int(end)].tolist())


@pytest.mark.parametrize("weight", [0.3, 2.0])
@pytest.mark.parametrize("seed", range(3))
def test_a_beam_that_drops_nothing_finds_the_best_of_graph_and_language_model(tmp_path, weight, seed):
    pytest.importorskip("kenlm", reason="the optional package kenlm is not installed")
    (tmp_path / "words.arpa").write_text(ARPA)
    lm = NgramLm(tmp_path / "words.arpa", WordPieceRules(PIECES, {0, 4}))
    log_probs, links = graph(5, 5, seed)
    exact = output_probabilities(log_probs, links, merge_duplicates=True)

    def total(text: tuple[int, ...]) -> float:
        nats, words = lm.score(list(text))
        return math.log(exact[text]) + weight * nats + 0.7 * words

    options = DecodeOptions(
        beam_size=5000, beam_classes=200, strategy="beam", length_penalty=0.0, lm=lm, lm_weight=weight, word_bonus=0.7
    )
    assert decoded(log_probs, links, options.dag_options()) == max(exact, key=total)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategy": "sample", "temperature": 0.0}, "temperature is 0.0: give a finite number above 0"),
        ({"strategy": "sample", "temperature": math.nan}, "temperature is nan: give a finite number"),
        ({"strategy": "sample", "top_p": 0.0}, "top_p is 0.0: give a number above 0 and at most 1"),
        ({"strategy": "sample", "top_p": 1.5}, "top_p is 1.5: give a number above 0 and at most 1"),
        ({"strategy": "sample", "seed": -1}, "seed is -1: give a whole number of at least 0"),
        ({"strategy": "sample", "max_length": 4}, "strategy 'sample' keeps to no min_length or max_length"),
        ({"strategy": "sample", "beam_size": 2}, "beam_size is 2, but strategy is 'sample'"),
        ({"seed": 1}, "temperature, top_p and seed belong to strategy 'sample': give it, or leave them out"),
        ({"lm": object()}, "lm is used only in the beam search: give beam_size above 1"),
    ],
)
def test_refused_options(options, message):
    with pytest.raises(ConfigError, match=message):
        bnb_model(**DAG).generate(source_ids([3])[0][None], **options)
