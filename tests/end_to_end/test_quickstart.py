"""The scripts for new users."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Sequence

import pytest

from bnb_ds.train.tracking import read_scalars
from tests import launching

QUICKSTART = ["bash", "runs/quickstart.sh"]


def run(*arguments: str, timeout: float = 600, core: Sequence[str] = ()):
    # The virtual environment of the tests already has everything that the script would install.
    command = [*core, *QUICKSTART, *arguments]
    return launching.run(command, timeout=timeout, env=launching.environment(BNB_VENV=sys.prefix))


@pytest.mark.slow
def test_quickstart_from_nothing_and_again(tmp_path):
    work = tmp_path / "work"
    first = run("--steps", "40", "--work", str(work))
    assert first.returncode == 0, first.stdout + first.stderr
    start, end = re.search(r"train/loss +([\d.]+) at step 10 -> ([\d.]+) at step 40", first.stdout).groups()
    assert float(end) < 0.8 * float(start)
    assert first.stdout.count("source    ") == 3
    assert "start        step 20, from" in first.stdout
    assert f"--logdir {work}/run-40/runs" in first.stdout
    assert [step for step, _ in read_scalars(work / "run-40" / "runs")["train/loss"]] == [10, 20, 30, 40]
    second = run("--steps", "40", "--work", str(work))
    assert second.returncode == 0, second.stdout + second.stderr
    assert second.stdout.count("reusing") == 5
    assert "start        step" not in second.stdout


@pytest.mark.slow
def test_quickstart_takes_a_corpus(tmp_path, small_texts):
    corpus = tmp_path / "mine.txt"
    corpus.write_text("\n\n".join(small_texts * 3))
    # On a machine with one core, it uses one rank.
    core = ["taskset", "-c", str(min(os.sched_getaffinity(0)))] if shutil.which("taskset") else []
    result = run("--corpus", str(corpus), "--steps", "4", "--work", str(tmp_path / "work"), core=core)
    assert result.returncode == 0, result.stdout + result.stderr
    assert not core or "first half (on 1 ranks, stopped at step 2)" in result.stdout
    assert f"yours: {corpus}" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "1"], "quickstart: error: --steps 1: give a whole number of at least 2"),
        (["--steps"], "quickstart: error: --steps needs a value"),
        (["--corpus", "/nowhere/at/all"], "quickstart: error: --corpus /nowhere/at/all: no such file or directory"),
        (["--help"], "bash runs/quickstart.sh [--corpus FILE_OR_DIR] [--steps N] [--work DIR]"),
    ],
)
def test_quickstart_misuse(arguments, message):
    result = run(*arguments)
    assert result.returncode == 2
    assert message in result.stderr


def test_the_test_command_collects_the_suite():
    command = ["bash", "runs/test.sh", "--collect-only", "-q", "tests/unit/test_style.py"]
    result = launching.run(command, env=launching.environment(BNB_VENV=sys.prefix))
    assert result.returncode == 0, result.stdout + result.stderr
    assert "test_style.py::test_ruff[check]" in result.stdout
