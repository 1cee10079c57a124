"""Child processes end with the process that started them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bnb_ds.common.children import ctrl_c_held_back, run_in_session

# Starts a child that waits, and says its number.
_PARENT = """
import subprocess
from bnb_ds.common.children import child_command
child = subprocess.Popen(child_command("timeit", "-n", "1", "-r", "1", "-s", "import time", "time.sleep(60)"))
print(child.pid, flush=True)
child.wait()
"""


def state_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "gone"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_child_ends_with_its_parent(number):
    with subprocess.Popen([sys.executable, "-c", _PARENT], stdout=subprocess.PIPE, text=True) as parent:
        child = int(parent.stdout.readline())
        deadline = time.monotonic() + 20
        while b"timeit" not in (command := Path(f"/proc/{child}/cmdline").read_bytes()) or _catches_sigint(child):
            assert time.monotonic() < deadline, command
            time.sleep(0.01)
        os.kill(child, signal.SIGINT)  # Ctrl-C reaches all processes of a terminal; the parent decides
        time.sleep(0.05)
        assert state_of(child) in "SR"
        parent.send_signal(number)
        assert parent.wait(10) == -number
        while state_of(child) in "SRD":
            assert time.monotonic() < deadline
            time.sleep(0.01)


def _catches_sigint(pid: int) -> bool:
    """Whether a process has not yet come so far as to ignore SIGINT."""
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return not int(status["SigIgn"], 16) >> (signal.SIGINT - 1) & 1


def test_a_child_whose_parent_has_ended_already_does_nothing():
    command = [sys.executable, "-m", "bnb_ds.common.children", "1", "this"]
    result = subprocess.run(command, capture_output=True, check=False)
    assert (result.returncode, result.stdout) == (137, b"")


def test_children_of_a_block_never_see_ctrl_c():
    with ctrl_c_held_back():
        child = subprocess.Popen([sys.executable, "-c", "print('up', flush=True); input()"], stdin=-1, stdout=-1)
        os.kill(child.pid, signal.SIGINT)
    assert child.stdout.readline() == b"up\n"
    os.kill(child.pid, signal.SIGINT)
    child.communicate(b"\n", timeout=20)
    assert child.returncode == 0
    with pytest.raises(KeyboardInterrupt), ctrl_c_held_back():
        os.kill(os.getpid(), signal.SIGINT)


# Runs a shell and a program below it, and interrupts itself once the program has come up.
_INTERRUPTED = """
import pathlib, signal, sys, threading, time
from bnb_ds.common.children import run_in_session
ready, ended = map(pathlib.Path, sys.argv[1:])
def interrupt():
    while not ready.exists():
        time.sleep(0.01)
    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
threading.Thread(target=interrupt, daemon=True).start()
program = "import pathlib, signal, time; "
program += f"signal.signal(15, lambda *_: (pathlib.Path({str(ended)!r}).touch(), exit())); "
program += f"pathlib.Path({str(ready)!r}).touch(); time.sleep(60)"
try:
    run_in_session(["sh", "-c", f"{sys.executable} -c \\"$0\\"; true", program])
except KeyboardInterrupt:
    print(ended.exists())
"""


def test_a_session_is_given_time_to_end(tmp_path):
    command = [sys.executable, "-c", _INTERRUPTED, str(tmp_path / "ready"), str(tmp_path / "ended")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (result.stdout, result.stderr) == ("True\n", "")


def test_a_session_is_no_rank_of_this_process_job(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("OTHER", "8")
    program = "import os, sys; sys.exit(7 * (os.environ['OTHER'] == '8' and 'WORLD_SIZE' not in os.environ))"
    assert run_in_session([sys.executable, "-c", program]) == 7
