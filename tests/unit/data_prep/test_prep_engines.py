"""Which engine is taken: only one that proves itself on the input."""

from __future__ import annotations

import copy
import re
import sys
import unicodedata

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


class Foreign(TokenizersEngine):
    """Another package's engine, wrong where the given texts are among those that it encodes."""

    name = "nanotoken"
    packages = ("no such package",)
    is_foreign = True
    wrong: tuple[str, ...] = ()

    def __call__(self, texts):
        found = super().__call__(texts)
        ids = found.ids.copy()
        for index, text in enumerate(texts):
            if any(part in text for part in self.wrong):
                ids[found.offsets[index]] ^= 1
        return Ragged(ids, found.offsets)


@pytest.fixture
def few_code_points(monkeypatch) -> None:
    monkeypatch.setattr(engines, "_CODE_POINTS", 0x400)
    monkeypatch.setattr(engines, "_PROVEN_AT_ONCE", 0x100)


@pytest.mark.parametrize("wrong", ["\x7f", "a\u0378b", "\u00e9\u0301", "\u03ff a"])
def test_auto_takes_no_engine_that_is_wrong_for_a_code_point(
    small_tokenizer, small_texts, said, monkeypatch, few_code_points, wrong: str
) -> None:
    """The input itself would not show it."""
    monkeypatch.setitem(ENGINES, "nanotoken", type("Wrong", (Foreign,), {"wrong": (wrong,)}))
    engine = proven(small_tokenizer, "auto", small_texts, said.append)
    assert engine.name == "words"
    assert len(said) == 1
    assert re.fullmatch(
        r"engine nanotoken: other ids than the tokenizer's for code points from U\+0[0-3].. on; not used", said[0]
    )
    expected = small_tokenizer(small_texts, add_special_tokens=False)["input_ids"]
    assert [row.tolist() for row in engine(small_texts)] == expected


def test_auto_takes_a_proven_engine(small_tokenizer, small_texts, said, monkeypatch, few_code_points) -> None:
    monkeypatch.setitem(ENGINES, "nanotoken", Foreign)
    engine = proven(small_tokenizer, "auto", small_texts, said.append)
    assert (engine.name, engine.packages, said) == ("nanotoken", {"no such package": "unknown"}, [])


def test_engine_that_fails_on_a_code_point(small_tokenizer, said, monkeypatch, few_code_points) -> None:
    class Fails(Foreign):
        def __call__(self, texts):
            if any("\u0200" in text for text in texts):
                raise RuntimeError("no such letter")
            return super().__call__(texts)

    monkeypatch.setitem(ENGINES, "nanotoken", Fails)
    assert proven(small_tokenizer, "nanotoken", ["a"], said.append).name == "tokenizers"
    assert said[0] == "engine nanotoken: fails on code points from U+0200 on (no such letter); not used"


def test_every_code_point_is_proven(small_tokenizer, monkeypatch) -> None:
    """Alone if it is assigned, between spaces, between letters, and before a combining mark."""
    assert sys.maxunicode + 1 == engines._CODE_POINTS
    monkeypatch.setattr(engines, "_CODE_POINTS", 0x12000)  # all would fill this process's memory
    seen: set[str] = set()

    class Sees(Foreign):
        def __call__(self, texts):
            for text in texts:
                seen.update(text.split(" ") if len(text) > 1 else [f"alone {text}"])
            rows = np.zeros(len(texts) + 1, dtype=np.int64)
            return Ragged(np.zeros(0, dtype=np.uint32), rows)

    class Empty(TokenizersEngine):
        def __call__(self, texts):
            return Ragged(np.zeros(0, dtype=np.uint32), np.zeros(len(texts) + 1, dtype=np.int64))

    backend = engines.plain_backend(small_tokenizer)
    assert engines.first_fault(Sees(backend), Empty(backend)) is None
    characters = [chr(code) for code in range(0x12000) if not 0xD800 <= code < 0xE000 and code != 0x20]
    assert all({c, f"a{c}b", f"{c}\u0301"} <= seen for c in characters)
    assert all((f"alone {c}" in seen) == (unicodedata.category(c) != "Cn") for c in characters)


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
    with pytest.raises(ConfigError, match="--engine must be one of auto, nanotoken, words, tokenizers, got 'x'"):
        proven(small_tokenizer, "x", [])


def test_engine_that_is_not_installed(small_tokenizer, monkeypatch) -> None:
    monkeypatch.setitem(ENGINES, "nanotoken", lambda backend: __import__("no_such_package"))
    with pytest.raises(
        ConfigError, match=r'--engine nanotoken: not installed; pip install "\.\[fast\]" in the checkout'
    ):
        proven(small_tokenizer, "nanotoken", ["a"])


def test_special_tokens_in_a_text_are_text(small_tokenizer) -> None:
    specials = set(small_tokenizer.all_special_ids) - {small_tokenizer.unk_token_id}
    for name in ("words", "tokenizers"):
        ids = proven(small_tokenizer, name, ["a"])(["The [MASK] and [PAD] tokens"]).ids
        assert not specials & set(np.asarray(ids).tolist())
