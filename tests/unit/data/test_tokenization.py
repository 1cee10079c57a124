"""Loading and checking tokenizers, their hashes, and encoding documents."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, BertTokenizerFast

from bnb_ds.data.tokenization import (
    SPECIAL_TOKEN_TEXTS,
    DocumentEncoder,
    describe_tokenizer,
    load_tokenizer,
    save_tokenizer,
    special_ids,
    tokenizer_from_vocabulary,
    tokenizer_hash,
    vocabulary_size,
)
from bnb_ds.errors import DataError

CASED = [*SPECIAL_TOKEN_TEXTS, "The", "the", "cat", "##s", "[", "]", "MA", "##SK", ".", "Ärger", "arger"]
UNCASED = [*SPECIAL_TOKEN_TEXTS, "the", "cat", "##s", "arger"]


def write_vocabulary(path: Path, tokens: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(token + "\n" for token in tokens), encoding="utf-8")
    return path


def ids(tokenizer: BertTokenizerFast, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.fixture
def cased(tmp_path: Path) -> Path:
    save_tokenizer(tokenizer_from_vocabulary(CASED, lowercase=False), tmp_path / "cased")
    return tmp_path / "cased"


def expect(path: Path, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        load_tokenizer(path)
    assert "\n" not in str(caught.value)


# Loading


def test_saved_directory_loads_equal(cased: Path) -> None:
    original = tokenizer_from_vocabulary(CASED, lowercase=False)
    for loaded in (load_tokenizer(cased), AutoTokenizer.from_pretrained(cased)):
        assert tokenizer_hash(loaded) == tokenizer_hash(original)
        assert ids(loaded, "The cats. the Ärger") == [5, 7, 8, 13, 6, 14]
    assert special_ids(original) == {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
    assert original("the", "cat")["input_ids"] == [2, 6, 3, 7, 3]
    assert original.model_max_length == 512


@pytest.mark.parametrize(("tokens", "expected"), [(CASED, [5, 7, 14]), (UNCASED, [5, 6, 8])])
@pytest.mark.parametrize("name", ["bert.txt", "directory/vocab.txt"])
def test_bare_vocabulary_tells_its_case(tmp_path: Path, tokens: list[str], expected: list[int], name: str) -> None:
    path = write_vocabulary(tmp_path / name, tokens)
    loaded = load_tokenizer(path if name == "bert.txt" else path.parent)
    assert ids(loaded, "The cat Ärger") == expected
    assert describe_tokenizer(loaded).name == ("bert" if name == "bert.txt" else "directory")


def test_vocabulary_with_its_config_keeps_the_config(tmp_path: Path) -> None:
    write_vocabulary(tmp_path / "vocab.txt", UNCASED)
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert ids(load_tokenizer(tmp_path), "The the") == [1, 5]


def test_tokenizer_json_is_taken_at_its_word(cased: Path) -> None:
    # Without the config, transformers itself would lowercase here.
    (cased / "tokenizer_config.json").unlink()
    assert ids(load_tokenizer(cased), "The the") == [5, 6]


def test_vocabulary_with_unusual_line_characters(tmp_path: Path) -> None:
    # Characters that str.splitlines() splits at are tokens of the multilingual vocabulary.
    tokens = [*SPECIAL_TOKEN_TEXTS, "a", "\x85", "\u2028", "b"]
    loaded = load_tokenizer(write_vocabulary(tmp_path / "v.txt", tokens))
    assert ids(loaded, "b") == [8]
    assert len(loaded) == 9


def test_missing_tokenizer(tmp_path: Path) -> None:
    expect(tmp_path / "none", r"/none: no such tokenizer; give a directory with the tokenizer.json of a WordPiece,")


def test_directory_without_tokenizer(tmp_path: Path) -> None:
    expect(tmp_path, "holds neither tokenizer.json nor vocab.txt; give a directory with the tokenizer.json")


def test_text_file_that_is_no_vocabulary(tmp_path: Path) -> None:
    expect(write_vocabulary(tmp_path / "v.txt", ["hello", "[UNK]"]), r"v.txt: not a BERT vocabulary, \[PAD\], \[CLS\]")


def test_vocabulary_with_a_repeated_token(tmp_path: Path) -> None:
    expect(write_vocabulary(tmp_path / "v.txt", [*UNCASED, "the"]), "v.txt: holds the token 'the' twice; give")


def test_binary_file_as_vocabulary(tmp_path: Path) -> None:
    (tmp_path / "v.txt").write_bytes(b"[PAD]\n\xff\n")
    expect(tmp_path / "v.txt", r"v.txt: not a readable vocabulary file \(.*\); give")


def test_tokenizer_of_another_kind(tmp_path: Path) -> None:
    backend = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.save(str(tmp_path / "tokenizer.json"))
    expect(tmp_path, "tokenizer.json: a WordLevel tokenizer whose pieces do not say, as ##, Ġ or ▁ do, where words beg")


def test_broken_tokenizer_json(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    expect(tmp_path, r"tokenizer.json: not readable \(.*\); give")


def test_broken_config(tmp_path: Path) -> None:
    write_vocabulary(tmp_path / "vocab.txt", UNCASED)
    (tmp_path / "tokenizer_config.json").write_text("{")
    expect(tmp_path, r"tokenizer_config.json: not valid JSON \(.*\); restore it")


def test_tokenizer_that_transformers_refuses(cased: Path) -> None:
    (cased / "tokenizer_config.json").write_text("{")
    expect(cased, r"transformers cannot load this tokenizer \(.*\); give")


@pytest.mark.parametrize(("tokens", "expected"), [(CASED, [5, 7, 14]), (UNCASED, [5, 6, 8])])
def test_config_that_says_nothing_of_case(tmp_path: Path, tokens: list[str], expected: list[int]) -> None:
    # Some published models are like this. What transformers then does depends on its version.
    write_vocabulary(tmp_path / "vocab.txt", tokens)
    (tmp_path / "tokenizer_config.json").write_text('{"model_max_length": 512}')
    assert ids(load_tokenizer(tmp_path), "The cat Ärger") == expected


def test_cased_vocabulary_that_would_be_lowercased(tmp_path: Path) -> None:
    write_vocabulary(tmp_path / "vocab.txt", CASED)
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    expect(tmp_path, r'lowercases text although its vocabulary is cased; set "do_lower_case": false')


def test_special_tokens_that_coincide(cased: Path) -> None:
    config = json.loads((cased / "tokenizer_config.json").read_text())
    (cased / "tokenizer_config.json").write_text(json.dumps({**config, "pad_token": "[UNK]"}))
    expect(cased, "the five special tokens need five different ids, but have")


def test_config_that_adds_tokens(cased: Path) -> None:
    config = json.loads((cased / "tokenizer_config.json").read_text())
    (cased / "tokenizer_config.json").write_text(json.dumps({**config, "mask_token": "<mask>"}))
    expect(
        cased,
        "transformers reads another added_tokens than tokenizer.json holds; remove the contradicting settings from tok",
    )


# Hashes


def test_hash_ignores_padding_truncation_name_and_place(cased: Path, tmp_path: Path) -> None:
    expected = tokenizer_hash(load_tokenizer(cased))
    moved = shutil.copytree(cased, tmp_path / "moved")
    tokenizer = load_tokenizer(moved)
    tokenizer(["the cat", "the"], padding=True, truncation=True, max_length=4)
    assert tokenizer.backend_tokenizer.truncation is not None
    assert tokenizer_hash(tokenizer) == expected
    save_tokenizer(tokenizer, tmp_path / "saved")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "saved" / name).read_bytes() == (cased / name).read_bytes()


def test_hash_sees_what_changes_ids(cased: Path) -> None:
    base = load_tokenizer(cased)
    others = [
        tokenizer_from_vocabulary(CASED, lowercase=True),
        tokenizer_from_vocabulary([*CASED, "dog"], lowercase=False),
        tokenizer_from_vocabulary([*CASED[:5], *CASED[:4:-1]], lowercase=False),
        tokenizer_from_vocabulary([CASED[1], CASED[0], *CASED[2:]], lowercase=False),
    ]
    added = load_tokenizer(cased)
    added.add_tokens(["cats"])
    assert vocabulary_size(added) == len(CASED) + 1
    hashes = [tokenizer_hash(tokenizer) for tokenizer in (base, added, *others)]
    assert len(set(hashes)) == len(hashes)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert-base-cased", "bert-base-uncased", "bert-base-multilingual-cased"])
def test_published_vocabularies(shared_data: Path, name: str) -> None:
    directory = load_tokenizer(shared_data / "tokenizers" / name)
    file = load_tokenizer(shared_data / "vocab" / f"{name}.txt")
    assert tokenizer_hash(directory) == tokenizer_hash(file)
    assert describe_tokenizer(directory).name == describe_tokenizer(file).name == name
    assert vocabulary_size(directory) == len(directory)


def test_description(cased: Path, tmp_path: Path) -> None:
    info = describe_tokenizer(load_tokenizer(cased))
    assert (info.name, info.vocab_size) == ("cased", len(CASED))
    assert info.hash == tokenizer_hash(load_tokenizer(cased))
    info.save(tmp_path / "copy")
    assert tokenizer_hash(load_tokenizer(tmp_path / "copy")) == info.hash
    assert describe_tokenizer(tokenizer_from_vocabulary(CASED, lowercase=False)).name == "unnamed"


# Encoding


def test_encoder_equals_the_tokenizer(small_tokenizer: BertTokenizerFast, small_texts: list[str]) -> None:
    encoded = DocumentEncoder(small_tokenizer)(small_texts)
    expected = small_tokenizer(small_texts, add_special_tokens=False)["input_ids"]
    assert [ids.tolist() for ids in encoded] == expected
    assert encoded[0].dtype == np.uint32


def test_special_tokens_in_a_text_are_text(cased: Path) -> None:
    tokenizer = load_tokenizer(cased)
    assert ids(tokenizer, "the [MASK].") == [6, 4, 13]
    assert DocumentEncoder(tokenizer)(["the [MASK]."])[0].tolist() == [6, 9, 11, 12, 10, 13]


@pytest.mark.parametrize("text", ["", " \n", "\x00\x01"])
def test_text_without_tokens(cased: Path, text: str) -> None:
    (encoded,) = DocumentEncoder(load_tokenizer(cased))([text])
    assert (encoded.shape, encoded.dtype) == ((0,), np.uint32)


def test_encoder_and_tokenizer_leave_each_other_alone(cased: Path) -> None:
    tokenizer = load_tokenizer(cased)
    tokenizer(["the cat", "the"], padding=True, truncation=True, max_length=3)
    encode = DocumentEncoder(tokenizer)
    assert [len(encoded) for encoded in encode(["the cat " * 300, "the"])] == [600, 1]
    assert tokenizer.backend_tokenizer.truncation["max_length"] == 3
    assert ids(tokenizer, "[MASK]") == [4]
