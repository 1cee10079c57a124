"""Two launches in one output directory: the second ends with one line, and a lock of the dead is taken over."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time

import pytest

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
