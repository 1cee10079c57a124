"""Runs that are killed in their last moments, started again when finished, or whose inputs change on the way."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bnb_ds.data.tokenization import save_tokenizer
from bnb_ds.errors import DataError
from bnb_ds.shards.reader import TokenShards
from data_prep.jobs import worker
from data_prep.sources import text
from data_prep.tools.verify import find_damage
from tests.prep_helpers import content, prep, write_corpus

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory, small_tokenizer) -> Path:
    directory = tmp_path_factory.mktemp("resume") / "tokenizer"
    save_tokenizer(small_tokenizer, directory)
    return directory


@pytest.fixture
def corpus(tmp_path: Path, small_texts: list[str]) -> Path:
    """Three files, one with a bad line."""
    directory = write_corpus(tmp_path / "corpus", small_texts[:30], num_files=3)
    with open(directory / "1.jsonl", "a") as file:
        file.write("no row\n")
    return directory


@pytest.fixture
def command(corpus: Path, tokenizer: Path, tmp_path: Path) -> list[str | Path]:
    options = ["--part-bytes", "1", "--skip-bad", "--engine", "words", "--holdout", "0.1"]
    return ["text", "--input", corpus, "--tokenizer", tokenizer, *options, "--output", tmp_path / "s"]


@pytest.fixture
def expected(command, tmp_path: Path) -> dict[str, bytes]:
    prep(*command[:-1], tmp_path / "expected")
    return content(tmp_path / "expected")


class Steps:
    """Counts what is done to the disk, and stops the process before a step of that number."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left: int | None = None
        for name in ("replace", "fsync", "unlink", "rmdir"):
            monkeypatch.setattr(os, name, self._counted(getattr(os, name)))

    def _counted(self, function):
        def call(*args, **kwargs):
            if self.left is not None:
                if self.left == 0:
                    raise KeyboardInterrupt
                self.left -= 1
            return function(*args, **kwargs)

        return call


def stop_after(steps: Steps, number: int, *arguments: str | Path) -> bool:
    """Run a command that ends before a step; False if it has no such step."""
    steps.left = number
    try:
        prep(*arguments)
    except KeyboardInterrupt:
        return True
    finally:
        steps.left = None
    return False


def test_a_stop_at_any_moment_of_the_merge_can_be_resumed(command, expected, tmp_path: Path, monkeypatch) -> None:
    assert "bad_records.jsonl" in expected
    for task in range(2):
        prep(*command[:-1], tmp_path / "parts", "--num-tasks", 2, "--task-index", task)
    steps, number = Steps(monkeypatch), 0
    while True:
        shutil.rmtree(tmp_path / "s", ignore_errors=True)
        shutil.copytree(tmp_path / "parts", tmp_path / "s")
        if not stop_after(steps, number, "merge", tmp_path / "s"):
            break
        prep(*(["merge", tmp_path / "s"] if number % 2 else command))
        assert content(tmp_path / "s") == expected, number
        number += 1
    assert number > 20


def test_a_stop_at_any_moment_of_a_run_can_be_resumed(command, expected, tmp_path: Path, monkeypatch) -> None:
    steps, number = Steps(monkeypatch), 0
    while stop_after(steps, number, *command):
        prep(*command)
        assert content(tmp_path / "s") == expected, number
        shutil.rmtree(tmp_path / "s")
        number += 3
    assert number > 40


def test_a_finished_run_says_so(command, expected, tmp_path: Path, capfd) -> None:
    for _ in range(2):
        assert not prep(*command)
        assert content(tmp_path / "s") == expected
    out, err = capfd.readouterr()
    assert err.splitlines()[-1] == f"{tmp_path}/s: already finished, nothing to do"
    assert out.splitlines()[-1].startswith("prep text: 3 files -> train ")
    assert not prep(*command, "--num-tasks", 2, "--task-index", 1)
    assert not prep("merge", tmp_path / "s")
    assert capfd.readouterr().out.splitlines()[-1].startswith("prep merge: already finished: train ")
    assert find_damage(tmp_path / "s") == []


def test_a_finished_run_of_other_work_is_refused(command, corpus: Path, tmp_path: Path) -> None:
    prep(*command)
    before = content(tmp_path / "s")

    def refused(differing: str, *options: str | Path) -> None:
        message = f"/s: already holds finished shards, made with other {differing}; remove them or choose another outp"
        with pytest.raises(DataError, match=message):
            prep(*command, *options)
        assert content(tmp_path / "s") == before

    refused("holdout", "--holdout", "0.2")
    refused("settings", "--part-bytes", "2")
    refused("settings and inputs", "--input", corpus / "0.jsonl", "--tokens-per-shard", "7")
    change_in_place(corpus / "2.jsonl")
    refused("inputs")


def change_in_place(path: Path, old: bytes = b"the ", new: bytes = b"teh ") -> None:
    """Other content of equal size and time."""
    stat, data = path.stat(), path.read_bytes()
    assert old in data
    with open(path, "r+b") as file:
        file.write(data.replace(old, new, 1))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_size == stat.st_size


@pytest.mark.parametrize("workers", [1, 2])
def test_input_that_changes_before_a_run_continues(
    command, expected, corpus: Path, tmp_path: Path, monkeypatch, workers: int
) -> None:
    with monkeypatch.context() as patch:
        build_part = worker.build_part
        patch.setattr(worker, "build_part", lambda job, n: build_part(job, n) if n == 0 else interrupt())
        with pytest.raises(KeyboardInterrupt):
            prep(*command)
    change_in_place(corpus / "0.jsonl")
    message = r"^0\.jsonl: changed since part 0 was made of it; restore it, or remove .*\.partial and run the command"
    with pytest.raises(DataError, match=message):
        prep(*command, "--workers", workers)
    change_in_place(corpus / "0.jsonl", b"teh ", b"the ")
    change_in_place(corpus / "1.jsonl")  # not read yet: its new content is what is read and recorded
    prep(*command, "--workers", workers)
    made = content(tmp_path / "s")
    assert {name for name in made if made[name] != expected[name]} >= {"manifest.json", "train-00001.tokens.npy"}
    assert made["train-00000.tokens.npy"] == expected["train-00000.tokens.npy"]
    assert [source.sha256 for source in TokenShards(tmp_path / "s").manifest.sources] == [
        file.digest() for file in text.find_files([corpus])
    ]


def interrupt() -> None:
    raise KeyboardInterrupt


def test_input_that_changes_between_index_and_build(command, corpus: Path, monkeypatch) -> None:
    build_part = worker.build_part

    def change_and_build(job, number):
        if number == 1:
            change_in_place(corpus / "1.jsonl")
        build_part(job, number)

    monkeypatch.setattr(worker, "build_part", change_and_build)
    message = r"^1\.jsonl: changed since it was indexed; restore it, or remove .*\.partial and run the command again"
    with pytest.raises(DataError, match=message):
        prep(*command, "--drop-duplicates")


def test_input_that_changes_while_it_is_read(command, corpus: Path, monkeypatch) -> None:
    records = worker.records

    def change_and_read(source, unit, skip_bad):
        for number, record in enumerate(records(source, unit, skip_bad)):
            if number == 3 and unit.file == 2:
                (corpus / "2.jsonl").write_bytes((corpus / "2.jsonl").read_bytes())
                os.utime(corpus / "2.jsonl", ns=(7, 7))
            yield record

    monkeypatch.setattr(worker, "records", change_and_read)
    with pytest.raises(DataError, match=r"/2\.jsonl: changed while it was read; run the same command again when it is"):
        prep(*command)


def test_parts_of_one_file_are_of_one_content(tokenizer: Path, small_texts, tmp_path: Path, monkeypatch) -> None:
    """Tasks of an array read row groups of one file, which is exchanged between them."""
    monkeypatch.setattr(text, "_PARQUET_UNIT_BYTES", 1)
    table = pa.table({"id": list(map(str, range(60))), "text": small_texts[:60]})
    path = tmp_path / "a.parquet"
    pq.write_table(table, path, row_group_size=15, compression="none", use_dictionary=False)
    (file,) = text.find_files([path])
    units = text.parquet_units(file, 0)
    spans = [unit.spans_of(file.num_bytes()) for unit in units]
    assert [span[0][1] for span in spans[:-1]] == [span[0][0] for span in spans[1:]]  # no gap, no overlap
    assert (spans[0][0][0], spans[-1][0][1], spans[-1][1][1]) == (0, spans[0][1][0], file.num_bytes())
    command = ["text", "--input", path, "--tokenizer", tokenizer, "--output", tmp_path / "s", "--part-bytes", "1"]
    tasks = [[*command, "--num-tasks", 2, "--task-index", index] for index in range(2)]
    prep(*tasks[0])
    words = small_texts[20].encode()[:40]  # of the second row group, which is the other task's
    change_in_place(path, words, words[::-1])
    prep(*tasks[1])
    message = (
        r"^a\.parquet: changed between the parts that were made of it; remove .*\.partial and run the `bnb-ds prep"
    )
    with pytest.raises(DataError, match=message):
        prep("merge", tmp_path / "s")


def test_a_plan_of_another_version_is_refused(command, tmp_path: Path) -> None:
    prep(*command, "--num-tasks", 2, "--task-index", 0)
    path = tmp_path / "s" / ".partial" / "plan.json"
    plan = json.loads(path.read_text())
    del plan["format_version"]
    path.write_text(json.dumps(plan))
    with pytest.raises(DataError, match=r"/s: was begun by another version of bnb_ds; finish it with that one, or rem"):
        prep("merge", tmp_path / "s")
    with pytest.raises(DataError, match=r"/s: holds an unfinished run with other format_version; repeat its command"):
        prep(*command)
