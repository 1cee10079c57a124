"""Near-duplicates: which ones are found, and that the result is the same whoever does the work."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest

from bnb_ds.data.tokenization import save_tokenizer
from bnb_ds.errors import ConfigError, DataError
from bnb_ds.shards.reader import TokenShards
from data_prep.jobs import near
from tests.prep_helpers import content, prep, start, write_corpus

pytestmark = pytest.mark.slow

pytest.importorskip("datasketch", reason="datasketch, which is optional, is not installed")


@pytest.fixture
def tokenizer(small_tokenizer, tmp_path: Path) -> Path:
    save_tokenizer(small_tokenizer, tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def with_near_copies(texts: list[str]) -> list[str]:
    """Long texts, and behind them one copy of every third with a word changed."""
    long = [" ".join(texts[i : i + 3]) for i in range(0, 120, 3)]
    copies = []
    for text in long[::3]:
        words = text.split()
        words[len(words) // 2] = "changed"
        copies.append(" ".join(words))
    return long + copies


def bands(*texts: str) -> np.ndarray:
    signatures = near.Signatures()
    return np.frombuffer(b"".join(map(signatures.bands, texts)), dtype="<u8").reshape(len(texts), near.BANDS)


def test_of_a_group_the_first_stays() -> None:
    words = [f"word{i}" for i in range(300)]
    text = " ".join(words)
    nearly = " ".join([*words[:150], "changed", *words[151:]])
    other = " ".join(reversed(words))
    found = near.later_ones(bands("", other, nearly, text, "", text.upper(), other + " more", "one", "One!", "two"))
    assert found.tolist() == [False, False, False, True, False, True, True, False, True, False]
    assert near.later_ones(np.zeros((0, near.BANDS), dtype="<u8")).tolist() == []


def test_groups_that_a_third_document_joins() -> None:
    table = np.arange(1, 1 + 4 * near.BANDS, dtype="<u8").reshape(4, near.BANDS)
    table[3, 0], table[3, 5] = table[0, 0], table[2, 5]
    assert near.later_ones(table).tolist() == [False, False, True, True]


def test_how_alike_documents_must_be() -> None:
    """About as the module's own text says, over pairs of random documents."""
    draw = random.Random(0)
    shares = {0.5: [], 0.9: []}
    for common, found in shares.items():
        for _ in range(60):
            # Few runs cross the borders of blocks of sixty words: the share of blocks is nearly that of runs.
            blocks = [" ".join(f"w{draw.randrange(10**9)}" for _ in range(60)) for _ in range(20)]
            kept = round(20 * 2 * common / (1 + common))
            new = [" ".join(f"w{draw.randrange(10**9)}" for _ in range(60)) for _ in range(20 - kept)]
            found.append(near.later_ones(bands(" ".join(blocks), " ".join(blocks[:kept] + new)))[1])
    assert np.mean(shares[0.5]) < 0.25
    assert np.mean(shares[0.9]) > 0.95


def test_any_number_of_workers_and_tasks(tmp_path: Path, tokenizer: Path, small_texts: list[str]) -> None:
    texts = with_near_copies(small_texts)
    corpus = write_corpus(tmp_path / "corpus", texts)
    command = ["text", "--input", corpus, "--tokenizer", tokenizer, "--part-bytes", "1", "--drop-near-duplicates"]
    for workers in (1, 3):
        prep(*command, "--output", tmp_path / f"{workers}", "--workers", workers)
    for _ in range(2):  # all parts must be indexed before any is built
        for task in (0, 1):
            prep(*command, "--output", tmp_path / "tasks", "--task-index", task, "--num-tasks", "2")
    prep("merge", tmp_path / "tasks")
    assert content(tmp_path / "1") == content(tmp_path / "3") == content(tmp_path / "tasks")
    manifest = TokenShards(tmp_path / "1").manifest
    # The documentation differs between releases of Python. In some, two of its paragraphs are near each other.
    skipped = manifest.totals.skipped
    assert skipped.keys() == {"near-duplicate"}
    assert 0 <= skipped["near-duplicate"] - (len(texts) - 40) <= 2
    settings = manifest.settings["drop_near_duplicates"]
    assert (settings["words"], settings["bands"], settings["rows"]) == (5, 14, 8)
    assert settings["library"].startswith("datasketch 2.")
    prep("text", "--input", corpus, "--tokenizer", tokenizer, "--output", tmp_path / "all", "--drop-duplicates")
    assert "drop_near_duplicates" not in TokenShards(tmp_path / "all").manifest.settings


def test_a_killed_run_goes_on(tmp_path: Path, tokenizer: Path, small_texts: list[str]) -> None:
    corpus = write_corpus(tmp_path / "corpus", with_near_copies(small_texts))
    command = ["text", "--input", corpus, "--tokenizer", tokenizer, "--part-bytes", "1", "--drop-near-duplicates"]
    prep(*command, "--output", tmp_path / "whole")
    process = start(*command, "--output", tmp_path / "killed")
    partial = tmp_path / "killed" / ".partial"
    while process.poll() is None and not (partial / "near-00002.npy").exists():
        pass
    process.kill()
    process.communicate()
    prep(*command, "--output", tmp_path / "killed")
    assert content(tmp_path / "killed") == content(tmp_path / "whole")


def test_an_unfinished_run_with_another_release(
    tmp_path: Path, tokenizer: Path, small_texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = write_corpus(tmp_path / "corpus", small_texts[:20], 2)
    (tmp_path / "corpus" / "1.jsonl").write_text(json.dumps({"id": 1.5, "text": "x"}))
    command = ["text", "--input", corpus, "--tokenizer", tokenizer, "--part-bytes", "1", "--drop-near-duplicates"]
    with pytest.raises(DataError, match="the id is of type float"):
        prep(*command, "--output", tmp_path / "s")
    monkeypatch.setattr(near, "version", lambda name: "2.99")
    with pytest.raises(DataError, match="holds an unfinished run with other settings"):
        prep(*command, "--output", tmp_path / "s")


def test_without_the_library(tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasketch", None)
    (tmp_path / "a.txt").write_text("x")
    command = ["text", "--input", tmp_path / "a.txt", "--tokenizer", tokenizer, "--output", tmp_path / "s"]
    message = r'--drop-near-duplicates: datasketch is not installed; pip install "\.\[filters\]"'
    with pytest.raises(ConfigError, match=message):
        prep(*command, "--drop-near-duplicates")
    assert not (tmp_path / "s").exists()
