"""Cutting plain words in NumPy gives the same pieces as the tokenizer."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bnb_ds.data.tokenization import load_tokenizer, plain_backend, tokenizer_from_vocabulary
from data_prep.tokenise.engines import ENGINES
from data_prep.tokenise.keys import MAX_BYTES, MAX_COLUMNS, KeyTable, pack, padded
from data_prep.tokenise.wordpiece import PlainWordPiece
from data_prep.tokenise.words import WordEngine

pytestmark = pytest.mark.slow

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PLAIN = [chr(code) for code in range(128) if chr(code).isalnum()]


@pytest.fixture(autouse=True)
def _nothing_is_left_to_the_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_prep.tokenise.wordpiece._FEW", 0)


def packed(words: list[bytes]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    lengths = np.array([len(word) for word in words], dtype=np.int64)
    return padded(np.frombuffer(b"".join(words), dtype=np.uint8)), np.cumsum(lengths) - lengths, lengths


def assert_equal(tokenizer, words: list[str], max_characters: int | None = None) -> None:
    """The ids of these words equal the tokenizer's, for single words and for whole texts."""
    backend = plain_backend(tokenizer)
    if max_characters is not None:
        backend.model.max_input_chars_per_word = max_characters
    expected = ENGINES["tokenizers"](backend)(words)
    ids, counts = PlainWordPiece(json.loads(backend.to_str()))(*packed([word.encode() for word in words]))
    assert counts.tolist() == np.diff(expected.offsets).tolist()
    assert ids.tolist() == expected.ids.tolist()
    assert WordEngine(backend).encode([" ".join(words)])[0].tolist() == expected.ids.tolist()


@given(data=st.data(), lowercase=st.booleans())
@settings(max_examples=300, deadline=None)
def test_any_vocabulary(data: st.DataObject, lowercase: bool) -> None:
    """Vocabularies without some letters, with pieces of every length that has a key and of lengths without one."""
    letters = st.sampled_from("abAB1z")
    piece = st.one_of(st.text(letters, min_size=1, max_size=4), st.text(letters, min_size=6, max_size=40))
    pieces = data.draw(st.lists(piece, min_size=1, max_size=30))
    begins = data.draw(st.lists(st.sampled_from(["", "##"]), min_size=len(pieces), max_size=len(pieces)))
    tokens = [*SPECIAL, *"ab1", "##a", "##b", *(begin + piece for begin, piece in zip(begins, pieces, strict=True))]
    tokenizer = tokenizer_from_vocabulary(list(dict.fromkeys(tokens)), lowercase=lowercase)
    word = st.lists(st.one_of(st.sampled_from(pieces), letters), min_size=1, max_size=8)
    words = data.draw(st.lists(word.map("".join).map(lambda word: word[:MAX_BYTES]), max_size=20))
    assert_equal(tokenizer, words, data.draw(st.sampled_from([None, 5])))


@pytest.mark.parametrize("name", ["bert-base-cased", "bert-base-uncased", "bert-base-multilingual-cased"])
def test_real_vocabularies(name: str, shared_data: Path) -> None:
    """Random words of every length that has a key, and words joined from the vocabulary's own pieces."""
    tokenizer = load_tokenizer(shared_data / "tokenizers" / name)
    draw = random.Random(0)
    pieces = [token.removeprefix("##") for token in tokenizer.get_vocab()]
    pieces = sorted(piece for piece in pieces if piece.isascii() and piece.isalnum())
    words = [*pieces, *map(str.upper, pieces), *map(str.title, pieces)]
    words += ["".join(draw.choices(PLAIN, k=draw.randint(1, MAX_BYTES))) for _ in range(3000)]
    words += ["".join(draw.choices(pieces, k=draw.randint(2, 6))) for _ in range(20000)]
    assert_equal(tokenizer, [word[:MAX_BYTES] for word in words])


def test_most_words_here_and_few_by_the_tokenizer(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_prep.tokenise.wordpiece._FEW", 100)
    tokenizer = load_tokenizer(shared_data / "tokenizers" / "bert-base-cased")
    backend = plain_backend(tokenizer)
    draw = random.Random(0)
    text = " ".join("".join(draw.choices(PLAIN, k=draw.randint(1, 40))) for _ in range(3000))
    assert WordEngine(backend).encode([text])[0].tolist() == ENGINES["tokenizers"](backend)([text]).ids.tolist()


@given(batches=st.lists(st.lists(st.binary(max_size=MAX_BYTES), unique=True, max_size=200), max_size=5))
@settings(deadline=None)
def test_a_table_numbers_strings_exactly(batches: list[list[bytes]]) -> None:
    table, expected = KeyTable(MAX_COLUMNS), {}
    for batch in batches:
        words = [word for word in batch if word]
        keys = pack(*packed(words), MAX_COLUMNS)
        found = table.find(keys)
        assert found.tolist() == [expected.get(word, 0) for word in words]
        table.add(keys[:, found == 0])
        for word in words:
            expected.setdefault(word, len(expected) + 1)
    assert len(table) == len(expected)


def test_a_table_whose_hash_always_collides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KeyTable, "_first_slots", lambda self, keys: np.full(keys.shape[1], len(self._slots) - 2))
    words = [str(number).encode() for number in range(700)]
    table, keys = KeyTable(1), pack(*packed(words), 1)
    table.add(keys[:, :300])
    assert table.find(keys).tolist() == [*range(1, 301), *[0] * 400]
    table.add(keys[:, 300:])
    assert table.find(keys).tolist() == [*range(1, 701)]
