"""Training a WordPiece vocabulary."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from tokenizers import normalizers, pre_tokenizers
from transformers import AutoTokenizer

from bnb_ds.data.tokenization import SPECIAL_TOKEN_TEXTS, load_tokenizer, tokenizer_hash
from bnb_ds.errors import ConfigError, DataError
from data_prep.sources.documents import Document
from data_prep.tokenise.vocab import count_words, learn_tokens, train_vocabulary
from tests import launching


def documents(texts: list[str]) -> list[Document]:
    return [Document(str(i), text, "") for i, text in enumerate(texts)]


def test_directory_is_a_tokenizer(tmp_path: Path, small_texts: list[str]) -> None:
    trained = train_vocabulary(documents(small_texts), tmp_path / "vocab", vocab_size=500)
    for loaded in (load_tokenizer(tmp_path / "vocab"), AutoTokenizer.from_pretrained(tmp_path / "vocab")):
        assert tokenizer_hash(loaded) == tokenizer_hash(trained)
    assert len(trained) == 500
    assert trained.convert_ids_to_tokens(range(5)) == list(SPECIAL_TOKEN_TEXTS)
    assert os.listdir(tmp_path) == ["vocab"]


def test_vocabulary_covers_the_corpus(small_texts: list[str], small_tokenizer) -> None:
    encoded = small_tokenizer(small_texts, add_special_tokens=False)["input_ids"]
    tokens = [token for ids in encoded for token in ids]
    assert tokens.count(small_tokenizer.unk_token_id) < 0.01 * len(tokens)
    # Learnt pieces shorten the text well below one token per character.
    assert len(tokens) < 0.5 * sum(map(len, small_texts))
    for text, ids in zip(small_texts[:20], encoded, strict=False):
        if small_tokenizer.unk_token_id not in ids:
            assert "".join(small_tokenizer.decode(ids).split()) == "".join(text.split())


@pytest.mark.parametrize("lowercase", [False, True])
def test_case(tmp_path: Path, lowercase: bool) -> None:
    tokenizer = train_vocabulary(documents(["Ärger über Über"] * 3), tmp_path / "v", vocab_size=60, lowercase=lowercase)
    expected = ["arger", "uber", "uber"] if lowercase else ["Ärger", "über", "Über"]
    assert load_tokenizer(tmp_path / "v").tokenize("Ärger über Über") == expected
    assert tokenizer.do_lower_case is lowercase


def test_most_frequent_word_comes_first() -> None:
    counts = Counter({"aa": 1500, "bb": 1500, "cc": 1502, "dd": 1})
    # Characters, characters inside words, then merges by frequency, ties by the lower id; "dd" was seen once.
    assert learn_tokens(counts, 100) == [*SPECIAL_TOKEN_TEXTS, *"abcd", "##a", "##b", "##c", "##d", "cc", "aa", "bb"]


def test_words_with_rare_characters_are_left_out() -> None:
    # Without "ø" the rest of "søk" is no word of the corpus.
    assert "sk" not in learn_tokens(Counter({"sk": 1, "søk": 1, "k": 5, "s": 5}), 100)
    assert [*SPECIAL_TOKEN_TEXTS, "k", "s", "##k"] == learn_tokens(Counter({"sk": 1, "søk": 1, "k": 5, "s": 5}), 100)


def test_alphabet_is_limited_to_the_frequent() -> None:
    counts = Counter({chr(0x4E00 + i): 2 + (i >= 1000) for i in range(1500)})
    tokens = learn_tokens(counts, 1100)
    # 500 characters occur three times; of the others, the first by code point fill the 1,000.
    assert set(tokens[5:]) == {chr(0x4E00 + i) for i in [*range(500), *range(1000, 1500)]}


def test_words_are_bert_words(small_texts: list[str]) -> None:
    texts = [*small_texts, "don't [MASK] a_b\x00c 中文 e\u0301 «x» 1+1=2 \u2028\u3000z", "w" * 101]
    normalizer, pre_tokenizer = normalizers.BertNormalizer(lowercase=False), pre_tokenizers.BertPreTokenizer()
    expected: Counter[str] = Counter()
    for text in texts[:-1]:
        expected.update(word for word, _ in pre_tokenizer.pre_tokenize_str(normalizer.normalize_str(text)))
    assert count_words(texts, lowercase=False) == expected


@pytest.mark.slow
@pytest.mark.parametrize("threads", ["1", "4"])
def test_every_process_learns_the_same(small_texts: list[str], threads: str) -> None:
    code = f"""{launching.LIGHT}
import hashlib, json, sys
from data_prep.tokenise.vocab import count_words, learn_tokens
tokens = learn_tokens(count_words(json.load(sys.stdin), lowercase=False), 1500)
print(hashlib.sha256(json.dumps(tokens).encode()).hexdigest())
"""
    texts = small_texts[:150]
    here = hashlib.sha256(json.dumps(learn_tokens(count_words(texts, lowercase=False), 1500)).encode()).hexdigest()
    environment = {**os.environ, "RAYON_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "true"}
    result = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(texts),
        env=environment,
        cwd=Path(__file__).resolve().parents[3],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert result.stdout.strip() == here


def test_too_small_a_vocabulary(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"--vocab-size 9 is too small for the 3 characters of the corpus; use at least 10"
    ):
        train_vocabulary(documents(["abc abc"]), tmp_path / "v", vocab_size=9)
    assert os.listdir(tmp_path) == []
    assert len(train_vocabulary(documents(["abc abc"]), tmp_path / "v", vocab_size=10)) == 10


@pytest.mark.parametrize("texts", [[], ["", " \n"]])
def test_corpus_without_words(tmp_path: Path, texts: list[str]) -> None:
    with pytest.raises(DataError, match="the corpus holds no words to train a vocabulary on; choose another --input"):
        train_vocabulary(documents(texts), tmp_path / "v", vocab_size=100)
    assert os.listdir(tmp_path) == []


def test_output_that_exists(tmp_path: Path) -> None:
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "mine").write_text("")
    with pytest.raises(DataError, match=r"/v: already exists; remove it or choose another output"):
        train_vocabulary(documents(["abc abc"]), tmp_path / "v", vocab_size=100)
    assert os.listdir(tmp_path / "v") == ["mine"]
