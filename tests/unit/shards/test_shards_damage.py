"""What a failed writer leaves behind, and what the reader says about a damaged directory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bnb_ds.errors import DataError
from bnb_ds.shards.manifest import FORMAT_VERSION, TokenizerInfo
from bnb_ds.shards.reader import TokenShards
from bnb_ds.shards.writer import ShardWriter
from tests import launching
from tests.shard_helpers import SPECIAL_IDS, document, write_small, writer


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    return write_small(tmp_path / "shards")


@pytest.mark.parametrize("existing", [False, True])
def test_exception_leaves_nothing(tmp_path: Path, existing: bool) -> None:
    directory = tmp_path / "s"
    if existing:
        directory.mkdir()

    def write() -> None:
        with writer(directory, tokens_per_shard=2) as shard_writer:
            for _ in range(3):
                shard_writer.add(document(7, 8), "train")
            raise RuntimeError("reader failed")

    with pytest.raises(RuntimeError, match="reader failed"):
        write()
    assert directory.exists() == existing
    assert not existing or os.listdir(directory) == []


def test_failure_while_publishing_leaves_nothing(tmp_path: Path) -> None:
    def fail(directory: Path) -> None:
        (directory / "tokenizer.json").write_text("half")
        raise OSError(28, "No space left on device")

    tokenizer = TokenizerInfo("tiny", "0" * 64, 100, SPECIAL_IDS, fail)
    shard_writer = ShardWriter(
        tmp_path / "s", tokenizer=tokenizer, sources=[], holdout={"rule": "", "fraction": 0.0}, settings={}
    )
    shard_writer.add(document(7), "train")
    with pytest.raises(DataError, match=r"/s: cannot write: No space left on device; check space and permissions"):
        shard_writer.close()
    assert not (tmp_path / "s").exists()


def test_full_disk_leaves_nothing(tmp_path: Path) -> None:
    # A file-size limit acts like a disk that fills up in the middle of a shard.
    code = """
import resource, signal, sys
import numpy as np
from bnb_ds.errors import DataError
from tests.shard_helpers import writer
from pathlib import Path
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    with writer(Path(sys.argv[1]), tokens_per_shard=10_000_000) as shard_writer:
        for _ in range(1000):
            shard_writer.add(np.full(1000, 7), "train")
except DataError as error:
    print(error)
    sys.exit(2)
"""
    result = subprocess.run(
        [sys.executable, "-c", launching.LIGHT + code, str(tmp_path / "s")],
        cwd=Path(__file__).resolve().parents[3],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 2, result.stderr
    assert "/s: cannot write: File too large; check space" in result.stdout
    assert not (tmp_path / "s").exists()


def start_and_hang(directory: Path) -> subprocess.Popen:
    """A process that has written two shards and stops in the middle of the third."""
    code = """
import sys, time
from pathlib import Path
from tests.shard_helpers import document, writer
with writer(Path(sys.argv[1]), tokens_per_shard=2) as shard_writer:
    for _ in range(3):
        shard_writer.add(document(7, 8), "train")
    print("ready", flush=True)
    time.sleep(600)
"""
    root = Path(__file__).resolve().parents[3]
    process = subprocess.Popen(
        [sys.executable, "-c", launching.LIGHT + code, str(directory)], cwd=root, stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"ready\n"
    return process


def test_killed_writer(tmp_path: Path) -> None:
    directory = tmp_path / "s"
    process = start_and_hang(directory)
    try:
        with pytest.raises(DataError, match="another process is writing here; wait for it or choose another output"):
            writer(directory)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    with pytest.raises(DataError, match=r"no manifest.json, so not a finished shard directory"):
        TokenShards(directory)
    with writer(directory) as shard_writer:  # takes over and removes what was left
        shard_writer.add(document(9), "train")
    assert TokenShards(directory, verify_hashes=True).document(0).tolist() == [9]
    assert sorted(os.listdir(directory)) == [
        "manifest.json",
        "manifest.json.sha256",
        "tokenizer",
        "train-00000.offsets.npy",
        "train-00000.tokens.npy",
    ]


def test_killed_while_renaming(tmp_path: Path, shards: Path) -> None:
    # All files but the manifest have their final names, as after a kill just before the last rename.
    (shards / ".partial").mkdir()
    (shards / "manifest.json").rename(shards / ".partial" / "manifest.json")
    with writer(shards) as shard_writer:
        shard_writer.add(document(9), "train")
    assert not (shards / "train-00001.tokens.npy").exists()
    assert TokenShards(shards).num_tokens == 1


def test_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", refuse)
    with writer(tmp_path / "s") as shard_writer:
        shard_writer.add(document(9), "train")
    assert len(TokenShards(tmp_path / "s")) == 1


# What the reader refuses


def expect(directory: Path, message: str, split: str = "train", **options) -> None:
    with pytest.raises(DataError, match=message) as caught:
        TokenShards(directory, split, **options)
    assert "\n" not in str(caught.value)


def edit_manifest(directory: Path, change) -> None:
    manifest = json.loads((directory / "manifest.json").read_text())
    change(manifest)
    (directory / "manifest.json").write_text(json.dumps(manifest))


def test_reader_refuses_split(shards: Path) -> None:
    expect(shards, "split must be one of train, heldout, got 'eval'", split="eval")


def test_missing_directory(tmp_path: Path) -> None:
    expect(tmp_path / "nowhere", "nowhere: no such directory; give a shard directory made by `bnb-ds prep`")


def test_directory_without_manifest(tmp_path: Path) -> None:
    expect(tmp_path, "no manifest.json, so not a finished shard directory; let `bnb-ds prep` finish, or make")


def test_unreadable_manifest(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").mkdir()
    expect(tmp_path, r"manifest.json: cannot read: Is a directory")


def test_manifest_not_json(shards: Path) -> None:
    (shards / "manifest.json").write_text('{"format_version": 1,')
    expect(shards, r"manifest.json: not valid JSON \(.*\); make the shards again")


@pytest.mark.parametrize("content", ["[]", "{}", '{"format_version": 3}'])
def test_other_version(shards: Path, content: str) -> None:
    (shards / "manifest.json").write_text(content)
    expect(
        shards, r"manifest.json: format_version is (None|3), this version of bnb_ds reads 1 and 2; use the version of "
    )
    assert FORMAT_VERSION == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["shards"][0].update(num_tokens="8"), "field shards.0.num_tokens: Input should be a valid integer"),
        (lambda m: m.pop("holdout"), "field holdout: Field required"),
        (lambda m: m.update(dtype="float32"), "field dtype: Input should be 'uint16' or 'uint32'"),
        (lambda m: m.update(colour="red"), "field colour: Extra inputs are not permitted"),
        (lambda m: m["shards"][0].update(name="../../etc/x"), "field shards.0.name: .*inside the shard directory"),
        (lambda m: m["special_ids"].pop("sep"), "field special_ids: sep missing"),
        (lambda m: m["special_ids"].update(mask=100), "field special_ids.mask: 100 is no id of the tokenizer"),
        (lambda m: m["totals"]["tokens"].pop("train"), "field totals.tokens: must have train and heldout"),
        (lambda m: m.pop("files"), "field files: Field required"),
        (lambda m: m.update(format_version=1), "field engines: there is none in format version 1"),
    ],
)
def test_manifest_with_a_wrong_field(shards: Path, change, message: str) -> None:
    edit_manifest(shards, change)
    expect(shards, f"manifest.json: {message}.*; make the shards again")


def test_truncated_tokens(shards: Path) -> None:
    path = shards / "train-00001.tokens.npy"
    os.truncate(path, path.stat().st_size - 2)
    expect(
        shards, r"train-00001.tokens.npy: truncated \(132 bytes instead of 134\); restore it or make the shards again"
    )
    assert len(TokenShards(shards, "heldout")) == 1  # the other split is undamaged


def test_truncated_within_the_header(shards: Path) -> None:
    os.truncate(shards / "train-00000.offsets.npy", 60)
    expect(shards, r"train-00000.offsets.npy: not a readable .npy file \(.*\); restore it")


def test_too_long(shards: Path) -> None:
    with open(shards / "train-00000.tokens.npy", "ab") as file:
        file.write(b"\0\0")
    expect(shards, r"train-00000.tokens.npy: too long \(146 bytes instead of 144\)")


def test_missing_file(shards: Path) -> None:
    (shards / "train-00000.offsets.npy").unlink()
    expect(shards, "train-00000.offsets.npy: missing; restore it or make the shards again")


def test_unreadable_file(shards: Path) -> None:
    (shards / "train-00000.tokens.npy").unlink()
    (shards / "train-00000.tokens.npy").mkdir()
    expect(shards, "train-00000.tokens.npy: cannot read: Is a directory")


def test_file_of_other_numpy_version(shards: Path) -> None:
    with open(shards / "train-00000.tokens.npy", "wb") as file:
        np.lib.format.write_array(file, np.zeros(8, dtype=np.uint16), version=(2, 0))
    expect(shards, r"train-00000.tokens.npy: not a readable .npy file \(not version 1.0 of the .npy format\)")


def test_file_of_other_type_or_length(shards: Path) -> None:
    np.save(shards / "train-00000.tokens.npy", np.zeros(8, dtype=np.int64))
    expect(shards, r"tokens.npy: holds int64 of shape \(8,\), but the manifest says uint16 of shape \(8,\)")
    np.save(shards / "train-00000.tokens.npy", np.zeros(7, dtype=np.uint16))
    expect(shards, r"tokens.npy: holds uint16 of shape \(7,\), but the manifest says uint16 of shape \(8,\)")


@pytest.mark.parametrize("offsets", [[0, 9, 8], [0, 0, 8], [1, 3, 8], [0, 3, 7]])
def test_offsets_that_do_not_rise(shards: Path, offsets: list[int]) -> None:
    np.save(shards / "train-00000.offsets.npy", np.array(offsets, dtype=np.uint64))
    expect(shards, "train-00000.offsets.npy: offsets do not rise from 0 to 8 tokens")


@pytest.mark.parametrize("name", ["train-00001.tokens.npy", "train-00001.offsets.npy"])
def test_hashes_find_what_sizes_do_not(shards: Path, name: str) -> None:
    data = bytearray((shards / name).read_bytes())
    data[-1 if "tokens" in name else 128 + 8] ^= 1 if "tokens" in name else 3  # offsets 0, 1, 3 become 0, 2, 3
    (shards / name).write_bytes(data)
    assert len(TokenShards(shards)) == 4
    expect(shards, f"{name}: content does not match the manifest's SHA-256", verify_hashes=True)
