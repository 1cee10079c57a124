"""Preparation on a real Dask cluster of two workers, one of which is killed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bnb_ds.data.tokenization import save_tokenizer
from bnb_ds.errors import ConfigError, DataError
from tests.launching import REPOSITORY
from tests.prep_helpers import content, prep, start, write_corpus

pytestmark = pytest.mark.slow
pytest.importorskip("distributed", reason="distributed, which is optional, is not installed")


class Cluster:
    """A scheduler and workers, each a process of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "DASK_DISTRIBUTED__ADMIN__TICK__LIMIT": "1h"}
        self.processes: list[subprocess.Popen] = []
        log = self._begin("scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard")
        self.address = self._wait_for(log, r"Scheduler at:\s+(tcp://\S+)")

    def worker(self) -> subprocess.Popen:
        """Start a worker of one thread."""
        options = ["--nthreads", "1", "--no-nanny", "--no-dashboard", "--local-directory", self._folder]
        log = self._begin("worker", self.address, *options)
        self._wait_for(log, r"(Registered to)")
        return self.processes[-1]

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()

    def _begin(self, kind: str, *options: str | Path) -> Path:
        log = self._folder / f"{len(self.processes)}.log"
        with log.open("w") as file:
            command = [sys.executable, "-m", "distributed.cli.dask_" + kind, *map(str, options)]
            environment = self._environment
            self.processes.append(
                subprocess.Popen(command, cwd=self._folder, env=environment, stdout=file, stderr=subprocess.STDOUT)
            )
        return log

    def _wait_for(self, log: Path, pattern: str) -> str:
        deadline = time.monotonic() + 120
        while (match := re.search(pattern, log.read_text())) is None:
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        return match[1]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    (tmp_path / "cluster").mkdir()
    found = Cluster(tmp_path / "cluster")
    yield found
    found.close()


@pytest.fixture
def command(tmp_path: Path, small_texts: list[str], small_tokenizer) -> list:
    save_tokenizer(small_tokenizer, tmp_path / "tokenizer")
    corpus = write_corpus(tmp_path / "corpus", small_texts, num_files=3)
    return ["text", "--input", corpus, "--tokenizer", tmp_path / "tokenizer", "--part-bytes", "1", "--drop-duplicates"]


def test_a_lost_worker(tmp_path: Path, cluster: Cluster, command: list) -> None:
    """The same bytes as on one machine, although one of two workers is killed in the middle."""
    workers = [cluster.worker() for _ in range(2)]
    output = tmp_path / "cluster-shards"
    run = start(*command, "--output", output, "--executor", "dask", "--scheduler", cluster.address)
    while run.poll() is None and not (output / ".partial" / "index-00000.npy").exists():
        time.sleep(0.01)
    assert run.poll() is None
    workers[0].send_signal(signal.SIGKILL)
    _, errors = run.communicate(timeout=300)
    assert run.returncode == 0, errors
    prep(*command, "--output", tmp_path / "alone")
    assert content(output) == content(tmp_path / "alone")


def test_errors_of_a_part(tmp_path: Path, cluster: Cluster, command: list) -> None:
    cluster.worker()
    (tmp_path / "corpus" / "2.jsonl").write_text('{"id": 1.5, "text": "x"}\n')
    options = ["--output", tmp_path / "s", "--executor", "dask", "--scheduler", cluster.address]
    with pytest.raises(DataError, match=r"2\.jsonl: line 1: the id is of type float"):
        prep(*command[:-1], *options)


def test_a_scheduler_that_is_not_there(tmp_path: Path, command: list, monkeypatch: pytest.MonkeyPatch) -> None:
    from data_prep.jobs import cluster as module

    monkeypatch.setattr(module, "_SECONDS_FOR_WORKERS", 1)
    options = ["--output", tmp_path / "s", "--executor", "dask", "--scheduler", "tcp://127.0.0.1:9"]
    with pytest.raises(ConfigError, match=r"--scheduler tcp://127\.0\.0\.1:9: no Dask scheduler answers there"):
        prep(*command, *options)


def test_a_cluster_without_workers(tmp_path: Path, cluster: Cluster, command: list, monkeypatch) -> None:
    from data_prep.jobs import cluster as module

    monkeypatch.setattr(module, "_SECONDS_FOR_WORKERS", 2)
    options = ["--output", tmp_path / "s", "--executor", "dask", "--scheduler", cluster.address]
    with pytest.raises(ConfigError, match=r"has no workers; start `dask worker tcp://"):
        prep(*command, *options)


def test_without_the_library(tmp_path: Path, command: list, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    options = ["--output", tmp_path / "s", "--executor", "dask", "--scheduler", "tcp://127.0.0.1:9"]
    with pytest.raises(ConfigError, match=r'--executor dask: not installed; pip install "\.\[cluster\]"'):
        prep(*command, *options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--executor", "dask"], "--executor dask and --scheduler ADDRESS need each other; give both or neither"),
        (["--scheduler", "x"], "--executor dask and --scheduler ADDRESS need each other; give both or neither"),
        (["--executor", "dask", "--scheduler", "x", "--workers", "2"], "--executor dask shares the work itself; leave"),
    ],
)
def test_options(tmp_path: Path, command: list, options: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        prep(*command, "--output", tmp_path / "s", *options)
