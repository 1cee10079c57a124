"""``bnb-ds bench beam``: our search is the plain one, and the command shows its table without and with a contender."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from bnb_ds.bench import prefix_beam
from bnb_ds.cli import main
from tests.plain_beam import prefix_beam as plain_search

SMALL = ["--size", "tiny", "--slots", "12", "--source-tokens", "5", "--batch-size", "2", "--beams", "1", "3"]


@pytest.fixture
def command(monkeypatch):
    monkeypatch.setattr(prefix_beam, "VOCAB_SIZE", 200)
    threads = torch.get_num_threads()
    yield lambda *flags: main(["bench", "beam", *SMALL, "--repeats", "1", *flags])
    torch.set_num_threads(threads)


def test_our_search_finds_what_a_plain_one_finds():
    log_probs = prefix_beam.likely_log_probs(2, 30, 500)
    assert log_probs.exp().amax(-1).median() > 0.5
    for rows, tokens in zip(log_probs, prefix_beam.our_search(log_probs, 4, 5), strict=True):
        kept = plain_search(rows, 0, 4, 5)
        assert tuple(tokens) == max(kept, key=kept.get)


def test_flashlight_finds_the_same():
    pytest.importorskip("flashlight.lib.text.decoder", reason="the optional package flashlight-text is not installed")
    log_probs = prefix_beam.likely_log_probs(2, 60, 500)
    assert prefix_beam.flashlight_search()(log_probs, 8, 5) == prefix_beam.our_search(log_probs, 8, 5)


def test_without_flashlight_its_columns_are_empty_and_the_reason_is_said(command, capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "flashlight", None)
    monkeypatch.setitem(sys.modules, "flashlight.lib.text.decoder", None)
    file = tmp_path / "beam.json"
    assert command("--json", str(file)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "skipped: flashlight-text is not installed: `pip install flashlight-text` to compare" in lines
    assert [line.split(" | ")[:2] for line in lines[-2:]] == [["| 2", "1 (greedy)"], ["| 2", "3"]]
    assert lines[-1].endswith("| - | - | - |")
    results = json.loads(file.read_text())["results"]
    assert [result["beam_size"] for result in results] == [1, 3]
    assert all(result["times_greedy"] > 0 for result in results)


def test_a_contender_is_shown_beside_ours(command, capsys, monkeypatch):
    monkeypatch.setattr(prefix_beam, "flashlight_search", lambda: prefix_beam.our_search)
    assert command() == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("| 2 of 2 |")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--slots", "513"], "--slots 513: give at most 512"),
        (["--source-tokens", "513"], "--source-tokens 513: give at most 512"),
        (["--classes", "200"], "--classes 200: give at most 199"),
    ],
)
def test_sizes_that_the_model_does_not_have_are_refused(command, capsys, flags, message):
    assert command(*flags) == 2
    assert message in capsys.readouterr().err
