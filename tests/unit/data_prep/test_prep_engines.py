"""Which engine is taken: only one that proves itself on the input."""

from __future__ import annotations

import copy

import numpy as np
import pytest

from bnb_ds.errors import ConfigError
from data_prep.tokenise import engines
from data_prep.tokenise.engines import ENGINES, Candidate, EngineFault, Ragged, TokenizersEngine, candidates


class WrongOnce(TokenizersEngine):
    name = "wrong"

    def __call__(self, texts):
        found = super().__call__(texts)
        ids = found.ids.copy()
        ids[-1] ^= 1
        return Ragged(ids, found.offsets)


def proven(tokenizer, name: str, texts: list[str], say=lambda line: None) -> Candidate:
    """The first candidate that proves itself on the texts."""
    for candidate in candidates(tokenizer, name, say):
        try:
            candidate.prove(texts, "the texts")
            return candidate
        except EngineFault as fault:
            say(f"engine {candidate.name}: {fault}")
    raise AssertionError("the tokenizer itself needs no proof")


@pytest.fixture
def said() -> list[str]:
    return []


def test_named_engine(small_tokenizer, small_texts, said) -> None:
    assert proven(small_tokenizer, "words", small_texts, said.append).name == "words"
    assert proven(small_tokenizer, "tokenizers", small_texts, said.append).name == "tokenizers"
    assert said == []


def test_one_wrong_id_and_the_tokenizer_is_used_aloud(small_tokenizer, small_texts, said, monkeypatch) -> None:
    monkeypatch.setitem(ENGINES, "words", WrongOnce)
    assert proven(small_tokenizer, "words", small_texts[:9], said.append).name == "tokenizers"
    assert said == [
        "engine words: other ids than the tokenizer's for document 9 of the texts",
        "engine tokenizers: used instead",
    ]


def test_auto_takes_the_next_engine(small_tokenizer, small_texts, said, monkeypatch) -> None:
    def missing(backend):
        raise ImportError

    monkeypatch.setitem(ENGINES, "nanotoken", WrongOnce)
    monkeypatch.setitem(ENGINES, "tokie", missing)
    engine = proven(small_tokenizer, "auto", small_texts, said.append)
    assert engine.name == "words"
    assert [line.split(":")[0] for line in said] == ["engine nanotoken"]
    expected = small_tokenizer(small_texts, add_special_tokens=False)["input_ids"]
    assert [row.tolist() for row in engine(small_texts)] == expected


def test_engine_that_fails_on_the_input(small_tokenizer, said, monkeypatch) -> None:
    class Fails(TokenizersEngine):
        def __call__(self, texts):
            raise RuntimeError("cannot\nread this")

    monkeypatch.setitem(ENGINES, "words", Fails)
    assert proven(small_tokenizer, "words", ["a"], said.append).name == "tokenizers"
    assert said[0] == "engine words: fails on the texts (cannot read this)"


def test_tokenizer_with_added_tokens(small_tokenizer, said) -> None:
    changed = copy.deepcopy(small_tokenizer)
    changed.add_tokens(["two words"])
    engine = proven(changed, "words", ["here are two words, and [MASK]"], said.append)
    assert said[0] == "engine words: refuses this tokenizer (the tokenizer has added tokens); not used"
    assert engine(["two words"]).ids.tolist() == [changed.get_vocab()["two words"]]


def test_unknown_engine(small_tokenizer) -> None:
    with pytest.raises(ConfigError, match="--engine must be one of auto, nanotoken, tokie, words, tokenizers, got 'x'"):
        proven(small_tokenizer, "x", [])


def test_engine_that_is_not_installed(small_tokenizer, monkeypatch) -> None:
    monkeypatch.setitem(engines.__dict__["ENGINES"], "tokie", lambda backend: __import__("no_such_package"))
    with pytest.raises(
        ConfigError,
        match=r'--engine tokie: not installed; pip install "\.\[fast\]" in the checkout of bnb_ds, or choose',
    ):
        proven(small_tokenizer, "tokie", ["a"])


def test_special_tokens_in_a_text_are_text(small_tokenizer) -> None:
    specials = set(small_tokenizer.all_special_ids) - {small_tokenizer.unk_token_id}
    for name in ("words", "tokenizers"):
        ids = proven(small_tokenizer, name, ["a"])(["The [MASK] and [PAD] tokens"]).ids
        assert not specials & set(np.asarray(ids).tolist())
