"""Filters: what they leave out, what they change, and that they do so whoever does the work."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from bnb_ds.data.tokenization import load_tokenizer, save_tokenizer
from bnb_ds.errors import ConfigError, DataError
from bnb_ds.shards.reader import TokenShards
from data_prep.sources.filters import (
    clean,
    digit_share,
    mask_pii,
    repeated_line_share,
    repeated_ngram_share,
    symbol_share,
)
from tests.prep_helpers import content, prep, write_corpus


@pytest.fixture
def tokenizer(small_tokenizer, tmp_path: Path) -> Path:
    save_tokenizer(small_tokenizer, tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


@pytest.mark.parametrize(
    ("share", "text", "expected"),
    [
        (symbol_share, "ab c. 1!", 2 / 6),
        (symbol_share, "na\u00efve \u5317\u4eac __", 2 / 9),
        (symbol_share, "", 0),
        (digit_share, "a1 2 \u0663", 3 / 4),
        (digit_share, " ", 0),
        (repeated_line_share, "a\n\n b\na \nb\nb", 3 / 5),
        (repeated_line_share, "", 0),
        (repeated_ngram_share, "A b c, d. a b c", 1 / 5),
        (repeated_ngram_share, "one two", 0),
    ],
)
def test_shares(share, text: str, expected: float) -> None:
    assert share(text) == pytest.approx(expected)


def test_clean() -> None:
    assert clean("a\x00 \t b\n \n\n\nc ") == "a b\n\nc"


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("Write to jane.doe+x@mail.uni-x.ac.uk.", "Write to [EMAIL]."),
        ("(a@b.org, c_d@e.com)", "([EMAIL], [EMAIL])"),
        ("Call +49 30 1234 5678 or (555) 123-4567 or 555-123-4567.", "Call [PHONE] or [PHONE] or [PHONE]."),
        ("+1 (212) 555 0199; 555.123.4567", "[PHONE]; [PHONE]"),
        ("p@0.05, x@y, @name, a@b.c1", "p@0.05, x@y, @name, a@b.c1"),
        ("NCT01234567, 10.1016/j.cell.2020-123-4567, 2019-10-12, 1 234 567 8901", None),
        ("95% CI 1.2-3.4, pH 7.4, +5 mV, ISBN 978-3-16-148410-0, 100-200-3000", None),
    ],
)
def test_masking(text: str, masked: str | None) -> None:
    assert mask_pii(text) == (text if masked is None else masked)


def test_masking_is_linear() -> None:
    """Runs that nearly match are read once: a second would be long before a quadratic search were through."""
    for text in ("a." * 200_000 + "@", "x@" + "a." * 200_000, "+1 " * 200_000, "1" * 400_000, "12 " * 200_000):
        assert mask_pii(text) == text


TEXTS = {
    "kept": "A function of the module returns the value of its argument.",
    "short": "A function.",
    "long": "the function of a module " * 40,
    "symbols": "a = {(b)} + [[c]] // --> ** && || !! ?? ;; :: <<>>",
    "digits": "the 1234567 of 8901234567890 and 12345",
    "repeated lines": "a line of text\nanother one here\n" + "a line of text\n" * 3,
    "repeated n-grams": "one two three four, one two three four, one two three four, one two three",
    "contaminated": "Here, one; TWO three four five six seven eight nine ten eleven twelve thirteen!",
}


def test_every_filter_counts_what_it_leaves_out(tmp_path: Path, tokenizer: Path) -> None:
    rows = [{"id": name, "text": text} for name, text in TEXTS.items()]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sentence = "one two three four five six seven eight nine ten eleven twelve thirteen"
    (tmp_path / "eval.txt").write_text(f"too short\n\nIt says: {sentence}.\n")
    command = ["text", "--input", tmp_path / "a.jsonl", "--tokenizer", tokenizer, "--holdout", "0"]
    options = ["--min-characters", "20", "--max-characters", "900", "--max-symbols", "0.4", "--max-digits", "0.3"]
    options += ["--max-repeated-lines", "0.3", "--max-repeated-ngrams", "0.3", "--decontaminate", tmp_path / "eval.txt"]
    prep(*command, "--output", tmp_path / "s", *options)
    shards = TokenShards(tmp_path / "s")
    assert shards.manifest.totals.skipped == {name: 1 for name in sorted(TEXTS) if name != "kept"}
    kept = load_tokenizer(tokenizer)(TEXTS["kept"], add_special_tokens=False)["input_ids"]
    assert [shards.document(i).tolist() for i in range(len(shards))] == [kept]
    settings = shards.manifest.settings
    assert (settings["max_symbols"], settings["max_repeated_ngrams"], settings["max_characters"]) == (0.4, 0.3, 900)
    assert [entry["name"] for entry in settings["decontaminate"]] == ["eval.txt"]
    assert "clean" not in settings
    prep(*command, "--output", tmp_path / "all")
    assert TokenShards(tmp_path / "all").manifest.totals.documents["train"] == len(TEXTS)


def test_filters_are_the_same_for_any_number_of_workers(tmp_path: Path, tokenizer: Path, small_texts) -> None:
    texts = [text + (" Ask a@b.org." if i % 3 == 0 else "") for i, text in enumerate(small_texts)]
    (tmp_path / "eval.txt").write_text(small_texts[7])
    options = ["--mask-pii", "--clean", "--max-symbols", "0.08", "--decontaminate", tmp_path / "eval.txt"]
    corpus = write_corpus(tmp_path / "corpus", texts)
    command = ["text", "--input", corpus, "--tokenizer", tokenizer, "--part-bytes", "1", *options]
    for workers in (1, 3):
        prep(*command, "--output", tmp_path / f"{workers}", "--workers", workers)
    assert content(tmp_path / "1") == content(tmp_path / "3")
    skipped = TokenShards(tmp_path / "1").manifest.totals.skipped
    assert skipped["contaminated"] == 1
    assert 0 < skipped["symbols"] < len(texts) / 2
    decoded = load_tokenizer(tokenizer).decode(TokenShards(tmp_path / "1").document(0))
    assert "EMAIL" in decoded.replace(" ", "") or "@" not in decoded


GERMAN = "Die Donau ist nach der Wolga der zweitl\u00e4ngste Fluss in Europa und durchquert zehn L\u00e4nder."
FRENCH = "La Seine est un fleuve fran\u00e7ais, long de sept cents kilom\u00e8tres, qui traverse la ville de Paris."


@pytest.mark.slow
def test_languages(tmp_path: Path, tokenizer: Path, small_texts) -> None:
    pytest.importorskip("py3langid", reason="py3langid, which is optional, is not installed")
    texts = [text for pair in zip(small_texts[:20], [GERMAN, FRENCH] * 10, strict=True) for text in pair]
    command = ["text", "--input", write_corpus(tmp_path / "corpus", texts), "--tokenizer", tokenizer]
    command += ["--part-bytes", "1", "--holdout", "0"]
    for workers in (1, 3):
        prep(*command, "--output", tmp_path / f"{workers}", "--language", "en", "--workers", workers)
    assert content(tmp_path / "1") == content(tmp_path / "3")
    manifest = TokenShards(tmp_path / "1").manifest
    assert manifest.totals.skipped == {"other language": 20}
    assert manifest.settings["language"] == ["en"]
    assert manifest.settings["language_library"].startswith("py3langid 0.")
    prep(*command, "--output", tmp_path / "two", "--language", "fr", "en", "fr")
    manifest = TokenShards(tmp_path / "two").manifest
    assert (manifest.totals.skipped, manifest.settings["language"]) == ({"other language": 10}, ["en", "fr"])
    with pytest.raises(ConfigError, match=r"--language english: not known; choose from ace, af, .*, zxx"):
        prep(*command, "--output", tmp_path / "none", "--language", "english")


def test_languages_without_the_library(tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "py3langid", None)
    (tmp_path / "a.txt").write_text("x")
    command = ["text", "--input", tmp_path / "a.txt", "--tokenizer", tokenizer, "--output", tmp_path / "s"]
    with pytest.raises(ConfigError, match=r'--language: py3langid is not installed; pip install "\.\[filters\]"'):
        prep(*command, "--language", "en")


def test_another_evaluation_set_is_other_work(tmp_path: Path, tokenizer: Path, small_texts) -> None:
    corpus, path = write_corpus(tmp_path / "corpus", small_texts[:20], 1), tmp_path / "eval.txt"
    path.write_text(small_texts[100])
    command = ["text", "--input", corpus, "--tokenizer", tokenizer, "--decontaminate", path, "--output", tmp_path / "s"]
    prep(*command)
    path.write_text(small_texts[101])
    with pytest.raises(DataError, match=r"/s: already holds finished shards, made with other settings; remove them"):
        prep(*command)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--min-characters", "-1"], "--min-characters must be at least 0, got -1"),
        (["--max-characters", "-1"], "--max-characters must be at least 0, got -1"),
        (
            ["--min-characters", "5", "--max-characters", "4"],
            "--max-characters must be at least --min-characters 5, got 4",
        ),
        (["--max-symbols", "1.5"], r"--max-symbols must be at least 0 and at most 1, got 1\.5"),
        (["--max-repeated-lines", "nan"], "--max-repeated-lines must be at least 0 and at most 1, got nan"),
    ],
)
def test_values_out_of_range(tmp_path: Path, tokenizer: Path, options: list[str], message: str) -> None:
    (tmp_path / "a.txt").write_text("x")
    command = ["text", "--input", tmp_path / "a.txt", "--tokenizer", tokenizer, "--output", tmp_path / "s"]
    with pytest.raises(ConfigError, match=message):
        prep(*command, *options)


def test_evaluation_set_of_short_texts(tmp_path: Path, tokenizer: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    command = ["text", "--input", tmp_path / "a.txt", "--tokenizer", tokenizer, "--output", tmp_path / "s"]
    with pytest.raises(DataError, match=r"a\.txt: no document has 13 words; give --decontaminate texts"):
        prep(*command, "--decontaminate", tmp_path / "a.txt")
