"""The shard format: what is written, what is read, and what happens when something goes wrong in between."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from bnb_ds.errors import DataError
from bnb_ds.shard_manifest import TokenizerInfo, parse_manifest, token_dtype
from bnb_ds.shards import FORMAT_VERSION, SPLITS, ShardWriter, TokenShards

SPECIAL_IDS = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}


def save_name(directory: Path) -> None:
    (directory / "tokenizer.json").write_text("{}")


def info(vocab_size: int = 100) -> TokenizerInfo:
    return TokenizerInfo("tiny", "0" * 64, vocab_size, SPECIAL_IDS, save_name)


def writer(directory: Path, *, vocab_size: int = 100, tokens_per_shard: int = 8, **changes) -> ShardWriter:
    arguments = {"sources": [], "holdout": {"rule": "none", "fraction": 0.0}, "settings": {}, **changes}
    return ShardWriter(directory, tokenizer=info(vocab_size), tokens_per_shard=tokens_per_shard, **arguments)


def document(*ids: int) -> np.ndarray:
    return np.array(ids, dtype=np.uint32)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Three shards: two of training documents, one held out."""
    with writer(tmp_path / "shards") as shard_writer:
        for ids in ([10, 11, 12], [20, 21, 22, 23, 24], [30], [40, 41]):
            shard_writer.add(document(*ids), "train")
        shard_writer.add(document(50, 51), "heldout")
        shard_writer.skip("empty")
    return tmp_path / "shards"


def test_documents_come_back_in_order(shards: Path) -> None:
    train, heldout = (TokenShards(shards, split, verify_hashes=True) for split in SPLITS)
    assert [train.document(i).tolist() for i in range(len(train))] == [
        [10, 11, 12],
        [20, 21, 22, 23, 24],
        [30],
        [40, 41],
    ]
    assert [heldout.document(i).tolist() for i in range(len(heldout))] == [[50, 51]]
    assert train.lengths.tolist() == [3, 5, 1, 2]
    assert train.lengths.dtype == np.int64
    assert (train.num_tokens, heldout.num_tokens) == (11, 2)
    assert (train.vocab_size, train.special_ids, train.tokenizer_hash) == (100, SPECIAL_IDS, "0" * 64)
    assert train.tokenizer_dir == shards / "tokenizer"
    assert train.tokenizer_dir.is_dir()


def test_document_is_a_view_of_the_mapped_file(shards: Path) -> None:
    ids = TokenShards(shards).document(1)
    assert type(ids) is np.ndarray
    base = ids
    while base.base is not None and isinstance(base.base, np.ndarray):
        base = base.base
    assert isinstance(base, np.memmap)
    assert not ids.flags.writeable


@pytest.mark.parametrize("index", [-1, 4])
def test_document_index_out_of_range(shards: Path, index: int) -> None:
    with pytest.raises(IndexError, match=f"document {index} of 4"):
        TokenShards(shards).document(index)


def test_shards_are_cut_between_documents(shards: Path) -> None:
    entries = TokenShards(shards).manifest.shards
    assert [(entry.name, entry.num_documents, entry.num_tokens) for entry in entries] == [
        ("train-00000", 2, 8),
        ("train-00001", 2, 3),
        ("heldout-00000", 1, 2),
    ]


def test_a_document_longer_than_a_shard_stays_whole(tmp_path: Path) -> None:
    with writer(tmp_path / "s", tokens_per_shard=4) as shard_writer:
        for length in (2, 9, 2):
            shard_writer.add(np.full(length, 10 + length), "train")
    shards = TokenShards(tmp_path / "s")
    assert shards.lengths.tolist() == [2, 9, 2]
    assert [entry.num_tokens for entry in shards.manifest.shards] == [2, 9, 2]


def test_manifest_totals(shards: Path) -> None:
    totals = TokenShards(shards).manifest.totals
    assert totals.documents == {"train": 4, "heldout": 1}
    assert totals.tokens == {"train": 11, "heldout": 2}
    assert totals.skipped == {"empty": 1}


def test_files_open_with_numpy_alone(shards: Path) -> None:
    tokens = np.load(shards / "train-00000.tokens.npy", mmap_mode="r")
    offsets = np.load(shards / "train-00000.offsets.npy", mmap_mode="r")
    assert (tokens.dtype, offsets.dtype) == (np.uint16, np.uint64)
    assert tokens[offsets[1] : offsets[2]].tolist() == [20, 21, 22, 23, 24]


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65_536, "uint16"), (65_537, "uint32")])
def test_width_follows_the_vocabulary(tmp_path: Path, vocab_size: int, dtype: str) -> None:
    assert token_dtype(vocab_size).name == dtype
    with writer(tmp_path / "s", vocab_size=vocab_size) as shard_writer:
        shard_writer.add(document(vocab_size - 1, 7), "train")
    shards = TokenShards(tmp_path / "s")
    assert shards.document(0).tolist() == [vocab_size - 1, 7]
    assert shards.document(0).dtype == dtype
    assert shards.manifest.dtype == dtype


def test_split_without_documents_is_empty(tmp_path: Path) -> None:
    with writer(tmp_path / "s") as shard_writer:
        shard_writer.add(document(10), "train")
    heldout = TokenShards(tmp_path / "s", "heldout")
    assert (len(heldout), heldout.num_tokens, heldout.lengths.shape) == (0, 0, (0,))


def test_output_is_a_function_of_the_input(tmp_path: Path, shards: Path) -> None:
    with writer(tmp_path / "again") as shard_writer:
        shard_writer.add(document(50, 51), "heldout")
        for ids in ([10, 11, 12], [20, 21, 22, 23, 24], [30], [40, 41]):
            shard_writer.add(document(*ids).astype(np.int64), "train")
        shard_writer.skip("empty")
    files = sorted(path.relative_to(shards) for path in shards.rglob("*") if path.is_file())
    assert files == sorted(p.relative_to(tmp_path / "again") for p in (tmp_path / "again").rglob("*") if p.is_file())
    for name in files:
        assert (shards / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name
    assert TokenShards(shards).fingerprint == TokenShards(tmp_path / "again").fingerprint


def test_pickle_reopens_instead_of_copying(shards: Path) -> None:
    original = TokenShards(shards, "heldout")
    data = pickle.dumps(original)
    assert len(data) < 300
    assert pickle.loads(data).document(0).tolist() == [50, 51]


def test_reading_needs_no_torch() -> None:
    # The modules themselves, without the package's __init__, which registers the model.
    code = """
import importlib.util, sys, types
from pathlib import Path
package = types.ModuleType("bnb_ds"); package.__path__ = [sys.argv[1]]; sys.modules["bnb_ds"] = package
import bnb_ds.shards
loaded = {"torch", "transformers", "tokenizers"} & set(sys.modules)
assert not loaded, loaded
"""
    package = Path(__file__).resolve().parents[2] / "bnb_ds"
    subprocess.run([sys.executable, "-c", code, str(package)], check=True, timeout=120)


# What the writer refuses


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (np.zeros(0, dtype=np.uint16), "non-empty vector of integers, got uint16 of shape (0,)"),
        (np.ones((2, 2), dtype=np.uint16), "got uint16 of shape (2, 2)"),
        (np.ones(2), "got float64 of shape (2,)"),
        (np.array([7, 100]), "below 100"),
        (np.array([-1, 7]), "below 100"),
        (np.array([7, 0]), "no [PAD], [CLS], [SEP] or [MASK]"),
        (np.array([7, 4]), "no [PAD], [CLS], [SEP] or [MASK]"),
    ],
)
def test_add_refuses(tmp_path: Path, ids: np.ndarray, message: str) -> None:
    with writer(tmp_path / "s") as shard_writer:
        with pytest.raises(ValueError, match=re.escape(message)):
            shard_writer.add(ids, "train")
        shard_writer.add(document(7, 1), "train")  # [UNK] is text that the vocabulary lacks


def test_add_refuses_another_split(tmp_path: Path) -> None:
    with writer(tmp_path / "s") as shard_writer:
        with pytest.raises(ValueError, match="split must be one of train, heldout, got 'test'"):
            shard_writer.add(document(7), "test")
        shard_writer.add(document(7), "train")


def test_writer_refuses_tokens_per_shard(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="tokens_per_shard must be at least 1, got 0"):
        writer(tmp_path / "s", tokens_per_shard=0)
    assert not (tmp_path / "s").exists()


def test_closed_writer_refuses(tmp_path: Path) -> None:
    shard_writer = writer(tmp_path / "s")
    shard_writer.add(document(7), "train")
    shard_writer.close()
    with pytest.raises(ValueError, match="closed"):
        shard_writer.add(document(7), "train")
    with pytest.raises(ValueError, match="closed"):
        shard_writer.close()
    shard_writer.abort()  # after the end it has nothing to undo
    assert len(TokenShards(tmp_path / "s")) == 1


def test_finished_directory_is_refused(shards: Path) -> None:
    before = TokenShards(shards).fingerprint
    with pytest.raises(DataError, match=r"shards: already holds finished shards; remove them or choose another output"):
        writer(shards)
    assert TokenShards(shards, verify_hashes=True).fingerprint == before


def test_directory_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("mine")
    with pytest.raises(DataError, match=r"not empty \(it holds notes.md\); choose a new or empty directory"):
        writer(tmp_path)
    assert os.listdir(tmp_path) == ["notes.md"]


def test_output_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot write: .*choose another output"):
        writer(tmp_path / "file" / "s")


# What an accident leaves


@pytest.mark.parametrize("existing", [False, True])
def test_exception_leaves_nothing(tmp_path: Path, existing: bool) -> None:
    directory = tmp_path / "s"
    if existing:
        directory.mkdir()
    with pytest.raises(RuntimeError, match="reader failed"), writer(directory, tokens_per_shard=2) as shard_writer:
        for _ in range(3):
            shard_writer.add(document(7, 8), "train")
        raise RuntimeError("reader failed")
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
    # A file-size limit is a disk that fills up in the middle of a shard.
    code = """
import resource, signal, sys
import numpy as np
from bnb_ds.errors import DataError
from tests.unit.test_shards import writer
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
        [sys.executable, "-c", code, str(tmp_path / "s")],
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 2, result.stderr
    assert "/s: cannot write: File too large; check space" in result.stdout
    assert not (tmp_path / "s").exists()


def start_and_hang(directory: Path) -> subprocess.Popen:
    """A process that has written two shards and hangs in the middle of the third."""
    code = """
import sys, time
from pathlib import Path
from tests.unit.test_shards import document, writer
with writer(Path(sys.argv[1]), tokens_per_shard=2) as shard_writer:
    for _ in range(3):
        shard_writer.add(document(7, 8), "train")
    print("ready", flush=True)
    time.sleep(600)
"""
    root = Path(__file__).resolve().parents[2]
    process = subprocess.Popen([sys.executable, "-c", code, str(directory)], cwd=root, stdout=subprocess.PIPE)
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
    with writer(directory) as shard_writer:  # takes over and clears what was left
        shard_writer.add(document(9), "train")
    assert TokenShards(directory, verify_hashes=True).document(0).tolist() == [9]
    assert sorted(os.listdir(directory)) == [
        "manifest.json",
        "tokenizer",
        "train-00000.offsets.npy",
        "train-00000.tokens.npy",
    ]


def test_killed_while_renaming(tmp_path: Path, shards: Path) -> None:
    # All files have their final names but the manifest: what a kill just before the last rename leaves.
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
    expect(tmp_path, "no manifest.json, so not a finished shard directory; let `bnb-ds prep` finish or make")


def test_unreadable_manifest(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").mkdir()
    expect(tmp_path, r"manifest.json: cannot read: Is a directory")


def test_manifest_not_json(shards: Path) -> None:
    (shards / "manifest.json").write_text('{"format_version": 1,')
    expect(shards, r"manifest.json: not valid JSON \(.*\); make the shards again")


@pytest.mark.parametrize("content", ["[]", "{}", '{"format_version": 2}'])
def test_other_version(shards: Path, content: str) -> None:
    (shards / "manifest.json").write_text(content)
    expect(
        shards, r"manifest.json: format_version is (None|2), this version of bnb_ds reads 1; use the version of bnb_ds"
    )
    assert FORMAT_VERSION == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["shards"][0].update(num_tokens="8"), "field shards.0.num_tokens: Input should be a valid integer"),
        (lambda m: m.pop("holdout"), "field holdout: Field required"),
        (lambda m: m.update(dtype="float32"), "field dtype: Input should be 'uint16' or 'uint32'"),
        (lambda m: m.update(colour="red"), "field colour: Extra inputs are not permitted"),
        (lambda m: m["shards"][0].update(name="../../etc/x"), "field shards.0.name: .*inside the shard directory"),
        (lambda m: m["special_ids"].pop("mask"), "field special_ids: mask missing"),
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
    assert len(TokenShards(shards, "heldout")) == 1  # the other split is whole


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
    expect(shards, r"tokens.npy: holds int64 of shape \(8,\), the manifest says uint16 of shape \(8,\)")
    np.save(shards / "train-00000.tokens.npy", np.zeros(7, dtype=np.uint16))
    expect(shards, r"tokens.npy: holds uint16 of shape \(7,\), the manifest says uint16 of shape \(8,\)")


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


def test_moved_directory_is_whole(shards: Path, tmp_path: Path) -> None:
    shutil.move(shards, tmp_path / "elsewhere")
    assert TokenShards(tmp_path / "elsewhere", verify_hashes=True).num_tokens == 11


def test_opening_reads_no_tokens(tmp_path: Path) -> None:
    with writer(tmp_path / "s", tokens_per_shard=10**8) as shard_writer:
        for _ in range(10):
            shard_writer.add(np.full(10**6, 7), "train")
    start = time.perf_counter()
    shards = TokenShards(tmp_path / "s")
    assert shards.document(9)[-1] == 7
    opening_seconds = time.perf_counter() - start
    start = time.perf_counter()
    TokenShards(tmp_path / "s", verify_hashes=True)
    assert opening_seconds < time.perf_counter() - start


def test_manifest_bytes_round_trip(shards: Path) -> None:
    data = (shards / "manifest.json").read_bytes()
    assert parse_manifest(data, shards).to_bytes() == data
