"""Reading spans of documents with pread: equal to the mapped view, or an error that names the file."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest

from bnb_ds.errors import DataError
from bnb_ds.shards import pread as shard_reader
from bnb_ds.shards.pread import files_being_read
from bnb_ds.shards.reader import TokenShards
from tests.shard_helpers import document, writer


def write(directory, vocab_size, count=30):
    rng = np.random.default_rng(0)
    with writer(directory, vocab_size=vocab_size, tokens_per_shard=50) as shard_writer:
        for _ in range(count):
            shard_writer.add(document(*rng.integers(10, vocab_size, rng.integers(1, 20))), "train")
    return TokenShards(directory, "train")


def read(shards, documents, begins, sizes):
    places = np.cumsum(sizes) - sizes
    out = np.zeros(int(np.sum(sizes)), dtype=shards.token_dtype)
    shards.read(*(np.asarray(x, dtype=np.int64) for x in (documents, begins, sizes)), out, places)
    return out


@pytest.mark.parametrize("vocab_size", [100, 70_000])
@pytest.mark.parametrize("max_open", [256, 2, 0])
def test_spans_equal_the_mapped_documents(tmp_path, vocab_size, max_open, monkeypatch):
    monkeypatch.setattr(shard_reader, "_MAX_OPEN_FILES", max_open)
    shards = write(tmp_path / "shards", vocab_size)
    assert shards.token_dtype.itemsize == (2 if vocab_size < 2**16 else 4)
    rng = np.random.default_rng(1)
    open_before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        documents = rng.integers(0, len(shards), 9)
        lengths = shards.lengths_of(documents)
        assert lengths.tolist() == shards.lengths[documents].tolist()
        begins = rng.integers(0, lengths)
        sizes = lengths - begins
        expected = [shards.document(d)[b : b + s] for d, b, s in zip(documents, begins, sizes, strict=True)]
        assert read(shards, documents, begins, sizes).tolist() == np.concatenate(expected).tolist()
    descriptors = list(shards._reader._open.values())
    assert len(descriptors) <= max_open
    assert len(os.listdir("/proc/self/fd")) == open_before + len(descriptors)
    del shards
    for descriptor in descriptors:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)


def test_a_short_read_goes_on_where_it_ended(tmp_path, monkeypatch):
    shards = write(tmp_path / "shards", 100)
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, offset: preadv(fd, [buffers[0][:3]], offset))
    assert read(shards, [4], [0], [shards.lengths[4]]).tolist() == shards.document(4).tolist()


def test_a_missing_file_is_named(tmp_path):
    shards = write(tmp_path / "shards", 100)
    path = tmp_path / "shards" / "train-00001.tokens.npy"
    path.unlink()
    with pytest.raises(DataError) as error:
        read(shards, np.arange(len(shards)), np.zeros(len(shards)), shards.lengths)
    assert str(error.value) == (f"{path}: cannot be read: No such file or directory; restore it and start again")
    assert files_being_read() == []


def test_a_file_that_became_shorter_is_named(tmp_path):
    shards = write(tmp_path / "shards", 100)
    path = tmp_path / "shards" / "train-00001.tokens.npy"
    os.truncate(path, path.stat().st_size - 2)
    with pytest.raises(DataError, match=r"train-00001\.tokens\.npy: ends at byte \d+, before the end of its documents"):
        read(shards, np.arange(len(shards)), np.zeros(len(shards)), shards.lengths)


def test_a_failing_disk_is_named(tmp_path, monkeypatch):
    shards = write(tmp_path / "shards", 100)

    def fail(*arguments):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(DataError, match=r"train-00000\.tokens\.npy: cannot be read: Input/output error; restore it"):
        read(shards, [0], [0], [1])


def test_a_read_in_progress_can_be_asked_for(tmp_path, monkeypatch):
    shards = write(tmp_path / "shards", 100)
    started, go_on, preadv = threading.Event(), threading.Event(), os.preadv

    def slow(*arguments):
        started.set()
        go_on.wait(30)
        return preadv(*arguments)

    monkeypatch.setattr(os, "preadv", slow)
    thread = threading.Thread(target=read, args=(shards, [0], [0], [1]))
    thread.start()
    assert started.wait(30)
    assert files_being_read() == [str(tmp_path / "shards" / "train-00000.tokens.npy")]
    go_on.set()
    thread.join()
    assert files_being_read() == []
