"""`bnb-ds prep verify`, `show`, `stats`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from bnb_ds.errors import ConfigError, DataError
from bnb_ds.shards.reader import TokenShards
from data_prep.tools.stats import Stats
from data_prep.tools.verify import find_damage
from tests.prep_helpers import prep


@pytest.fixture
def shards(small_shards: Path, tmp_path: Path) -> Path:
    shutil.copytree(small_shards, tmp_path / "s")
    return tmp_path / "s"


def change(path: Path, function) -> None:
    array = np.load(path)
    function(array)
    np.save(path, array)


def test_verify_accepts(shards: Path, capsys: pytest.CaptureFixture) -> None:
    assert prep("verify", shards) == 0
    assert capsys.readouterr().out.startswith("prep verify: train 2")


def test_verify_names_shard_and_document(shards: Path, capsys: pytest.CaptureFixture) -> None:
    offsets = np.load(shards / "train-00001.offsets.npy")
    change(shards / "train-00001.tokens.npy", lambda tokens: tokens.__setitem__(int(offsets[5]) + 2, 600))
    assert prep("verify", shards) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].endswith("/s/train-00001.tokens.npy: content does not match the manifest's SHA-256")
    assert lines[1].endswith(
        "/s/train-00001.tokens.npy: document 5 of the shard holds id 600 at token 2, which is special or not below 600"
    )


def damage(shards: Path, name: str) -> None:
    if name == "special":
        change(shards / "train-00000.tokens.npy", lambda tokens: tokens.__setitem__(0, 0))
    elif name == "offsets":
        change(shards / "train-00000.offsets.npy", lambda offsets: offsets.__setitem__(3, offsets[2]))
    elif name == "last offset":
        change(shards / "heldout-00000.offsets.npy", lambda offsets: offsets.__setitem__(-1, offsets[-1] + 1))
    elif name == "missing":
        (shards / "train-00000.tokens.npy").unlink()
    elif name == "dtype":
        np.save(shards / "train-00000.tokens.npy", np.load(shards / "train-00000.tokens.npy").astype(np.int64))
    elif name == "tokenizer":
        path = shards / "tokenizer" / "tokenizer.json"
        path.write_text(path.read_text().replace('"lowercase": false', '"lowercase": true'))
    elif name == "no tokenizer":
        shutil.rmtree(shards / "tokenizer")
    elif name == "totals":
        manifest = json.loads((shards / "manifest.json").read_text())
        manifest["totals"]["tokens"]["train"] += 1
        (shards / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("special", "train-00000.tokens.npy: document 0 of the shard holds id 0 at token 0, which is special"),
        ("offsets", "train-00000.offsets.npy: offsets do not rise from 0 to 9"),
        ("offsets", "document 2 of the shard has no tokens"),
        ("last offset", "heldout-00000.offsets.npy: offsets do not rise from 0 to "),
        ("missing", "train-00000.tokens.npy: cannot read: "),
        ("dtype", "train-00000.tokens.npy: holds int64 of shape"),
        ("tokenizer", "/s/tokenizer/tokenizer.json: content does not match the manifest's SHA-256"),
        ("no tokenizer", "/s/tokenizer/tokenizer.json: cannot read: No such file or directory"),
        ("totals", "manifest.json: train totals are "),
    ],
)
def test_verify_finds(shards: Path, name: str, expected: str) -> None:
    assert find_damage(shards) == []
    damage(shards, name)
    assert any(expected in line for line in find_damage(shards)), find_damage(shards)


def test_verify_of_no_shards(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no manifest.json, so not a finished shard directory"):
        prep("verify", tmp_path)


def test_show(shards: Path, small_tokenizer, capsys: pytest.CaptureFixture) -> None:
    prep("show", shards, "--split", "heldout", "--first", 1, "--num", 2, "--max-tokens", 5)
    lines = capsys.readouterr().out.splitlines()
    heldout = TokenShards(shards, "heldout")
    assert lines[0] == f"--- heldout 1: {len(heldout.document(1)):,} tokens, the first 5"
    assert lines[1] == small_tokenizer.decode(heldout.document(1)[:5])
    assert len(lines) == 4
    with pytest.raises(ConfigError, match=r"--first must be at least 0 and below the \d+ documents of train"):
        prep("show", shards, "--first", 10_000)


def test_stats_by_hand() -> None:
    stats = Stats(np.array([2, 6, 14]), max_length=8)
    assert (stats.room, stats.num_tokens) == (6, 22)
    assert stats.pad_share == pytest.approx(4 / 24)  # 4, 8 and 8 of 8
    assert stats.cut_share == pytest.approx(8 / 22)
    assert stats.num_sequences_packed == -(-(22 + 2 * (1 + 1 + 3)) // 8)
    counts, edges = stats.histogram()
    assert (counts.sum(), edges[-1]) == (3, 16)
    lines = stats.lines()
    assert lines[0] == "documents        3"
    assert "24 slots, 16.7% of them padding, 36.4% of the tokens thrown away" in lines[3]
    assert lines[-1] == "      8 to      15          1 " + "#" * 40


def test_stats(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("matplotlib")
    prep("stats", shards, "--png", tmp_path / "a.png", "--max-length", 128)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert f"documents        {len(TokenShards(shards))}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max-length", 2], "--max-length must be above 2, got 2"),
        (["--split", "heldout"], "/s: the split heldout has no documents; choose another --split"),
    ],
)
def test_stats_refuses(tmp_path: Path, options: list, message: str) -> None:
    from tests.shard_helpers import document, writer

    with writer(tmp_path / "s") as shard_writer:
        shard_writer.add(document(7), "train")
    with pytest.raises(ConfigError, match=message):
        prep("stats", tmp_path / "s", *options)


def test_stats_without_matplotlib(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(
        ConfigError,
        match=r'--png needs matplotlib: pip install "\.\[plot\]" in the checkout of bnb_ds, or leave it out',
    ):
        prep("stats", shards, "--png", tmp_path / "a.png")
