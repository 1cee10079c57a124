"""``--bad-word`` with a model and its tokenizer: the words are looked for in the texts that are written."""

from __future__ import annotations

import logging
import re

import pytest

from bnb_ds.cli import main
from bnb_ds.data.tokenization import tokenizer_from_vocabulary
from bnb_ds.errors import ConfigError
from bnb_ds.generate.pipeline import BnbPipeline
from bnb_ds.tasks.codec import Codec
from bnb_ds.tasks.spacing import Spacing
from tests.exports import save_model, save_task_model


@pytest.fixture(scope="module")
def exported(small_tokenizer, tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("exported") / "model", small_tokenizer)


@pytest.fixture(scope="module")
def texts(small_texts) -> list[str]:
    return [text[: 20 + 9 * (i % 17)] for i, text in enumerate(small_texts[:40])]


@pytest.fixture(scope="module")
def words(exported, texts, small_tokenizer) -> list[str]:
    """Words that the model writes in other pieces than the tokenizer would."""
    found = set()
    for output in BnbPipeline.from_pretrained(exported).generate(texts):
        pieces = small_tokenizer.convert_ids_to_tokens(output.tokens)
        for word in " ".join(pieces).replace(" ##", "\0").split():
            text = word.replace("\0", "")
            if text.isalpha() and small_tokenizer.tokenize(text) != word.replace("\0", " ##").split():
                found.add(text)
    assert len(found) > 3
    return sorted(found)


def holds(outputs: list[str], words: list[str], inside: bool) -> bool:
    edge = "" if inside else r"\b"
    return re.search(f"{edge}({'|'.join(map(re.escape, words))}){edge}", "\n".join(outputs), re.IGNORECASE) is not None


@pytest.mark.parametrize("options", [{}, {"beam_size": 4, "beam_classes": 4}], ids=str)
@pytest.mark.parametrize("inside", [False, True])
def test_words_of_outputs_are_written_no_more(exported, texts, words, options, inside):
    free = BnbPipeline.from_pretrained(exported)(texts)
    assert holds(free, words, inside)
    pipeline = BnbPipeline.from_pretrained(
        exported,
        bad_words=[word.upper() for word in words],
        bad_words_inside=inside,
        bad_words_any_case=True,
        **options,
    )
    kept = pipeline(texts)
    assert not holds(kept, words, inside)
    if not options:
        for before, after in zip(free, kept, strict=True):
            assert before == after or holds([before], words, inside)


def test_the_command_takes_words_and_says_which_cannot_be_written(exported, texts, words, tmp_path, caplog):
    (tmp_path / "in.txt").write_text("".join(f"{' '.join(text.split())}\n" for text in texts))
    flags = [flag for word in (*words, "\u1234x") for flag in ("--bad-word", word)]
    files = ["--input", str(tmp_path / "in.txt"), "--output", str(tmp_path / "out.txt")]
    with caplog.at_level(logging.WARNING):
        assert main(["generate", str(exported), *files, *flags, "--bad-words-inside"]) == 0
    assert not holds((tmp_path / "out.txt").read_text().splitlines(), words, inside=True)
    said = [record.getMessage() for record in caplog.records if "bad word" in record.getMessage()]
    assert said == ["bad word '\u1234x': the vocabulary cannot write it, so it is never written anyway"]


def test_a_word_that_cannot_be_written_changes_nothing(exported, texts):
    """Not even [UNK], which stands for it in sources."""
    pipeline = BnbPipeline.from_pretrained(exported, bad_words=["\u1234\u1235"])
    assert pipeline.options.bad_words is None
    assert pipeline(texts) == BnbPipeline.from_pretrained(exported)(texts)


def test_unknown_words_of_a_model_that_restores_them(small_tokenizer, tmp_path):
    """[UNK] is written as what it stood for in training; no output may hold that either."""
    text = "the value \u1234 is"
    codec = Codec(small_tokenizer, small_tokenizer, Spacing.learn(small_tokenizer, [text] * 3))
    ids = small_tokenizer(text, add_special_tokens=False)["input_ids"]
    assert codec.decode([ids]) == [text]
    model = save_task_model(tmp_path / "model", "xsum", codec)
    bad_words = BnbPipeline.from_pretrained(model, bad_words=["\u1234"]).options.bad_words
    assert bad_words is not None
    assert not bad_words.allow(ids)
    assert bad_words.allow([token for token in ids if token != small_tokenizer.unk_token_id])


@pytest.mark.parametrize("exact", [False, True])
def test_letters_that_are_written_without_spaces(exact, tmp_path):
    """Where the spaces of targets are restored, a letter that is a word can be joined to what stands beside it."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "caf", "\u00e9", "s", "a", ",", ".", "##s"]
    tokenizer = tokenizer_from_vocabulary(pieces, lowercase=False)
    codec = Codec(tokenizer, tokenizer, Spacing.learn(tokenizer, ["a, s.", "s."] * 5, exact=exact))
    ids = [8, 6] if exact else [5, 6]
    (word,) = codec.decode([ids])
    assert word in ("caf\u00e9", "a\u00e9")
    model = save_task_model(tmp_path / "model", "xsum", codec)
    for inside in (False, True):
        bad_words = BnbPipeline.from_pretrained(model, bad_words=[word], bad_words_inside=inside).options.bad_words
        assert bad_words is not None
        assert not bad_words.allow(ids)
        assert not bad_words.allow([7, 9, *ids, 9])
        assert bad_words.allow(ids[::-1])
        assert bad_words.allow([ids[0], 7, ids[1]])


def test_words_are_named_as_they_were_given(exported, caplog):
    with caplog.at_level(logging.WARNING):
        BnbPipeline.from_pretrained(exported, bad_words=["\u4e2d\u6587"])
    assert "bad word '\u4e2d\u6587': the vocabulary cannot write it" in caplog.text


def test_half_a_character_is_refused(exported):
    """What a shell makes of a word in another encoding."""
    with pytest.raises(ConfigError, match=r"bad word 'caf\\udce9': holds half of a character: give it in UTF-8"):
        BnbPipeline.from_pretrained(exported, bad_words=["caf\udce9"])


def test_an_empty_word_is_refused(exported):
    with pytest.raises(ConfigError, match="bad word '  ': give at least one letter or mark"):
        BnbPipeline.from_pretrained(exported, bad_words=["  "])
