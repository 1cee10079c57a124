"""Every engine gives the ids of BertTokenizerFast, for any text and any BERT vocabulary."""

from __future__ import annotations

import importlib.util
import random
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bnb_ds.data.tokenization import load_tokenizer, plain_backend, tokenizer_from_vocabulary
from data_prep.tokenise.engines import ENGINES, first_fault
from data_prep.tokenise.words import WordEngine

pytestmark = pytest.mark.slow

OPTIONAL = [
    pytest.param(name, marks=pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"no {name}"))
    for name in ("nanotoken",)
]
VOCABULARIES = ["bert-base-cased", "bert-base-uncased", "bert-base-multilingual-cased"]

# Tokenizers differ on these: spaces that BERT does not split at, deleted characters, marks that combine across a cut,
# punctuation of every kind, Chinese on both sides of each range, characters whose case or decomposition changes length.
AWKWARD = [
    *" \t\n\r\x00\x0b\x0c\x1c\x1f\x7f\x85\xa0\u2003\u200b\u200d\u2028\u3000\ufeff\ufffd\xad",
    *"\u0301\u0338\u0345\u05b0\u094d\u0f39\U0001d165",
    *".,-'\"[]#_~=<>$+^`|\u2010\u2014\u2018\u201d\u2026\u2027\u2028\u2030\u203d\u3001\u300c\xa1\xab\xbf\u037e\u0f3a",
    *"\u33ff\u3400\u4dbf\u4dc0\u4dff\u4e00\u4e2d\u9fa5\u9fff\ua000\uf900\uac00\ud55c\u1112\u3042\u30ab\u0e01\u0e33",
    *"\U00020000\U0002b820\U0001f600\U0001f468",
    *"\xe9\xc5\u0130\u0131\u1e9e\xdf\u03a3\u03c2\ufb01\u2260\u226e\u212b\u0958\u01c5\u0390",
    *"aAbzZ019",
]
WORDS = ["the", "of", "Paris", "function", "##ing", "[MASK]", "[UNK]", "unaffable", "naïve", "北京", "x" * 101, "A.B."]
TEXTS = st.lists(st.one_of(st.sampled_from(AWKWARD), st.sampled_from(WORDS), st.characters(codec="utf-8"))).map("".join)


def vocabulary(path: Path):
    backend = plain_backend(load_tokenizer(path))
    reference = ENGINES["tokenizers"](backend)
    return backend, reference


def assert_equal(engine, reference, texts: list[str]) -> None:
    found, expected = engine(texts), reference(texts)
    assert len(found) == len(expected) == len(texts)
    if np.array_equal(found.offsets, expected.offsets) and np.array_equal(found.ids, expected.ids):
        return
    for index, text in enumerate(texts):
        assert np.array_equal(found[index], expected[index]), ascii(text)
    pytest.fail("offsets or ids beyond those of the texts")


@pytest.mark.parametrize("lowercase", [False, True])
@given(texts=st.lists(TEXTS, max_size=5))
@settings(max_examples=150, deadline=None)
def test_words_on_a_small_vocabulary(lowercase: bool, texts: list[str]) -> None:
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "func", "##tion", "中", "北", "é", "e", "##e", "Σ"]
    tokens += [f"{prefix}{character}" for prefix in ("", "##") for character in "abzAB019.,-[]=#—“ss"]
    tokenizer = tokenizer_from_vocabulary(list(dict.fromkeys(tokens)), lowercase=lowercase)
    backend = plain_backend(tokenizer)
    assert_equal(ENGINES["words"](backend), ENGINES["tokenizers"](backend), texts)


@pytest.mark.parametrize("name", VOCABULARIES)
@pytest.mark.parametrize("engine", ["words"])
def test_awkward_pairs(engine: str, name: str, shared_data: Path) -> None:
    """Every pair of awkward characters, alone and inside a word, and long random mixtures."""
    backend, reference = vocabulary(shared_data / "tokenizers" / name)
    pairs = [a + b for a in AWKWARD for b in AWKWARD]
    mixtures = random.Random(0)
    texts = [*pairs, *(f"na{pair}ve" for pair in pairs)]
    texts += ["".join(mixtures.choices(AWKWARD + WORDS, k=200)) for _ in range(300)]
    assert_equal(ENGINES[engine](backend), reference, texts)


@pytest.mark.parametrize("engine", OPTIONAL)
@pytest.mark.parametrize("name", VOCABULARIES)
def test_every_code_point(engine: str, name: str, shared_data: Path) -> None:
    """In every place that the proof of foreign engines looks at."""
    backend, reference = vocabulary(shared_data / "tokenizers" / name)
    assert first_fault(ENGINES[engine](backend), reference) is None


def characters_that_differ() -> tuple[list[str], list[str]]:
    """Characters that have a property of their own, and all others: unassigned ones and those for private use.

    The others that begin or end a run of their kind count among the first. The tokenizer's tables of Unicode may be
    older than Python's, so it may see some of the first as unassigned, which does no harm.
    """
    categories = [unicodedata.category(chr(code)) for code in range(0x110000)]
    alike = {"Cn", "Co"}
    first, others = [], []
    for code, category in enumerate(categories):
        if category == "Cs":  # half of a pair, which is no text
            continue
        at_edge = categories[max(code - 1, 0)] != category or categories[min(code + 1, 0x10FFFF)] != category
        (others if category in alike and not at_edge else first).append(chr(code))
    return first, others


@pytest.mark.parametrize("name", VOCABULARIES)
def test_words_on_every_code_point(name: str, shared_data: Path) -> None:
    """Alone, between letters, before a combining mark; characters without properties eight to a word.

    The tokenizer makes one [UNK] of such a word, so that a cut anywhere in it gives more tokens. One vocabulary is
    enough for them, because cuts do not depend on the vocabulary.
    """
    backend, reference = vocabulary(shared_data / "tokenizers" / name)
    engine = ENGINES["words"](backend)
    first, others = characters_that_differ()
    assert len(first) > 140_000
    assert len(first) + len(others) == 0x110000 - 2048
    rows = [first[i : i + 64] for i in range(0, len(first), 64)]
    assert_equal(engine, reference, [*first, *(" ".join(f"{c} a{c}b {c}\u0301" for c in row) for row in rows)])
    if "uncased" in name:
        words = ["".join(f"{c}a{c}\u0301" for c in others[i : i + 8]) for i in range(0, len(others), 8)]
        assert_equal(engine, reference, [" ".join(words[i : i + 64]) for i in range(0, len(words), 64)])
        assert reference(words[:50]).ids.tolist() == [backend.token_to_id("[UNK]")] * 50


@pytest.mark.parametrize("engine", [*OPTIONAL, "words"])
@pytest.mark.parametrize("name", VOCABULARIES)
def test_real_text(engine: str, name: str, shared_data: Path) -> None:
    import pyarrow.parquet as pq

    backend, reference = vocabulary(shared_data / "tokenizers" / name)
    table = pq.read_table(shared_data / "wikipedia" / "articles-2015" / "train-00000-of-00004.parquet")
    assert_equal(ENGINES[engine](backend), reference, table.column("text").to_pylist()[:60])


def test_the_dictionary_is_emptied_when_full(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_prep.tokenise.words._MAX_WORDS", 100)
    backend, reference = vocabulary(shared_data / "tokenizers" / "bert-base-cased")
    engine = ENGINES["words"](backend)
    for part in range(20):
        texts = [f"word{i} of part {part}, the {i * part}th" for i in range(30)]
        assert_equal(engine, reference, texts)
    assert len(engine._words._table) < 200


@pytest.mark.parametrize("texts", [[], [""], ["", " ", "\x00"], ["a", "", "b"]])
def test_nothing_to_encode(texts: list[str], small_tokenizer) -> None:
    backend = plain_backend(small_tokenizer)
    assert_equal(ENGINES["words"](backend), ENGINES["tokenizers"](backend), texts)


def test_words_refuse_added_tokens(small_tokenizer) -> None:
    import copy

    changed = copy.deepcopy(small_tokenizer)
    changed.add_tokens(["two words"])
    with pytest.raises(ValueError, match="the tokenizer has added tokens"):
        WordEngine(plain_backend(changed))
