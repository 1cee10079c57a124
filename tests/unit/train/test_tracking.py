from __future__ import annotations

import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios

import pytest

from bnb_ds.errors import DataError
from bnb_ds.train.tracking import Tracker, read_metrics, read_scalars
from tests import launching

SCRIPT = (
    launching.LIGHT
    + """
from pathlib import Path
from bnb_ds.train.tracking import Tracker
tracker = Tracker(Path({log_dir!r}) / "runs", start_step=0, total_steps=3)
for step in (1, 2, 3):
    tracker.scalars(step, {{"train/loss": 1.0 / step}})
    tracker.advance()
tracker.close()
"""
)


def test_resume_supersedes_what_came_after_the_checkpoint(tmp_path):
    runs = tmp_path / "runs"
    first = Tracker(runs, start_step=0, total_steps=4)
    for step in (1, 2, 3):
        first.scalars(step, {"train/loss": float(step)})
    first.close()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "train/l')  # a kill in the middle of a line
    second = Tracker(runs, start_step=1, total_steps=4)
    for step in (2, 3, 4):
        second.scalars(step, {"train/loss": 10.0 * step})
    second.close()
    assert read_scalars(runs)["train/loss"] == [(1, 1.0), (2, 20.0), (3, 30.0), (4, 40.0)]
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows == [{"step": step, "train/loss": loss} for step, loss in read_scalars(runs)["train/loss"]]


def test_other_ranks_are_silent(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    tracker = Tracker(tmp_path / "runs", start_step=0, total_steps=2)
    tracker.scalars(1, {"train/loss": 1.0})
    tracker.advance()
    tracker.say("hello")
    tracker.close()
    assert capsys.readouterr() == ("", "")
    assert not list(tmp_path.iterdir())


def test_off_a_terminal_there_are_lines_and_no_bar(tmp_path):
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(log_dir=str(tmp_path))], capture_output=True, text=True, check=True
    )
    assert result.stdout.splitlines() == ["step 1  loss 1", "step 2  loss 0.5", "step 3  loss 0.3333"]
    assert result.stderr == ""


def test_on_a_terminal_there_is_a_bar(tmp_path):
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))  # 24 lines of 100 columns
    subprocess.run(
        [sys.executable, "-c", SCRIPT.format(log_dir=str(tmp_path))], stdout=terminal, stderr=terminal, check=True
    )
    os.close(terminal)
    shown = os.read(controller, 1 << 16).decode()
    os.close(controller)
    assert "3/3" in shown
    assert "step 2  loss 0.5" in shown


def test_nothing_logged_names_the_way_out(tmp_path):
    with pytest.raises(DataError, match="nothing was logged here; give the output_dir of a run"):
        read_scalars(tmp_path)


def test_an_evaluation_that_is_made_again_is_logged_once(tmp_path):
    """Killed after the evaluation was logged and before its score was in the checkpoint."""
    runs = tmp_path / "runs"
    first = Tracker(runs, start_step=0, total_steps=4)
    first.scalars(2, {"train/loss": 3.0})
    first.scalars(2, {"eval/loss": 5.0})
    first.close()
    second = Tracker(runs, start_step=2, total_steps=4, evaluation_due=True)
    second.scalars(2, {"eval/loss": 5.0})
    second.close()
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 2, "train/loss": 3.0}, {"step": 2, "eval/loss": 5.0}]
    assert read_scalars(runs) == {"train/loss": [(2, 3.0)], "eval/loss": [(2, 5.0)]}
