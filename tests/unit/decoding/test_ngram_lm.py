"""The n-gram language model in the CTC search: joining pieces into words, and the best of all possible outputs."""

from __future__ import annotations

import math
import sys

import pytest
import torch

from bnb_ds.data.subwords.rules import WordPieceRules
from bnb_ds.decoding.ngram_lm import LmScores, NgramLm
from bnb_ds.decoding.options import DecodeOptions
from bnb_ds.decoding.search import refine
from bnb_ds.errors import ConfigError, DataError
from tests.plain_beam import all_outputs
from tests.unit.decoding.test_search import log_probs_of, slots_of

ARPA = """\\data\\
ngram 1=7
ngram 2=4

\\1-grams:
-1.5\t<unk>
0\t<s>\t-0.3
-1.0\t</s>
-0.6\tred\t-0.2
-0.9\treds\t-0.2
-0.7\tcat\t-0.4
-2.0\t.

\\2-grams:
-0.2\t<s> red
-0.1\tred cat
-1.9\tcat red
-0.3\tcat </s>

\\end\\
"""
PIECES = ["[PAD]", "red", "cat", "##s", "[SEP]"]


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    pytest.importorskip("kenlm", reason="the optional package kenlm is not installed")
    path = tmp_path_factory.mktemp("lm") / "words.arpa"
    path.write_text(ARPA)
    return NgramLm(path, WordPieceRules(PIECES, {0, 4}))


def test_pieces_become_words_and_special_tokens_none(lm):
    assert lm.words([1, 2, 3, 4, 3, 1]) == ["red", "catss", "red"]
    assert lm.words([3, 3, 1]) == ["ss", "red"]
    assert lm.words([]) == []


def test_a_whole_output_has_the_models_own_score(lm):
    nats, num_words = lm.score([1, 2, 4])
    assert num_words == 2
    assert nats == pytest.approx((-0.2 - 0.1 - 0.3) * math.log(10), rel=1e-5)
    nats, _ = lm.score([1, 3])  # one word, "reds"
    assert nats == pytest.approx((-0.3 - 0.9 - 0.2 - 1.0) * math.log(10), rel=1e-5)


def test_a_prefix_is_scored_up_to_its_last_word(lm):
    scores = LmScores(lm, weight=2.0, word_bonus=0.25)
    empty, red, red_cat, reds, unused = range(5)

    def gains(prefixes, parents, last, alive):
        return scores.gains(*map(torch.tensor, ([prefixes], [parents], [last], [alive])))[0].tolist()

    assert gains([red, empty], [empty, -1], [1, -1], [True, True]) == [0.25, 0.0]
    found = gains([red_cat, reds, unused], [red, red, empty], [2, 3, 1], [True, True, False])
    assert found == pytest.approx([2 * -0.2 * math.log(10) + 0.5, 0.25, 0.0], rel=1e-5)


@pytest.mark.parametrize("weight", [0.3, 2.0])
@pytest.mark.parametrize("seed", range(3))
def test_a_wide_beam_finds_the_best_of_model_and_language_model(lm, weight, seed):
    slots = slots_of(seed, lengths=[4, 2, 5], vocab=5, scale=0.4)
    ids, lengths = refine(slots, DecodeOptions(beam_size=400, lm=lm, lm_weight=weight, word_bonus=0.7))
    for rows, row, end in zip(log_probs_of(slots), ids.tolist(), lengths.tolist(), strict=True):

        def total(output, table):
            nats, words = lm.score(list(output))
            return table[output] + weight * nats + 0.7 * words

        table = all_outputs(rows, 0)
        expected = max(table, key=lambda output: total(output, table))
        assert tuple(row[:end]) == expected


def test_the_language_model_changes_outputs(lm):
    slots = slots_of(1, lengths=[6, 9, 7, 8], vocab=5, scale=0.4)
    plain, _ = refine(slots, DecodeOptions(beam_size=8))
    heard, _ = refine(slots, DecodeOptions(beam_size=8, lm=lm, lm_weight=1.0))
    assert plain.tolist() != heard.tolist()


def test_without_the_package_the_way_to_it_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "kenlm", None)
    with pytest.raises(ConfigError, match=r'needs the package kenlm: pip install "\.\[lm\]" in the checkout'):
        NgramLm(tmp_path / "x.arpa", WordPieceRules(PIECES, set()))


def test_a_file_that_is_no_language_model_is_refused(lm, tmp_path):
    with pytest.raises(DataError, match=r"none\.arpa: no such language model; give an ARPA file or a KenLM binary"):
        NgramLm(tmp_path / "none.arpa", WordPieceRules(PIECES, set()))
    (tmp_path / "bad.arpa").write_text("not a model\n")
    with pytest.raises(DataError, match=r"bad\.arpa: cannot be read as a language model"):
        NgramLm(tmp_path / "bad.arpa", WordPieceRules(PIECES, set()))
