"""``bnb-ds prep`` through its argument parser."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bnb_ds.data.tokenization import load_tokenizer, save_tokenizer, tokenizer_hash
from bnb_ds.errors import DataError
from bnb_ds.shards.reader import TokenShards
from data_prep.commands.prep import _COMMANDS
from data_prep.sources import docs
from tests.prep_helpers import parse, prep


@pytest.fixture
def tokenizer(small_tokenizer, tmp_path: Path) -> Path:
    save_tokenizer(small_tokenizer, tmp_path / "wordpiece-600")
    return tmp_path / "wordpiece-600"


@pytest.fixture
def corpus(tmp_path: Path, small_texts: list[str]) -> Path:
    """The same 30 texts as .txt, .jsonl and .parquet, 10 in each."""
    directory = tmp_path / "corpus"
    directory.mkdir()
    (directory / "a.txt").write_text("\n\n".join(small_texts[:10]))
    rows = [{"id": i, "text": text} for i, text in enumerate(small_texts[10:20])]
    (directory / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.table({"id": list(range(10)), "text": small_texts[20:30]}), directory / "c.parquet")
    return directory


def test_text(tmp_path: Path, corpus: Path, tokenizer: Path, small_texts, capsys: pytest.CaptureFixture) -> None:
    output = tmp_path / "shards"
    prep("text", "--input", corpus, "--tokenizer", tokenizer, "--output", output, "--holdout", "0")
    shards = TokenShards(output, verify_hashes=True)
    expected = load_tokenizer(tokenizer)(small_texts[:30], add_special_tokens=False)["input_ids"]
    assert [shards.document(i).tolist() for i in range(len(shards))] == expected
    assert capsys.readouterr().out == (
        f"prep text: 3 files -> train 30 documents {shards.num_tokens:,} tokens, heldout 0 documents 0 tokens (uint16) "
        f"in {output}\n"
    )
    manifest = shards.manifest
    assert [source.name for source in manifest.sources] == ["a.txt", "b.jsonl", "c.parquet"]
    assert [source.bytes for source in manifest.sources] == [p.stat().st_size for p in sorted(corpus.iterdir())]
    assert (manifest.tokenizer.name, manifest.tokenizer.hash) == (
        "wordpiece-600",
        tokenizer_hash(load_tokenizer(tokenizer)),
    )
    assert manifest.settings == {
        "command": "prep text",
        "tokens_per_shard": 1 << 26,
        "text_column": "text",
        "id_column": None,
        "ignore_ids": False,
        "txt_documents": "blank-line",
        "drop_duplicates": False,
        "skip_bad": False,
        "part_bytes": None,
    }
    assert [engine.name for engine in manifest.engines] in (["nanotoken"], ["words"])
    assert set(manifest.engines[0].packages.values()) & {version("tokenizers"), "0.1.0"}


def test_text_options(tmp_path: Path, tokenizer: Path, capsys: pytest.CaptureFixture) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"key": i, "body": f"a function of {i}"}) + "\n" for i in range(300)))
    lines = tmp_path / "lines.txt"
    lines.write_text("one\n\n\x00\ntwo\n")
    output = tmp_path / "shards"
    options = ["--text-column", "body", "--id-column", "key", "--txt-documents", "line"]
    sizes = ["--holdout", "0.2", "--tokens-per-shard", "500"]
    prep("text", "--input", rows, lines, "--tokenizer", tokenizer, "--output", output, *options, *sizes)
    manifest = TokenShards(output).manifest
    assert manifest.totals.documents["train"] + manifest.totals.documents["heldout"] == 302
    assert 30 < manifest.totals.documents["heldout"] < 95
    assert manifest.holdout.fraction == 0.2
    assert manifest.settings["txt_documents"] == "line"
    assert manifest.settings["id_column"] == "key"
    assert all(shard.num_tokens <= 500 for shard in manifest.shards)
    assert ", 1 empty skipped (uint16) in " in capsys.readouterr().out


def test_output_is_reproducible_and_tells_nothing_of_the_machine(tmp_path: Path, corpus: Path, tokenizer: Path) -> None:
    for name in ("first", "second"):
        prep("text", "--input", corpus, "--tokenizer", tokenizer, "--output", tmp_path / name)
    files = sorted(path.relative_to(tmp_path / "first") for path in (tmp_path / "first").rglob("*") if path.is_file())
    assert len(files) >= 5
    for name in files:
        content = (tmp_path / "first" / name).read_bytes()
        assert content == (tmp_path / "second" / name).read_bytes(), name
        assert str(tmp_path).encode() not in content, name


def test_docs_then_vocab_then_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(docs, "PACKAGES", {"tqdm": "tqdm"})
    corpus, vocabulary, output = tmp_path / "docs.jsonl", tmp_path / "vocab", tmp_path / "shards"
    prep("docs", "--output", corpus)
    prep("vocab", "--input", corpus, "--output", vocabulary, "--vocab-size", "1000", "--uncased")
    prep("text", "--input", corpus, "--tokenizer", vocabulary, "--output", output)
    documents, words, text = capsys.readouterr().out.splitlines()
    num_documents = len(corpus.read_text("utf-8").splitlines())
    assert documents.startswith(f"prep docs: {num_documents:,} documents, ")
    assert documents.endswith(f" in {corpus}")
    assert words == f"prep vocab: 1,000 uncased WordPiece tokens from 1 files in {vocabulary}"
    assert text.endswith(f" in {output}")
    shards = TokenShards(output)
    assert len(shards) + len(TokenShards(output, "heldout")) == num_documents
    decoded = load_tokenizer(shards.tokenizer_dir).decode(shards.document(0))
    assert decoded == decoded.lower()
    assert shards.vocab_size == 1000


def test_vocab_is_cased_by_default(tmp_path: Path, corpus: Path, capsys: pytest.CaptureFixture) -> None:
    prep("vocab", "--input", corpus, "--output", tmp_path / "v", "--vocab-size", "300", "--cased")
    prep("vocab", "--input", corpus, "--output", tmp_path / "w", "--vocab-size", "300")
    assert tokenizer_hash(load_tokenizer(tmp_path / "v")) == tokenizer_hash(load_tokenizer(tmp_path / "w"))
    assert "prep vocab: 300 cased WordPiece tokens from 3 files" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["text", "vocab"])
def test_missing_corpus(tmp_path: Path, tokenizer: Path, command: str) -> None:
    extra = ["--tokenizer", tokenizer] if command == "text" else []
    with pytest.raises(DataError, match=r"nowhere: no such file or directory; check --input"):
        prep(command, "--input", tmp_path / "nowhere", "--output", tmp_path / "out", *extra)
    assert not (tmp_path / "out").exists()


def test_empty_corpus(tmp_path: Path, tokenizer: Path) -> None:
    (tmp_path / "a.txt").write_text("\n")
    with pytest.raises(DataError, match=r"a.txt: no text \(0 empty documents\); choose another --input"):
        prep("text", "--input", tmp_path / "a.txt", "--tokenizer", tokenizer, "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_everything_held_out(tmp_path: Path, tokenizer: Path) -> None:
    (tmp_path / "a.txt").write_text("some text\n")
    command = ["text", "--input", tmp_path / "a.txt", "--tokenizer", tokenizer, "--output", tmp_path / "out"]
    message = r"a\.txt: every document was held out; give more documents or a lower --holdout"
    with pytest.raises(DataError, match=message):
        prep(*command, "--holdout", "0.9999999")
    assert not (tmp_path / "out").exists()


def test_missing_tokenizer(tmp_path: Path, corpus: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: no such tokenizer; give a directory with the tokenizer.json"):
        prep("text", "--input", corpus, "--tokenizer", tmp_path / "nowhere", "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("arguments", [[], ["text"], ["vocab", "--input", "x"], ["text", "--txt-documents", "page"]])
def test_usage_errors(arguments: list[str], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as caught:
        prep(*arguments)
    assert caught.value.code == 2
    assert "usage: bnb-ds prep" in capsys.readouterr().err


@pytest.mark.parametrize("command", _COMMANDS, ids=lambda command: command.name)
def test_help_describes_a_command_and_shows_an_example_that_parses(command, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as caught:
        prep(command.name, "--help")
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert command.description in " ".join(shown.split())
    assert f"example:\n  {command.example}\n" in shown
    program, subject, *arguments = command.example.split()
    assert (program, subject) == ("bnb-ds", "prep")
    assert callable(parse(*arguments).run)
