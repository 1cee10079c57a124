"""``bnb-ds bench loader`` measures the real loader, and shows the figures."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest

from bnb_ds.bench import data_loader as bench
from bnb_ds.bench.synthetic import VOCABULARY, tokenizer, wikipedia_lengths, write_shards
from bnb_ds.cli import main
from bnb_ds.shards.reader import TokenShards


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(bench, "_DOCUMENTS", 40)
    monkeypatch.setattr(bench, "MICRO_BATCH", 3)
    monkeypatch.setattr(bench, "ACCUMULATION", 2)
    monkeypatch.setattr(bench, "STEP_TOKENS", 512 * 6)


def test_made_up_shards_are_shards(tmp_path, monkeypatch):
    monkeypatch.setattr("bnb_ds.bench.synthetic._DOCUMENTS_PER_SHARD", 30)
    lengths = wikipedia_lengths(70)
    full = TokenShards(write_shards(tmp_path / "full", lengths, with_tokens=True))
    hole = TokenShards(write_shards(tmp_path / "hole", lengths, with_tokens=False))
    assert full.lengths.tolist() == hole.lengths.tolist() == lengths.tolist()
    assert full.vocab_size == VOCABULARY == len(tokenizer())
    tokens = np.concatenate([full.document(i) for i in range(70)])
    assert tokens.min() >= 5
    assert tokens.max() < VOCABULARY
    assert not hole.document(69).any()
    files = [os.stat(path) for path in (tmp_path / "hole").glob("*.tokens.npy")]
    assert sum(file.st_blocks * 512 for file in files) < sum(file.st_size for file in files)
    assert 400 < wikipedia_lengths(50_000).mean() < 600


def test_every_way_gives_sequences(few, tmp_path):
    rates = bench.measure_throughput(tmp_path, repeats=1)
    assert rates.keys() == {*bench.OURS, *bench.COLLATORS}
    assert min(rates.values()) > 0


def test_the_collator_masks_the_same_rows(few, tmp_path):
    shards = TokenShards(write_shards(tmp_path / "shards", np.full(8, 512), with_tokens=True))
    rows, _ = bench.make_samples(shards, "truncate", {"ae": 1}).original(np.arange(3))
    rows = rows.reshape(3, 512)
    for tensors, with_mask in bench.COLLATORS.values():
        found = bench._collate(rows, tensors, with_mask)()
        labels = np.asarray(found["labels"])
        assert (labels[labels >= 0] == rows[labels >= 0]).all()
        assert 0.1 < (labels >= 0).mean() < 0.2
        assert ((np.asarray(found["input_ids"]) == rows) | (labels >= 0)).all()


@pytest.mark.slow
def test_the_index_is_measured_in_a_process_of_its_own(few, tmp_path, monkeypatch):
    """Only ``pack`` gets its own process in this test, because each start of a process takes long."""
    in_new_process = bench._in_new_process

    def in_process(function, shards, building):
        own = in_new_process if building == "pack" else lambda call, *arguments: call(*arguments)
        return own(function, shards, building)

    monkeypatch.setattr(bench, "_in_new_process", in_process)
    results = bench.measure_index(tmp_path, 3000)
    assert [row["sequence"] for row in results] == ["truncate", "chunk", "pack"]
    for row in results:
        assert row["sequences_in_first_step"] >= 6
        assert row["first_batch_seconds"] >= row["open_seconds"] > 0
        assert row["peak_bytes"] >= row["index_bytes"]
    assert results[1]["samples"] > 3000 > results[2]["samples"] > 2000


def test_the_command_prints_tables_and_writes_json(few, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bench, "_in_new_process", lambda function, *arguments: function(*arguments))
    file = tmp_path / "loader.json"
    arguments = ["--documents", "2000", "--repeats", "1", "--directory", str(tmp_path), "--json", str(file)]
    assert main(["bench", "loader", *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("documents 2000, repeats 1, torch ")
    assert lines[1].startswith("| objective | sequences of 512 / CPU s | times the collator |")
    assert lines[-3].startswith("| truncate | 2,000 | ")
    figures = json.loads(file.read_text())
    assert len(figures["index"]) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["loader.json"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--json", "/nowhere/x.json"], "--json /nowhere/x.json: there is no directory /nowhere: make it first"),
        (["--directory", "/nowhere"], "--directory /nowhere: no such directory: make it first"),
    ],
)
def test_what_cannot_work_is_refused_before_measuring(arguments, message, capsys):
    assert main(["bench", "loader", *arguments]) == 2
    assert capsys.readouterr().err == f"bnb-ds: error: {message}\n"
