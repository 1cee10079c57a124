"""Bad words and the language model of words, in byte-level BPE and SentencePiece vocabularies."""

from __future__ import annotations

import unicodedata

import numpy as np
import pytest
import torch

from bnb_ds.data.subwords.characters import is_letter
from bnb_ds.data.subwords.rules import MetaspaceRules, piece_rules
from bnb_ds.data.tokenization import plain_backend
from bnb_ds.decoding.bad_words import BadWords
from bnb_ds.decoding.ngram_lm import LmScores, NgramLm, TextScores
from tests.subwords import byte_level, texts, unigram

FAMILIES = {"byte-level": byte_level, "metaspace": unigram}


@pytest.fixture(params=FAMILIES)
def tokenizer(request):
    return FAMILIES[request.param]()


def encoded(tokenizer, text: str) -> list[int]:
    return plain_backend(tokenizer).encode(text, add_special_tokens=False).ids


def atoms_of(text: str) -> list[str]:
    """Runs of letters and digits, and single marks, the plain way."""
    parts = [""]
    for character in unicodedata.normalize("NFD", text):
        if is_letter(character):
            parts[-1] += character
        else:
            parts += [character, ""]
    return [part for part in parts if part.strip()]


def holds(text: str, word: str, inside: bool) -> bool:
    atoms, wanted = atoms_of(text), atoms_of(word)
    if inside:
        assert len(wanted) == 1
        return any(wanted[0] in atom for atom in atoms)
    return any(atoms[i : i + len(wanted)] == wanted for i in range(len(atoms)))


@pytest.mark.parametrize(
    ("words", "inside"),
    [(["the"], False), (["th"], True), (["é"], True), (["of the", "a-b", "!"], False), (["naïve", "北"], False)],
    ids=str,
)
def test_bad_words_are_those_of_the_text(tokenizer, words, inside):
    """Random rows of pieces, many of them bytes of broken characters, beside what the tokenizer writes of them."""
    bad_words = BadWords.of(words, tokenizer, len(tokenizer), inside=inside)
    random, seen = np.random.default_rng(1), {True: 0, False: 0}
    likely = sorted({index for text in (*words, "the é naïve n", texts()[-1]) for index in encoded(tokenizer, text)})
    rows = [random.choice(likely, size=random.integers(1, 9)).tolist() for _ in range(300)]
    rows += [random.integers(5, len(tokenizer), 8).tolist() for _ in range(100)]
    rows += [encoded(tokenizer, f"so {word} then") for word in words]
    for row in rows:
        row = [index for index in row if index != tokenizer.unk_token_id]
        is_held = any(holds(tokenizer.decode(row), word, inside) for word in words)
        assert bad_words.allow(row) != is_held, (tokenizer.decode(row), row)
        assert bad_words.allow([0, *row[:1], 2, *row[1:]]) != is_held  # special tokens write nothing
        seen[is_held] += 1
    assert min(seen.values()) >= len(words)
    assert not bad_words.unwritable or tokenizer.unk_token_id in encoded(tokenizer, bad_words.unwritable[0])


def test_states_of_a_table_are_those_of_single_steps(tokenizer):
    bad_words = BadWords.of(["é the"], tokenizer, len(tokenizer))
    ids = torch.tensor([encoded(tokenizer, "é the of")])
    states = torch.zeros(1, 1, dtype=torch.int64)
    for place in range(ids.shape[1]):
        found = bad_words.after_all(states, ids)
        assert found.tolist() == [[[bad_words.after(int(states), token) for token in ids[0].tolist()]]]
        states = found[:, :, place].clamp(min=0)


def test_words_that_a_vocabulary_without_bytes_cannot_write():
    rules = MetaspaceRules(["<s>", "▁the", "re", "(", "▁"], [0])
    found = BadWords(["there", "them", "(the", "x"], rules)
    assert found.unwritable == ["them", "x"]
    assert found.allow([1, 3, 2])
    assert not found.allow([4, 1, 2])
    assert not found.allow([3, 1])


ARPA = """\\data\\
ngram 1=6
ngram 2=2

\\1-grams:
-2.0\t<unk>
-99\t<s>\t-0.5
-1.0\t</s>
-0.6\tthe\t-0.2
-0.9\tisn\t-0.2
-0.7\t,\t-0.4

\\2-grams:
-0.2\t<s> the
-0.1\tthe ,

\\end\\
"""


@pytest.fixture(scope="module")
def arpa(tmp_path_factory):
    pytest.importorskip("kenlm", reason="the optional package kenlm is not installed")
    path = tmp_path_factory.mktemp("lm") / "words.arpa"
    path.write_text(ARPA)
    return path


def test_one_language_model_serves_every_tokenizer(arpa, tokenizer, small_tokenizer):
    """The score of a text does not depend on the pieces that it is written in."""
    text = "the value, isn't the"
    scores = []
    for one in (tokenizer, small_tokenizer):
        lm, ids = NgramLm(arpa, piece_rules(one)), encoded(one, text)
        assert lm.words(ids) == ["the", "value", ",", "isn", "'", "t", "the"]
        scores.append(lm.score(ids))
    assert scores[0] == scores[1]


def test_scores_that_grow_token_by_token_end_at_those_of_the_whole(arpa, tokenizer):
    lm = NgramLm(arpa, piece_rules(tokenizer))
    ids = encoded(tokenizer, "the value, “isn't” é\n the.")
    nats, num_words = lm.score(ids)
    grown, total = TextScores(lm, 0.5, 0.25), 0.0
    for place, token in enumerate(ids):
        total += grown(tuple(ids[:place]), token)
    assert total + grown.end(tuple(ids)) == pytest.approx(0.5 * nats + 0.25 * num_words, rel=1e-6)
    scorer = LmScores(lm, 0.5, 0.25)
    alive = torch.ones(1, 1, dtype=torch.bool)
    for place, token in enumerate(ids):
        gains = scorer.gains(*(torch.tensor([[value]]) for value in (place + 1, place, token)), alive)
    assert float(gains) == pytest.approx(total, rel=1e-6)
