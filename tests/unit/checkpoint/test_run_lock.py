"""Two launches in one output directory: the second ends with one line, and a lock of the dead is taken over."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
import time

import pytest

from bnb_ds.checkpoint import run_lock
from bnb_ds.checkpoint.run_lock import LOCK_FILE, STALE_SECONDS, RunLock
from bnb_ds.errors import ConfigError

_HOLD = """
import sys, time
from pathlib import Path
from bnb_ds.checkpoint.run_lock import RunLock
with RunLock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
    """Wait less for a launch that may just be ending."""
    monkeypatch.setattr(run_lock, "_DYING_SECONDS", 0.3)


def hold(directory, seconds: float) -> subprocess.Popen[str]:
    """A process that holds the lock for some seconds."""
    command = [sys.executable, "-c", _HOLD, str(directory), str(seconds)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def test_the_second_launch_names_the_first(tmp_path):
    process = hold(tmp_path / "run", 60)
    try:
        expected = (
            rf"process {process.pid} on host {socket.gethostname()} is writing here; wait until it ends, or stop it"
        )
        with pytest.raises(ConfigError, match=expected), RunLock(tmp_path / "run"):
            pass
        assert (tmp_path / "run" / LOCK_FILE).exists(), "the refused launch has removed the other's lock"
    finally:
        process.kill()
        process.wait()


def test_a_killed_launch_blocks_nobody(tmp_path):
    process = hold(tmp_path, 60)
    process.kill()
    process.wait()
    with RunLock(tmp_path):
        assert json.loads((tmp_path / LOCK_FILE).read_text())["process"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_a_number_that_another_process_has_now_is_no_holder(tmp_path):
    """After a restart of the host, the old number may belong to anything."""
    lock = {"host": socket.gethostname(), "process": os.getppid(), "started": "1"}
    (tmp_path / LOCK_FILE).write_text(json.dumps(lock))
    with RunLock(tmp_path):
        pass


def test_another_host_is_believed_until_its_lock_is_stale(tmp_path):
    path = tmp_path / LOCK_FILE
    path.write_text(json.dumps({"host": "node17", "process": 5, "started": "7"}))
    expected = (
        rf"process 5 on host node17 is writing here; .* start again in {STALE_SECONDS:.0f} s or remove .*{LOCK_FILE}"
    )
    with pytest.raises(ConfigError, match=expected), RunLock(tmp_path):
        pass
    old = time.time() - 2 * STALE_SECONDS
    os.utime(path, (old, old))
    with RunLock(tmp_path):
        assert json.loads(path.read_text())["host"] == socket.gethostname()


@pytest.mark.parametrize("content", ["", "[]", '{"host":'])
def test_a_lock_that_cannot_be_read_is_somebodys(tmp_path, content):
    (tmp_path / LOCK_FILE).write_text(content)
    with pytest.raises(ConfigError, match="another launch is writing here"), RunLock(tmp_path):
        pass


def test_a_directory_that_was_made_for_nothing_goes_again(tmp_path):
    with pytest.raises(RuntimeError), RunLock(tmp_path / "run"):
        raise RuntimeError
    assert not (tmp_path / "run").exists()


def test_of_many_that_come_at_once_one_holds_it(tmp_path):
    """Each appends a line when it begins and when it ends: between two of one process there is none of another."""
    code = """
import os, sys, time
from pathlib import Path
from bnb_ds.checkpoint.run_lock import RunLock
from bnb_ds.errors import ConfigError
directory, log = Path(sys.argv[1]), sys.argv[2]
def say(word):
    with open(log, "a") as file:
        file.write(f"{word} {os.getpid()}\\n")
for _ in range(40):
    try:
        with RunLock(directory):
            say("begin")
            time.sleep(0.002)
            say("end")
    except ConfigError:
        time.sleep(0.001)
"""
    log = tmp_path / "log"
    command = [sys.executable, "-c", code, str(tmp_path / "run"), str(log)]
    processes = [subprocess.Popen(command) for _ in range(4)]
    assert [process.wait() for process in processes] == [0] * 4
    lines = [line.split() for line in log.read_text().splitlines()]
    for (begin, first), (end, second) in zip(lines[::2], lines[1::2], strict=True):
        assert (begin, end) == ("begin", "end")
        assert first == second
    assert len({pid for _, pid in lines}) > 1


def test_a_container_that_shares_the_name_of_its_host_is_believed_for_a_while(tmp_path):
    """Its process numbers say nothing here: the holder lives, though no such process is to be seen."""
    path = tmp_path / LOCK_FILE
    lock = {"host": socket.gethostname(), "process": 2**22 + 1, "started": "7", "processes_of": "pid:[1]"}
    path.write_text(json.dumps(lock))
    expected = r"is writing here; .* start again in 60 s or remove .*lock.json"
    with pytest.raises(ConfigError, match=expected), RunLock(tmp_path):
        pass
    old = time.time() - 61
    os.utime(path, (old, old))
    with RunLock(tmp_path):
        pass


def test_a_holder_that_only_its_owner_may_look_at_lives(tmp_path, monkeypatch):
    """With ``hidepid``, /proc shows no process of another user."""

    def refused(process, signal):
        raise PermissionError

    process = hold(tmp_path, 60)
    try:
        real = run_lock._start_of
        monkeypatch.setattr(run_lock, "_start_of", lambda pid: None if pid == process.pid else real(pid))
        monkeypatch.setattr(run_lock.os, "kill", refused)
        with pytest.raises(ConfigError, match=f"process {process.pid} on host"), RunLock(tmp_path):
            pass
    finally:
        monkeypatch.undo()
        process.kill()
        process.wait()


@pytest.mark.parametrize("fault", [errno.EPERM, errno.ENOTSUP, None])
def test_storage_without_hard_links_is_locked_too(tmp_path, monkeypatch, fault):
    """Some refuse to make one; others make it, and count one link all the same."""
    link, stat = os.link, os.stat

    def refused(source, target):
        if fault is not None:
            raise OSError(fault, os.strerror(fault), str(target))
        link(source, target)

    def one_link(path, **more):
        found = stat(path, **more)
        return os.stat_result([*found[:3], 1, *found[4:10]])

    monkeypatch.setattr(run_lock.os, "link", refused)
    monkeypatch.setattr(run_lock.os, "stat", one_link)
    with RunLock(tmp_path):
        assert json.loads((tmp_path / LOCK_FILE).read_text())["process"] == os.getpid()
        with pytest.raises(ConfigError, match=f"process {os.getpid()} on host"), RunLock(tmp_path):
            pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("job", "start", "is_free"), [("77", "1", True), ("77", None, False), ("78", "1", False)])
def test_a_slurm_job_that_was_queued_again_does_not_wait_for_itself(tmp_path, monkeypatch, job, start, is_free):
    """Slurm starts a job again after its node has failed, on another node: its earlier start is over."""
    lock = {"host": "node17", "process": 5, "started": "7", "slurm": ["77", "0"]}
    (tmp_path / LOCK_FILE).write_text(json.dumps(lock))
    monkeypatch.setenv("SLURM_JOB_ID", job)
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
    if start is not None:
        monkeypatch.setenv("SLURM_RESTART_COUNT", start)
    if is_free:
        with RunLock(tmp_path):
            assert json.loads((tmp_path / LOCK_FILE).read_text())["slurm"] == ["77", "1"]
    else:
        with pytest.raises(ConfigError, match="process 5 on host node17 is writing here"), RunLock(tmp_path):
            pass
