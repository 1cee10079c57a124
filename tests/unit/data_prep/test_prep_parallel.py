"""Workers, tasks, interruptions, full disks: the output is the same bytes, or not there."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from bnb_ds.data.tokenization import save_tokenizer
from bnb_ds.errors import ConfigError, DataError
from bnb_ds.shards.manifest import SPLITS
from bnb_ds.shards.reader import TokenShards
from data_prep.jobs import worker
from data_prep.tokenise.engines import ENGINES, WordsEngine
from tests.prep_helpers import content, prep, start, write_corpus

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, small_texts: list[str]) -> Path:
    return write_corpus(tmp_path_factory.mktemp("parallel") / "corpus", small_texts)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory, small_tokenizer) -> Path:
    directory = tmp_path_factory.mktemp("parallel") / "tokenizer"
    save_tokenizer(small_tokenizer, directory)
    return directory


@pytest.fixture(scope="module")
def arguments(corpus: Path, tokenizer: Path) -> list[str | Path]:
    sizes = ["--part-bytes", "1", "--tokens-per-shard", "4000", "--holdout", "0.1", "--engine", "words"]
    return ["text", "--input", corpus, "--tokenizer", tokenizer, *sizes]


@pytest.fixture(scope="module")
def expected(arguments, tmp_path_factory, small_texts: list[str]) -> dict[str, bytes]:
    """What one worker makes without interruption."""
    output = tmp_path_factory.mktemp("parallel") / "expected"
    prep(*arguments, "--output", output)
    splits = [TokenShards(output, split, verify_hashes=True) for split in SPLITS]
    assert sum(len(split) for split in splits) == len(small_texts)
    names = [shard.name for shard in splits[0].manifest.shards]
    assert "train-00003" in names
    assert any(name.endswith("-001") for name in names), "a task must fill more than one shard"
    return content(output)


@pytest.mark.parametrize("workers", [2, 4])
def test_workers(arguments, expected, tmp_path: Path, workers: int) -> None:
    prep(*arguments, "--output", tmp_path / "s", "--workers", workers)
    assert content(tmp_path / "s") == expected


def test_tasks_and_merge(arguments, expected, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for task in (2, 0, 1):
        prep(*arguments, "--output", tmp_path / "s", "--num-tasks", 3, "--task-index", task)
        if task != 1:
            with pytest.raises(DataError, match=r"/s: \d of 7 parts are not finished \(the first is part \d\); run"):
                prep("merge", tmp_path / "s")
    prep("merge", tmp_path / "s")
    assert content(tmp_path / "s") == expected
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(
        "prep text: task 2 of 3: 5 of 7 parts remain for other tasks; then run `bnb-ds prep merge"
    )
    assert lines[2].startswith("prep text: task 1 of 3: all 7 parts are finished; run `bnb-ds prep merge ")
    assert lines[3].startswith("prep merge: train ")


def test_three_kills(arguments, expected, tmp_path: Path) -> None:
    """Every part takes a moment longer here, so that a kill finds one in progress."""
    moments = random.Random(1)
    command = [*arguments, "--output", tmp_path / "s", "--workers", "2"]
    for _ in range(3):
        process = start(*command)
        finished = len(list(tmp_path.glob("s/.partial/part-*.json")))
        deadline = time.monotonic() + 120
        while len(list(tmp_path.glob("s/.partial/part-*"))) <= finished and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        time.sleep(moments.random() * 0.02)
        process.kill()
        process.communicate()
        if (tmp_path / "s" / "manifest.json").exists():  # too late to be killed; the rest is proven all the same
            break
        with pytest.raises(DataError, match=r"no manifest.json, so not a finished shard directory"):
            TokenShards(tmp_path / "s")
    else:
        prep(*command)
    assert content(tmp_path / "s") == expected


def test_rerun_does_only_what_is_missing(arguments, expected, tmp_path: Path, monkeypatch) -> None:
    built = []
    build_part = worker.build_part

    def build_three(job, number):
        if len(built) == 3:
            raise KeyboardInterrupt
        built.append(number)
        build_part(job, number)

    monkeypatch.setattr(worker, "build_part", build_three)
    with pytest.raises(KeyboardInterrupt):
        prep(*arguments, "--output", tmp_path / "s")
    monkeypatch.setattr(worker, "build_part", lambda job, number: (built.append(number), build_part(job, number)))
    prep(*arguments, "--output", tmp_path / "s")
    assert sorted(built) == list(range(7))
    assert content(tmp_path / "s") == expected


def test_merge_that_is_interrupted(arguments, expected, tmp_path: Path, monkeypatch) -> None:
    prep(*arguments, "--output", tmp_path / "s", "--num-tasks", 2, "--task-index", 0)
    prep(*arguments, "--output", tmp_path / "s", "--num-tasks", 2, "--task-index", 1)
    replace = os.replace
    moved = []

    def replace_some(old, new):
        if len(moved) == 5:
            raise KeyboardInterrupt
        moved.append(new)
        replace(old, new)

    monkeypatch.setattr(os, "replace", replace_some)
    with pytest.raises(KeyboardInterrupt):
        prep("merge", tmp_path / "s")
    monkeypatch.setattr(os, "replace", replace)
    prep("merge", tmp_path / "s")
    assert content(tmp_path / "s") == expected


def test_merge_without_a_shard_of_a_finished_part(arguments, tmp_path: Path) -> None:
    for task in range(2):
        prep(*arguments, "--output", tmp_path / "s", "--num-tasks", 2, "--task-index", task)
    (tmp_path / "s" / ".partial" / "part-00001" / "train-00001.tokens.npy").unlink()
    with pytest.raises(DataError, match=r"train-00001.tokens.npy: missing although its part is finished; remove "):
        prep("merge", tmp_path / "s")


def test_merge_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="/s: holds no begun corpus; run a `bnb-ds prep` command first"):
        prep("merge", tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_other_settings_do_not_mix(arguments, tmp_path: Path) -> None:
    prep(*arguments, "--output", tmp_path / "s", "--num-tasks", 2, "--task-index", 0)
    with pytest.raises(DataError, match=r"holds an unfinished run with other holdout; repeat its command, or remove "):
        prep(*arguments, "--output", tmp_path / "s", "--holdout", "0.2")
    with pytest.raises(DataError, match=r"holds an unfinished run with other inputs and parts; repeat its command"):
        prep(*arguments, "--output", tmp_path / "s", "--input", arguments[2] / "0.jsonl")


def test_worker_that_is_killed(arguments, expected, tmp_path: Path, monkeypatch) -> None:
    build_part = worker.build_part

    def build_or_die(job, number):
        if number == 4:
            time.sleep(0.5)
            os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does when memory runs out
        build_part(job, number)

    monkeypatch.setattr(worker, "build_part", build_or_die)
    with pytest.raises(DataError, match=r"/s: a worker was killed \(out of memory\?\); the finished parts are kept"):
        prep(*arguments, "--output", tmp_path / "s", "--workers", 2)
    monkeypatch.setattr(worker, "build_part", build_part)
    assert list((tmp_path / "s" / ".partial").glob("part-*.json"))
    assert not (tmp_path / "s" / "manifest.json").exists()
    prep(*arguments, "--output", tmp_path / "s", "--workers", 2)
    assert content(tmp_path / "s") == expected


def test_another_process_is_writing(arguments, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("data_prep.jobs.workspace._LOCK_PATIENCE_SECONDS", 0.2)
    build_part = worker.build_part
    refused = []

    def build_and_try(job, number):
        if number == 0:
            with pytest.raises(DataError, match="/s: another process is writing here; wait for it or choose") as caught:
                prep(*arguments, "--output", tmp_path / "s")
            refused.append(caught.value)
        build_part(job, number)

    monkeypatch.setattr(worker, "build_part", build_and_try)
    prep(*arguments, "--output", tmp_path / "s")
    assert len(refused) == 1


def shards_of(found: dict[str, bytes]) -> dict[str, bytes]:
    """All but the manifest, which names the engines."""
    return {name: data for name, data in found.items() if not name.startswith("manifest.json")}


@pytest.fixture
def late_fault(small_texts, monkeypatch) -> None:
    """An engine that is wrong in every part, but shows it at the beginning of part 5 alone, which comes last."""

    class Wrong(WordsEngine):
        def __call__(self, texts):
            found = super().__call__(texts)
            is_beginning = sum(map(len, texts)) <= 40
            found.ids[-1] ^= not is_beginning or texts[0] == small_texts[5][:40]
            return found

    monkeypatch.setitem(ENGINES, "words", Wrong)
    monkeypatch.setattr(worker, "PROOF_CHARACTERS", 40)


@pytest.mark.parametrize(("workers", "interrupted"), [(1, True), (2, False)])
def test_engine_that_is_found_out_late(
    arguments, expected, late_fault, tmp_path: Path, monkeypatch, capfd, workers: int, interrupted: bool
) -> None:
    build_part = worker.build_part

    def build_or_stop(job, number):
        if number == 5:
            raise KeyboardInterrupt
        build_part(job, number)

    if interrupted:
        monkeypatch.setattr(worker, "build_part", build_or_stop)
        with pytest.raises(KeyboardInterrupt):
            prep(*arguments, "--output", tmp_path / "s")
        monkeypatch.setattr(worker, "build_part", build_part)
    prep(*arguments, "--output", tmp_path / "s", "--workers", workers)
    assert shards_of(content(tmp_path / "s")) == shards_of(expected)
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("engine ")]
    assert said == [
        "engine words: other ids than the tokenizer's for document 1 of part 5; not used",
        "engine tokenizers: used instead",
    ]


def test_engine_that_another_task_finds_out(arguments, expected, late_fault, tmp_path: Path, capfd) -> None:
    tasks = [[*arguments, "--output", tmp_path / "s", "--num-tasks", 2, "--task-index", index] for index in (0, 1)]
    prep(*tasks[0])
    prep(*tasks[1])  # part 5 is among its own
    with pytest.raises(DataError, match=r"parts are not finished \(the first is part 0\); run the tasks"):
        prep("merge", tmp_path / "s")
    capfd.readouterr()
    prep(*tasks[0])
    said = capfd.readouterr().err.splitlines()
    assert "engine words: was wrong on another part of this corpus; not used" in said
    prep("merge", tmp_path / "s")
    assert shards_of(content(tmp_path / "s")) == shards_of(expected)


def test_engine_that_fails_keeps_what_it_proved(arguments, expected, small_texts, tmp_path: Path, monkeypatch, capfd):
    """An exception, unlike wrong ids, says nothing of other parts, here or in other tasks."""

    class Failing(WordsEngine):
        def __call__(self, texts):
            if texts[0].startswith(small_texts[5][:40]):
                raise MemoryError("no room")
            return super().__call__(texts)

    monkeypatch.setitem(ENGINES, "words", Failing)
    command = [*arguments, "--output", tmp_path / "s", "--num-tasks", 2, "--task-index"]
    prep(*command, 0)
    prep(*command, 1)
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("engine ")]
    assert said == [
        "engine words: fails on part 5 (no room); not used",
        "engine tokenizers: used instead",
    ]
    prep("merge", tmp_path / "s")
    assert shards_of(content(tmp_path / "s")) == shards_of(expected)


def test_refusal_that_the_disk_refuses(arguments, late_fault, tmp_path: Path, monkeypatch) -> None:
    replace = os.replace

    def full(old, new):
        if Path(new).name.startswith("refused-"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(old, new)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(DataError, match=r"/s: cannot write: No space left on device; check space and permissions"):
        prep(*arguments, "--output", tmp_path / "s")


def test_parts_of_a_refused_engine_are_no_progress(arguments, late_fault, tmp_path: Path, monkeypatch) -> None:
    build_part = worker.build_part

    def build_or_fail(job, number):
        if job.engine.name == "tokenizers":
            raise DataError("a bad record")
        build_part(job, number)

    monkeypatch.setattr(worker, "build_part", build_or_fail)
    with pytest.raises(DataError, match="a bad record"):
        prep(*arguments, "--output", tmp_path / "s")
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("workers", [1, 2])
def test_disk_that_fills_up(arguments, expected, tmp_path: Path, workers: int) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    size = sum(map(len, expected.values())) * 2 // 3
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size // 4096 * 4096}", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("cannot mount a small tmpfs here")
    try:
        command = [*arguments, "--output", disk / "s", "--workers", workers]
        with pytest.raises(DataError, match=r"/s: cannot write: No space left on device; check space and permissions"):
            prep(*command)
        assert not (disk / "s" / "manifest.json").exists()
        subprocess.run(["mount", "-o", "remount,size=16M", str(disk)], check=True)
        prep(*command)
        assert content(disk / "s") == expected
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--workers", 0], "--workers must be at least 1, got 0"),
        (["--num-tasks", 0], "--num-tasks must be at least 1, got 0"),
        (["--holdout", 1], r"--holdout must be at least 0 and below 1, got 1\.0"),
        (["--holdout", "nan"], "--holdout must be at least 0 and below 1, got nan"),
        (["--holdout", -0.1], r"--holdout must be at least 0 and below 1, got -0\.1"),
        (["--tokens-per-shard", 0], "--tokens-per-shard must be at least 1, got 0"),
        (["--part-bytes", 0], "--part-bytes must be at least 1, got 0"),
        (["--task-index", 3, "--num-tasks", 3], "--task-index must be at least 0 and below --num-tasks 3, got 3"),
    ],
)
def test_options_out_of_range(arguments, tmp_path: Path, options: list, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        prep(*arguments, "--output", tmp_path / "s", *options)
    assert not (tmp_path / "s").exists()
