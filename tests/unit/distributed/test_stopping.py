from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from bnb_ds.distributed.stopping import STOP_FILE_VARIABLE, StopRequest
from tests import launching


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_is_noted_and_the_old_handler_comes_back(number):
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert stop.reason is None
        os.kill(os.getpid(), number)
        assert stop.reason == signal.Signals(number).name
    assert signal.getsignal(number) is before


def test_ctrl_c_is_answered_at_once(capfd, monkeypatch):
    """The step that runs may take minutes. Only one rank answers."""
    answers = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        with StopRequest():
            os.kill(os.getpid(), signal.SIGINT)
        answers.append(capfd.readouterr().err)
    asked = "Ctrl-C: the run ends after this step, with a checkpoint; press Ctrl-C again to end it at once"
    assert answers == [f"\n{asked}\n", ""]


def test_a_second_interrupt_is_not_held_back():
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.reason == "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_file(tmp_path, monkeypatch):
    monkeypatch.setenv(STOP_FILE_VARIABLE, str(tmp_path / "stop"))
    with StopRequest() as stop:
        assert stop.reason is None
        (tmp_path / "stop").touch()
        assert stop.reason == f"file {tmp_path / 'stop'}"


CHILD = (
    launching.LIGHT
    + """
import time
from bnb_ds.distributed.stopping import StopRequest
stop = StopRequest()
print("ready", flush=True)
deadline = time.monotonic() + 20
while stop.reason is None and time.monotonic() < deadline:
    time.sleep(0.01)
print(stop.reason, flush=True)
"""
)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "reason"), [("deepspeed", "its launcher is gone"), ("shell", "None")])
def test_the_launcher_is_missed_and_a_shell_is_not(tmp_path, name, reason):
    """The parent is a program of that name, which dies. The child then prints to the pipe of this test."""
    parent = tmp_path / name
    code = CHILD if name == "deepspeed" else CHILD.replace("+ 20", "+ 1")
    parent.write_text(f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {code!r}])\n")
    process = subprocess.Popen([sys.executable, str(parent)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.kill()
    assert process.stdout.readline() == f"{reason}\n"
    process.communicate()
