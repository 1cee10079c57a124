"""The shard format: documents come back as they were written, and the writer refuses wrong input."""

from __future__ import annotations

import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bnb_ds.errors import DataError
from bnb_ds.shards.manifest import SPLITS, parse_manifest, token_dtype
from bnb_ds.shards.reader import TokenShards
from tests.shard_helpers import SPECIAL_IDS, document, write_small, writer


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    return write_small(tmp_path / "shards")


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
    # This imports the modules without the package's __init__, which registers the model.
    code = """
import importlib.util, sys, types
from pathlib import Path
package = types.ModuleType("bnb_ds"); package.__path__ = [sys.argv[1]]; sys.modules["bnb_ds"] = package
import bnb_ds.shards
loaded = {"torch", "transformers", "tokenizers"} & set(sys.modules)
assert not loaded, loaded
"""
    package = Path(__file__).resolve().parents[3] / "bnb_ds"
    subprocess.run([sys.executable, "-c", code, str(package)], check=True, timeout=120)


def test_moved_directory_is_whole(shards: Path, tmp_path: Path) -> None:
    shutil.move(shards, tmp_path / "elsewhere")
    assert TokenShards(tmp_path / "elsewhere", verify_hashes=True).num_tokens == 11


def test_manifest_bytes_round_trip(shards: Path) -> None:
    data = (shards / "manifest.json").read_bytes()
    assert parse_manifest(data, shards).to_bytes() == data


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
        shard_writer.add(document(7, 1), "train")  # [UNK] stands for text that is not in the vocabulary


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
    shard_writer.abort()  # after the end there is nothing to undo
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
