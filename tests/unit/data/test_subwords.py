"""Tokenizers beside BERT's: which are read, what their pieces write, and where words begin."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer, BertTokenizerFast, RobertaTokenizer, XLMRobertaTokenizer

from bnb_ds.data.subwords.characters import healed, is_letter, split_at_open_bytes, word_of
from bnb_ds.data.subwords.rules import ByteLevelRules, MetaspaceRules, WordPieceRules, family_of, piece_rules
from bnb_ds.data.tokenization import (
    DocumentEncoder,
    load_tokenizer,
    plain_backend,
    save_tokenizer,
    special_ids,
    tokenizer_hash,
)
from bnb_ds.errors import DataError
from bnb_ds.tasks.codec import Codec, Frame
from tests.subwords import byte_level, texts, unigram

HOSTILE = [
    "a </s> b<mask><s>c <pad>",
    "don't   stop\n\n\tnow … ¡é́!",
    "北京 の本 ไทย 한국어 😀👨‍👩‍👧 \x00\x7f\xa0\u3000\ufeff",
    "",
    "   ",
    "▁Ġ## Ċ <0xE4>",
]


@pytest.fixture(params=["byte-level", "metaspace"])
def tokenizer(request):
    return byte_level() if request.param == "byte-level" else unigram()


def directory_of(tokenizer, path: Path, **config) -> Path:
    save_tokenizer(tokenizer, path)
    written = json.loads((path / "tokenizer_config.json").read_text())
    (path / "tokenizer_config.json").write_text(json.dumps({**written, **config}))
    return path


def test_special_ids_are_those_of_the_family(tokenizer, small_tokenizer):
    assert special_ids(tokenizer) == {"cls": 0, "pad": 1, "sep": 2, "unk": 3, "mask": 4}
    assert special_ids(small_tokenizer) == {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}


def test_two_texts_have_two_ends_between_them(tokenizer):
    assert Frame.of(tokenizer, pair=True) == Frame((0,), (2, 2), (2,))
    encoded = Codec(tokenizer, tokenizer).encode_sources([("a b", "c")], 20, cut="longest")
    assert encoded.tokens[0].tolist() == tokenizer("a b", "c")["input_ids"]


def test_a_saved_tokenizer_is_the_same(tokenizer, tmp_path):
    path = directory_of(tokenizer, tmp_path / "saved")
    assert tokenizer_hash(load_tokenizer(path / "tokenizer.json")) == tokenizer_hash(tokenizer)
    for loaded in (load_tokenizer(path), AutoTokenizer.from_pretrained(path)):
        assert tokenizer_hash(loaded) == tokenizer_hash(tokenizer)
        assert loaded(HOSTILE)["input_ids"] == tokenizer(HOSTILE)["input_ids"]


def test_letters_of_special_tokens_are_letters(tokenizer):
    """transformers' own call has to be asked without the letters that a Unigram model takes for special tokens."""
    rows = DocumentEncoder(tokenizer)(HOSTILE)
    special = list(special_ids(tokenizer).values())
    for text, row in zip(HOSTILE, rows, strict=True):
        assert not np.isin(row, [0, 1, 2, 4]).any(), text
        if "<" not in text:
            expected = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
            assert row.tolist() == expected
    assert tokenizer.decode(rows[0]) == HOSTILE[0]
    spelled = plain_backend(tokenizer, ["<mask>"]).encode("a</s> <mask>", add_special_tokens=False).ids
    assert np.isin(spelled, special).tolist() == [index == 4 for index in spelled]


def test_a_source_can_spell_what_it_may(tokenizer):
    codec = Codec(tokenizer, tokenizer)
    found = {
        spelled: set(codec.encode_sources([("a<mask> b</s>",)], 30, cut="last", special_tokens=spelled).tokens[0][1:-1])
        for spelled in ("none", "mask", "all")
    }
    assert {name: ids & {0, 1, 2, 4} for name, ids in found.items()} == {"none": set(), "mask": {4}, "all": {2, 4}}


def test_text_comes_back_by_the_tokenizers_own_decoder(tokenizer):
    codec = Codec(tokenizer, tokenizer)
    for text in ("It's a test , isn't it ?", "naïve “Brüder” über die Straße"):
        tokens, _ = codec.encode_targets([text], 80)
        assert codec.decode(tokens) == [text]
    assert codec.spacing is None
    assert not codec.lowercases


def test_merges_that_make_a_special_token_are_out_of_reach(tmp_path):
    vocabulary = {"<s>": 0, "<pad>": 1, "</s>": 2, "<": 3, "s": 4, ">": 5, "s>": 6, "▁": 7, "<unk>": 8}
    backend = Tokenizer(models.BPE(vocabulary, [("s", ">"), ("<", "s>")], unk_token="<unk>"))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    backend.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>"])
    backend.post_processor = processors.TemplateProcessing("<s> $A </s>", None, [("<s>", 0), ("</s>", 2)])
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer("<s>", add_special_tokens=False, split_special_tokens=True)["input_ids"] == [7, 0]
    assert plain_backend(tokenizer).encode("<s>").tokens == ["▁", "<", "s>"]
    assert special_ids(tokenizer) == {"cls": 0, "pad": 1, "sep": 2, "unk": 8}  # there is no mask


@pytest.mark.parametrize("kind", [RobertaTokenizer, XLMRobertaTokenizer])
def test_tokenizers_of_transformers_own_classes(kind, tmp_path):
    """As checkpoints hold them: the class in tokenizer_config.json is not asked."""
    state = json.loads((byte_level() if kind is RobertaTokenizer else unigram()).backend_tokenizer.to_str())["model"]
    if kind is RobertaTokenizer:
        made = kind(vocab=state["vocab"], merges=[tuple(pair) for pair in state["merges"]])
    else:
        made = kind(vocab=[tuple(pair) for pair in state["vocab"]])
    made.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert special_ids(loaded) == special_ids(made)
    lines = [line for line in HOSTILE if "<" not in line] + texts()[:9]
    assert loaded(lines)["input_ids"] == made(lines)["input_ids"]
    assert loaded("a<mask>", "b")["input_ids"] == made("a<mask>", "b")["input_ids"]
    assert Frame.of(loaded, pair=True).between == (2, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pad_token": "<gone>"}, "tokenizer_config.json: its pad_token '<gone>' is no token of tokenizer.json"),
        ({"mask_token": "</s>"}, "the five special tokens need five different ids, but have"),
    ],
)
def test_special_tokens_that_do_not_fit(tokenizer, tmp_path, change, message):
    directory_of(tokenizer, tmp_path, **change)
    with pytest.raises(DataError, match=re.escape(message)):
        load_tokenizer(tmp_path)


def test_a_tokenizer_without_a_needed_token(tmp_path):
    backend = Tokenizer(models.BPE({"a": 0, "<s>": 1, "</s>": 2}, []))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    backend.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(DataError, match="its tokenizer has no pad token; name one of its tokens as pad_token in token"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"pad_token": "a"}')
    with pytest.raises(DataError, match=r"its post_processor does not put <s> and </s> around a text; give it one"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(DataError, match=r"tokenizer_config.json: holds no JSON object; restore it"):
        load_tokenizer(tmp_path)


def test_slow_files_say_how_to_convert_them(tmp_path):
    (tmp_path / "sentencepiece.bpe.model").write_bytes(b"")
    with pytest.raises(DataError) as error:
        load_tokenizer(tmp_path / "sentencepiece.bpe.model")
    with pytest.raises(DataError, match=re.escape(str(error.value))):
        load_tokenizer(tmp_path)
    assert re.fullmatch(
        r".*: holds sentencepiece.bpe.model but no tokenizer.json; convert it once: pip install sentencepiece protobuf,"
        r" then python -c '.*AutoTokenizer.*save_pretrained.*', and give NEW",
        str(error.value),
    )


def test_the_way_out_of_slow_files_works(tmp_path, monkeypatch):
    """With the files of RoBERTa's first releases. What the message tells to run is run."""
    model = json.loads(byte_level().backend_tokenizer.to_str())["model"]
    old = tmp_path / "it's old"
    old.mkdir()
    (old / "vocab.json").write_text(json.dumps(model["vocab"]))
    (old / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in model["merges"]) + "\n")
    (old / "config.json").write_text('{"model_type": "roberta"}')
    with pytest.raises(DataError) as error:
        load_tokenizer(old)
    command = shlex.split(re.search(r"convert it once: (python -c .*), and give NEW", str(error.value))[1])
    monkeypatch.chdir(tmp_path)
    exec(command[2], {})
    assert special_ids(load_tokenizer(tmp_path / "NEW")) == special_ids(byte_level())
    assert load_tokenizer(tmp_path / "NEW")("a test")["input_ids"] == byte_level()("a test")["input_ids"]


def test_a_tokenizer_of_python_code(tmp_path):
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertJapaneseTokenizer"}')
    with pytest.raises(DataError, match="its tokenizer, BertJapaneseTokenizer, is Python code without"):
        load_tokenizer(tmp_path)


def test_families():
    def family(tokenizer):
        return family_of(json.loads(tokenizer.backend_tokenizer.to_str()))

    assert [family(byte_level()), family(unigram())] == ["byte-level", "metaspace"]
    assert family(BertTokenizerFast(vocab={"[UNK]": 0})) == "wordpiece"
    llama = Tokenizer(models.BPE({"a": 0}, [], byte_fallback=True))
    llama.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    assert family_of(json.loads(llama.to_str())) == "metaspace"
    assert family_of(json.loads(Tokenizer(models.BPE({"a</w>": 0}, [], end_of_word_suffix="</w>")).to_str())) is None
    assert family_of(json.loads(Tokenizer(models.Unigram([("a", 0.0)])).to_str())) is None


def plain_starts(pieces: list[str]) -> list[bool]:
    """By the whole text: a word begins where no run of letters goes on, and not behind a space alone."""
    found, before = [], ""
    for piece in pieces:
        joins = before[-1:] != "" and is_letter(before[-1]) and is_letter(piece[0])
        found.append((not joins and not (before.endswith(" ") and not piece.startswith(" "))) or piece[0] == " ")
        before += piece
    return found


PIECES = [" a", "b", " (", ")", "'s", ",", " ", " the", "ing", "...", "x,", "é", " -", "5"]


def test_word_starts_are_those_of_the_text():
    rules = MetaspaceRules([piece.replace(" ", "▁") for piece in PIECES], ())
    for ids in np.random.default_rng(0).integers(len(PIECES), size=(500, 20)):
        expected = plain_starts([PIECES[index] for index in ids])
        assert rules.starts(ids).tolist()[1:] == expected[1:]


def test_word_starts_of_real_text():
    starts = {}
    for tokenizer in (byte_level(), unigram()):
        rules = piece_rules(tokenizer)
        ids = plain_backend(tokenizer).encode("The value, don't (see) it-self!", add_special_tokens=False).ids
        begins = rules.starts(np.array(ids))
        begins[0] = True
        words = [""]
        for index, begin in zip(ids, begins, strict=True):
            words += [""] * bool(begin)
            words[-1] += rules.texts[index]
        starts[rules.family] = [word.strip() for word in words[1:]]
    letters = ["The", "value", ",", "don", "'", "t", "(", "see", ")", "it", "-", "self", "!"]
    assert starts["metaspace"] == letters
    assert "".join(starts["byte-level"]) == "".join(letters)
    assert [word for word in starts["byte-level"] if word.isalpha()] == [word for word in letters if word.isalpha()]


def test_scripts_without_spaces_have_words_of_one_piece():
    rules = MetaspaceRules(["▁", "北京", "大学", "の", "ไท", "ย", "한", "국"], ())
    assert rules.starts(np.array([0, 1, 2, 3, 4, 5])).tolist() == [True, False, True, True, True, True]
    assert rules.starts(np.array([0, 6, 7])).tolist() == [True, False, False]  # Korean has spaces


def test_a_character_of_several_pieces_is_in_one_word():
    pieces = [bytes_as_piece(part) for part in (b"\xe4\xbd", b"\xa0", b" a", b"\xc3", b"\xa9", b"b")]
    rules = ByteLevelRules(pieces, ())
    assert rules.starts(np.array([2, 0, 1, 3, 4, 5])).tolist() == [True, True, False, False, False, False]
    assert [rules.name(index) for index in range(4)] == ["<0xE4><0xBD>", "<0xA0>", "▁a", "<0xC3>"]


def bytes_as_piece(data: bytes) -> str:
    names = byte_names()
    return "".join(names[byte] for byte in data)


def byte_names() -> dict[int, str]:
    """From ``tokenizers`` itself: what it makes of each character of two bytes."""
    names = {}
    splitter = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for code in [*range(0x800), 0xFFFF, 0x4F60, 0x10FFFF, 0x40000, 0x80000, 0xC0000, *range(0x1000, 0x10000, 0x1000)]:
        if 0xD800 <= code < 0xE000:
            continue
        ((shown, _),) = splitter.pre_tokenize_str(chr(code))
        names |= dict(zip(chr(code).encode(), shown, strict=True))
    return names


def test_bytes_of_pieces_are_those_of_the_library():
    names = byte_names()
    rules = ByteLevelRules(list(names.values()), ())
    assert [text.encode("utf-8", "surrogateescape") for text in rules.texts] == [bytes([byte]) for byte in names]
    assert len(names) > 200


@given(st.binary(max_size=12), st.integers(0, 12))
@settings(max_examples=200)
def test_bytes_are_joined_as_they_come(data, cut):
    """However a text is cut, its whole is what Python makes of its bytes; only the end may still be open."""
    first, second = (part.decode("utf-8", "surrogateescape") for part in (data[:cut], data[cut:]))
    done, waiting = split_at_open_bytes(healed(first))
    more, open_bytes = split_at_open_bytes(healed(waiting + second))
    assert len(open_bytes) < 4
    assert len(done) + len(more) <= len(data)
    valid = data.decode("utf-8", "surrogateescape")
    assert re.sub("[\udc80-\udcff]", "\ufffd", valid) == (done + more + word_of(f"x{open_bytes}")[1:])


def grown(rules, ids: list[int]) -> list[str]:
    words, text = [], ""
    for index in ids:
        more, text = rules.grow(text, index)
        words += more
    return [*words, word_of(text)] if text else words


def test_words_for_a_language_model_are_those_of_berts_tokeniser():
    for tokenizer in (byte_level(), unigram()):
        rules, backend = piece_rules(tokenizer), plain_backend(tokenizer)
        basic = pre_tokenizers.BertPreTokenizer()
        for text in ("It's the first, isn't it?", "naïve “Brüder”: über\n\ndie Straße", texts()[0], " x  y "):
            ids = backend.encode(text, add_special_tokens=False).ids
            assert grown(rules, ids) == [word for word, _ in basic.pre_tokenize_str(text)]
        assert grown(rules, [0, *backend.encode("a b", add_special_tokens=False).ids, 2]) == ["a", "b"]


def test_words_of_word_pieces():
    rules = WordPieceRules(["[PAD]", "red", "##s", "!"], [0])
    assert grown(rules, [1, 2, 0, 3, 1]) == ["reds", "!", "red"]
    assert grown(rules, [2, 2]) == ["ss"]
    assert grown(rules, [0]) == []


def test_bytes_of_a_sentencepiece_vocabulary():
    rules = MetaspaceRules(["<s>", "▁a", "<0xC3>", "<0xA9>", "<0x41>"], [0], has_bytes=True)
    assert rules.writes_bytes
    assert grown(rules, [1, 2, 3, 4]) == ["aéA"]
    assert MetaspaceRules(["<0xC3>"], ()).texts == ["<0xC3>"]
