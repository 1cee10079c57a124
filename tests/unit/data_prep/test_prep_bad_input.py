"""Inputs that break other tools: huge, truncated, empty, with odd characters."""

from __future__ import annotations

import bz2
import gzip
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from bnb_ds.data.tokenization import save_tokenizer, tokenizer_from_vocabulary
from bnb_ds.errors import DataError
from bnb_ds.shards.reader import TokenShards
from data_prep.sources import opening
from data_prep.sources.opening import open_input, reading_errors
from data_prep.tools.verify import find_damage
from tests.prep_helpers import prep

ROWS = [f"row {i}: a function of the module" for i in range(3000)]


@pytest.fixture
def tokenizer(small_tokenizer, tmp_path: Path) -> Path:
    save_tokenizer(small_tokenizer, tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def zstd_compress(data: bytes) -> bytes:
    return pytest.importorskip("zstandard").ZstdCompressor().compress(data)


COMPRESS = {".gz": gzip.compress, ".bz2": bz2.compress, ".zst": zstd_compress}


def rows_file(path: Path, texts: list[str]) -> Path:
    data = "".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(texts)).encode()
    path.write_bytes(COMPRESS.get(path.suffix, bytes)(data))
    return path


def make(tmp_path: Path, tokenizer: Path, source: Path, *options: str) -> TokenShards:
    output = tmp_path / "s"
    prep("text", "--input", source, "--tokenizer", tokenizer, "--output", output, "--holdout", "0", *options)
    assert find_damage(output) == []
    return TokenShards(output)


@pytest.mark.parametrize("suffix", COMPRESS)
def test_compressed(tmp_path: Path, tokenizer: Path, suffix: str) -> None:
    assert len(make(tmp_path, tokenizer, rows_file(tmp_path / f"a.jsonl{suffix}", ROWS))) == len(ROWS)


@pytest.mark.parametrize("suffix", COMPRESS)
def test_compressed_in_several_streams(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(COMPRESS[suffix](b"one\n") + COMPRESS[suffix](b"two\n"))
    with open_input(path) as file:
        assert file.read() == b"one\ntwo\n"


@pytest.mark.parametrize("suffix", COMPRESS)
def test_truncated(tmp_path: Path, tokenizer: Path, suffix: str) -> None:
    path = rows_file(tmp_path / f"a.jsonl{suffix}", ROWS)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(
        DataError, match=f"a.jsonl{suffix}: truncated: the compressed data end too early; fetch the file"
    ):
        make(tmp_path, tokenizer, path)
    assert not (tmp_path / "s").exists()
    rows_file(tmp_path / "b.jsonl", ROWS[:5])
    command = ["--input", path, tmp_path / "b.jsonl", "--tokenizer", tokenizer, "--holdout", "0", "--skip-bad"]
    prep("text", *command, "--output", tmp_path / "s")
    shards = TokenShards(tmp_path / "s")
    assert shards.manifest.totals.skipped == {"bad": 1}
    assert 5 <= len(shards) < len(ROWS) + 5
    listed = (tmp_path / "s" / "bad_records.jsonl").read_text()
    assert "too early; fetch the file again (the rest of the file is skipped)" in listed


@pytest.mark.parametrize(
    ("suffix", "place", "message"),
    [
        (".gz", 0.002, r"damaged compressed data \(.*\); fetch the file again"),
        (".gz", 0.5, r"line \d+: not valid JSON \(.*\); mend or remove the line"),  # the checksum comes last
        (".bz2", 0.002, r"damaged or not what its suffix says \(.*\); fetch it again"),
        (".bz2", 0.5, r"damaged or not what its suffix says \(.*\); fetch it again"),
        (".zst", 0.002, r"damaged or not what its suffix says \(.*\); fetch it again"),
        (".zst", 0.5, r"damaged or not what its suffix says \(.*\); fetch it again"),
    ],
)
def test_damaged(tmp_path: Path, tokenizer: Path, suffix: str, place: float, message: str) -> None:
    path = rows_file(tmp_path / f"a.jsonl{suffix}", ROWS)
    data = bytearray(path.read_bytes())
    begin = int(place * len(data))
    data[begin : begin + 50] = bytes(50)
    path.write_bytes(data)
    with pytest.raises(DataError, match=f"a.jsonl{suffix}: {message}"):
        make(tmp_path, tokenizer, path)
    assert not (tmp_path / "s").exists()


@pytest.fixture
def isal(request, monkeypatch: pytest.MonkeyPatch):
    """The package that inflates in the place of zlib, with an error of its own, or a stand-in."""
    opening._inflate_errors.cache_clear()
    if request.param == "installed":
        yield pytest.importorskip("isal.igzip_lib", reason="isal, which is optional, is not installed")
    else:
        stand_in = SimpleNamespace(IsalError=type("IsalError", (Exception,), {}))
        monkeypatch.setitem(sys.modules, "isal", SimpleNamespace(igzip_lib=stand_in))
        monkeypatch.setitem(sys.modules, "isal.igzip_lib", stand_in)
        yield stand_in
    opening._inflate_errors.cache_clear()


@pytest.mark.parametrize("isal", ["installed", "stand-in"], indirect=True)
def test_the_error_of_isal_is_that_of_zlib(isal) -> None:
    message = r"^a\.gz: damaged compressed data \(bad block\); fetch the file again$"
    with pytest.raises(DataError, match=message), reading_errors("a.gz"):
        raise isal.IsalError("bad block")


def test_zst_without_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt.zst").write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with (
        pytest.raises(DataError, match=r"a.txt.zst: reading .zst needs the package zstandard; pip install zstandard"),
        reading_errors(tmp_path / "a.txt.zst"),
    ):
        open_input(tmp_path / "a.txt.zst")


def test_skipped_lines_are_counted_and_listed(tmp_path: Path, tokenizer: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "fine"}\n{"text": 3}\n{"text": "caf\xe9"}\nnot json\n{"text": "good"}\n')
    with pytest.raises(
        DataError, match=r"line 2: the text is of type int; .* \(or leave such records out with --skip-bad"
    ):
        make(tmp_path, tokenizer, path)
    shards = make(tmp_path, tokenizer, path, "--skip-bad")
    assert (len(shards), shards.manifest.totals.skipped) == (2, {"bad": 3})
    listed = [json.loads(line)["record"] for line in (tmp_path / "s" / "bad_records.jsonl").read_text().splitlines()]
    assert [line.split(": ")[1] for line in listed] == ["line 2", "line 3", "line 4"]


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["words", "tokenizers"])
def test_a_document_of_50_mb_and_a_word_of_a_million(tmp_path: Path, tokenizer: Path, small_tokenizer, engine) -> None:
    phrase = "a function of the module, "
    texts = ["x" * 1_000_000, phrase * (2_000_000 if engine == "words" else 60_000), phrase * 10 + "y" * 3_000_000]
    shards = make(tmp_path, tokenizer, rows_file(tmp_path / "a.jsonl", texts), "--engine", engine)
    assert shards.document(0).tolist() == [small_tokenizer.unk_token_id]
    ids = small_tokenizer(phrase, add_special_tokens=False)["input_ids"]
    assert np.array_equal(shards.document(1), np.tile(ids, len(texts[1]) // len(phrase)))
    assert shards.document(2).tolist() == [*np.tile(ids, 10), small_tokenizer.unk_token_id]


def test_control_characters(tmp_path: Path, tokenizer: Path, small_tokenizer) -> None:
    texts = ["a\x00func\x0btion\x0c of\x1c the\x85 mod\x7fule\u200b", "\x00\x01", "", " \n"]
    shards = make(tmp_path, tokenizer, rows_file(tmp_path / "a.jsonl", texts))
    assert shards.manifest.totals.skipped == {"empty": 3}
    assert shards.document(0).tolist() == small_tokenizer(texts[0], add_special_tokens=False)["input_ids"]


@pytest.mark.slow
def test_vocabulary_beyond_uint16(tmp_path: Path) -> None:
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(70_000))]
    large = tokenizer_from_vocabulary(tokens, lowercase=False, name="large")
    save_tokenizer(large, tmp_path / "large")
    shards = make(tmp_path, tmp_path / "large", rows_file(tmp_path / "a.jsonl", ["w0 w69999 w65531"]))
    assert shards.manifest.dtype == "uint32"
    assert shards.document(0).tolist() == [5, 70_004, 65_536]


def test_duplicates_are_dropped_when_asked(tmp_path: Path, tokenizer: Path) -> None:
    path = rows_file(tmp_path / "a.jsonl", ["one function", "two", "one function", "one function "])
    shards = make(tmp_path, tokenizer, path, "--drop-duplicates")
    assert (len(shards), shards.manifest.totals.skipped) == (3, {"duplicate": 1})


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".parquet"])
def test_a_pipe_is_refused_not_waited_for(tmp_path: Path, tokenizer: Path, suffix: str) -> None:
    os.mkfifo(tmp_path / f"a{suffix}")
    with pytest.raises(DataError, match=f"a{suffix}: is no regular file, and is read several times; save its content"):
        make(tmp_path, tokenizer, tmp_path / f"a{suffix}")
    assert not (tmp_path / "s").exists()
