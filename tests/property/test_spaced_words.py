"""The dictionary of words gives the ids of byte-level BPE and SentencePiece tokenizers, for any text."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, normalizers, pre_tokenizers

from bnb_ds.data.tokenization import plain_backend
from data_prep.tokenise.engines import ENGINES
from data_prep.tokenise.spaced_words import cuts_at_spaces
from tests.property.test_engines import AWKWARD, assert_equal
from tests.subwords import byte_level, unigram

HARD = [*AWKWARD, *"    ", "\u00a8", "\u037a", "\u1680", "\u205f", "\u3000", "\u0345", "\ufdfa", "\u2581"]
WORDS = [
    " the",
    " of",
    "don't",
    "I'll ",
    "  ",
    "\n\n",
    " \n ",
    "</s>",
    "<mask>",
    "<pad> ",
    "<s>",
    "x" * 70,
    "A.B. ",
    "北京 ",
]
TEXTS = st.lists(st.one_of(st.sampled_from(HARD), st.sampled_from(WORDS), st.characters(codec="utf-8"))).map("".join)


def engines(backend):
    return ENGINES["words"](backend), ENGINES["tokenizers"](backend)


@pytest.fixture(scope="module")
def backends():
    """Tokenizers with every part of which `cuts_at_spaces` is true."""
    found = {"byte-level": plain_backend(byte_level()), "unigram": plain_backend(unigram())}
    for name, prefix in (("prefix", True), ("composed", False)):
        found[name] = plain_backend(byte_level())
        found[name].pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    found["composed"].normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    found["no split"] = plain_backend(unigram())
    found["no split"].pre_tokenizer = pre_tokenizers.Metaspace()
    replaced = [normalizers.Replace(Regex(" {2,}"), " "), normalizers.Replace("``", '"')]
    found["no split"].normalizer = normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC(), *replaced])
    found["accents"] = plain_backend(byte_level())
    found["accents"].normalizer = normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()])
    found["digits"] = plain_backend(unigram())
    parts = [pre_tokenizers.Punctuation(), pre_tokenizers.Digits(individual_digits=True)]
    found["digits"].pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), *parts])
    found["digits"].normalizer = normalizers.Sequence([normalizers.NFKD(), normalizers.StripAccents()])
    return found


FIRST = ["byte-level", "unigram"]
NAMES = ["byte-level", "unigram", "prefix", "composed", "no split", "digits", "accents"]


@pytest.mark.parametrize("name", [*FIRST, *(pytest.param(name, marks=pytest.mark.slow) for name in NAMES[2:])])
@given(texts=st.lists(TEXTS, max_size=5))
@settings(max_examples=25, deadline=None)
def test_any_text(backends, name: str, texts: list[str]) -> None:
    assert_equal(*engines(backends[name]), texts)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_awkward_pairs(backends, name: str) -> None:
    """Every pair of awkward characters beside a space, and long random mixtures."""
    pairs = [a + b for a in HARD for b in HARD]
    mixtures = random.Random(0)
    texts = [
        f"{layout[0]}{a}{layout[1]}{b}{layout[2]}" for a, b in pairs for layout in (("x", " ", "y"), (" ", "  ", " "))
    ]
    texts += [" ".join(texts[i : i + 50]) for i in range(0, len(texts), 50)]
    texts += ["".join(mixtures.choices(HARD + WORDS, k=300)) for _ in range(200)]
    assert_equal(*engines(backends[name]), texts)


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.update(pre_tokenizer=None),
        lambda state: state.update(pre_tokenizer={"type": "Whitespace"}),
        lambda state: state["pre_tokenizer"].update(use_regex=False),
        lambda state: state.update(normalizer={"type": "Prepend", "prepend": "x"}),
        lambda state: state.update(normalizer={"type": "Strip", "strip_left": True, "strip_right": True}),
        lambda state: state.update(normalizer={"type": "Replace", "pattern": {"String": "a b"}, "content": "c"}),
        lambda state: state.update(normalizer={"type": "Replace", "pattern": {"String": "a"}, "content": ""}),
        lambda state: state.update(normalizer={"type": "Replace", "pattern": {"Regex": "a+"}, "content": "b"}),
        lambda state: state["added_tokens"].append({"special": False, "content": "a b"}),
        lambda state: state["model"].update(dropout=0.1),
        lambda state: state.update(
            pre_tokenizer={"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True}
        ),
    ],
)
def test_parts_that_may_join_words_are_not_taken(change) -> None:
    state = json.loads(plain_backend(byte_level()).to_str())
    assert cuts_at_spaces(state)
    change(state)
    assert not cuts_at_spaces(state)


def test_a_dictionary_that_is_full_is_begun_anew(backends, monkeypatch) -> None:
    monkeypatch.setattr("data_prep.tokenise.words._MAX_WORDS", 3)
    engine, reference = engines(backends["unigram"])
    for texts in (["the first of many words", ""], ["", "the last of many", "x"], ["the first"]):
        assert_equal(engine, reference, texts)
