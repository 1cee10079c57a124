"""Trials of kernels and packages: their faults in one line, and that none hangs for ever."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from bnb_ds.common import trials
from bnb_ds.common.trials import expect, fault_of

IT = ("it", "nothing helps")


def test_faults_in_one_line():
    def fail():
        raise RuntimeError("first\n  second" + "x" * 500)

    fault = fault_of(fail, *IT)
    assert fault.startswith("RuntimeError: first second")
    assert len(fault) < 200
    assert fault_of(lambda: None, *IT) is None
    square = torch.ones(2, 2, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):  # a trial compares without it
        third = torch.full((2, 2), 2 / 3)
        assert fault_of(lambda: expect("third", square @ (square / 3), third, 1e-6), *IT) is None
    expect("same", torch.tensor([1.0, -torch.inf]), torch.tensor([1.0, -torch.inf]), 1e-6)
    for wrong in ([1.1, -torch.inf], [1.0, torch.nan], [1.0, 0.0]):
        with pytest.raises(ArithmeticError, match=r"wrong numbers \(it\)"):
            expect("it", torch.tensor(wrong), torch.tensor([1.0, -torch.inf]), 1e-6)


HANGS = """
import sys, threading
from bnb_ds.common import trials
trials._SECONDS = 0.2
print(trials.fault_of(lambda: threading.Event().wait(60), "a kernel", "set BNB_KERNELS=none"))
"""


@pytest.mark.slow
def test_a_trial_that_hangs_ends_the_process_with_one_line():
    result = subprocess.run([sys.executable, "-c", HANGS], capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "error: trying a kernel has not ended after 0.2 s: set BNB_KERNELS=none\n"


@pytest.mark.parametrize("trial", [lambda: None, lambda: 1 / 0])
def test_a_trial_that_ends_is_left_alone(trial, monkeypatch):
    timers = []

    class Timer:
        def __init__(self, seconds, function):
            self.events = [seconds]
            timers.append(self)

        def start(self):
            self.events.append("started")

        def cancel(self):
            self.events.append("cancelled")

    monkeypatch.setattr(trials.threading, "Timer", Timer)
    fault_of(trial, *IT)
    assert [timer.events for timer in timers] == [[trials._SECONDS, "started", "cancelled"]]
