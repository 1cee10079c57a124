"""A step that takes long says what it does."""

from __future__ import annotations

import re
import time

import torch

from bnb_ds.train.heartbeat import Heartbeat
from bnb_ds.train.phases import Phases
from bnb_ds.train.tracking import Tracker


def test_a_long_step_says_how_far_it_is(tmp_path, capsys):
    tracker = Tracker(tmp_path / "runs", start_step=0, total_steps=2)
    phases = Phases(torch.device("cpu"))
    deadline = time.monotonic() + 30
    said = []
    with (
        Heartbeat(tracker, phases, silence_seconds=0.02),
        phases("data", 1),
        phases("forward", 1, "micro step 3 of 64"),
    ):
        while len(said) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
            said += capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"step 1  running for \d+ s, now: forward, micro step 3 of 64", said[0])
    tracker.close()


def test_no_silence_no_line(tmp_path, capsys):
    tracker = Tracker(tmp_path / "runs", start_step=0, total_steps=100)
    with Heartbeat(tracker, Phases(torch.device("cpu")), silence_seconds=60):
        for step in range(1, 101):
            tracker.scalars(step, {"train/loss": 1.0})
            tracker.advance()
    tracker.close()
    assert "running for" not in capsys.readouterr().out
