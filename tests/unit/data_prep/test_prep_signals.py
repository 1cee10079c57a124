"""A run of `prep` with workers that is asked to end: no worker outlives it, and the next run goes on."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from bnb_ds.data.tokenization import save_tokenizer
from data_prep.jobs import cluster
from data_prep.jobs.workspace import Workspace
from tests.prep_helpers import content, prep, start, write_corpus

pytestmark = pytest.mark.slow

# After the first part, parts never end. Each worker leaves its number.
_ENDLESS = """
import os, time
from pathlib import Path
from data_prep.jobs import worker
plain = worker.build_part
def build_part(job, number):
    plain(job, number)
    if len(list(job.workspace.partial.glob("part-*.json"))) > 1:
        (job.workspace.directory.parent / f"worker-{os.getpid()}").touch()
        time.sleep(1000)
worker.build_part = build_part
"""


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        (signal.SIGTERM, 143, "bnb-ds: ended by SIGTERM"),
        (signal.SIGINT, 130, "bnb-ds: interrupted; repeat the command to continue"),
    ],
    ids=["SIGTERM", "SIGINT"],
)
def test_workers_end_with_their_parent(number, code, said, tmp_path, small_texts, small_tokenizer) -> None:
    save_tokenizer(small_tokenizer, tmp_path / "tokenizer")
    corpus = write_corpus(tmp_path / "corpus", small_texts)
    arguments = ["text", "--input", corpus, "--tokenizer", tmp_path / "tokenizer", "--part-bytes", "1"]
    process = start(*arguments, "--output", tmp_path / "s", "--workers", "2", before=_ENDLESS)
    wait_until(lambda: len(list(tmp_path.glob("worker-*"))) == 2 or process.poll() is not None)
    workers = [int(path.name.partition("-")[2]) for path in tmp_path.glob("worker-*")]
    assert len(workers) == 2
    assert all(map(is_running, workers))
    process.send_signal(number)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == code
    wait_until(lambda: not any(map(is_running, workers)), 5)
    assert "Traceback" not in errors
    assert errors.splitlines()[-1] == said
    with Workspace(tmp_path / "s") as workspace:  # nobody holds the lock
        assert workspace.has_progress()
    assert os.listdir(tmp_path / "s") == [".partial"]
    prep(*arguments, "--output", tmp_path / "s")
    prep(*arguments, "--output", tmp_path / "whole")
    assert content(tmp_path / "s") == content(tmp_path / "whole")


def test_a_part_on_a_cluster_ends_when_its_command_has_ended(tmp_path, monkeypatch) -> None:
    codes: list[int] = []
    monkeypatch.setattr(cluster, "_POLL_SECONDS", 0.01)
    monkeypatch.setattr(os, "_exit", codes.append)
    work = tmp_path / "work.pickle"
    work.touch()
    watch = threading.Thread(target=cluster.end_without, args=(work,), daemon=True)
    watch.start()
    time.sleep(0.05)
    assert codes == []
    work.unlink()
    watch.join(10)
    assert codes == [1]
