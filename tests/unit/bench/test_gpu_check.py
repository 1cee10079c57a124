"""The check of a GPU, in a dry run on the CPU: every part runs, finds nothing wrong, and ends in one table."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from bnb_ds.bench.gpu_check import cases, host_waits, launches, parts, speed
from bnb_ds.bench.gpu_check.figures import FAILED, MISSED, OK, Figures, read_figures
from tests.launching import REPOSITORY


@pytest.mark.slow
@pytest.mark.parametrize("part", parts.PARTS)
def test_every_part_runs_on_a_cpu(part, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Figures, "milliseconds", once)
    assert parts.main([part, "--dry", "--out", str(tmp_path)]) == 0
    figures = read_figures(tmp_path / "figures.jsonl")
    assert figures
    assert [figure for figure in figures if figure.verdict == FAILED] == []
    assert parts.main(["table", "--out", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["failed"] == 0
    assert len(report["figures"]) == len(figures)
    assert f"{len(figures)} figures, 0 failed" in capsys.readouterr().out


def once(figures, run, repeats=5, warm=2):
    run()
    return 2.0, 1.0


def test_wrong_results_and_broken_parts_are_failures(tmp_path, monkeypatch, capsys):
    def wrong(figures, scale):
        """A part that is wrong."""
        figures.check("not a number", float("nan"), 1.0)
        figures.compare("twice", torch.ones(2) * 2, torch.ones(2), 0.5)
        figures.goal("slow", 0.3, 0.5)
        figures.goal("fast", 0.6, 0.5)
        raise RuntimeError("CUDA error: an illegal memory access")

    def after(figures, scale):
        """Runs all the same."""
        figures.put("after", 1)

    monkeypatch.setattr(host_waits, "waits", wrong)
    monkeypatch.setattr(host_waits, "pinned", after)
    assert parts.main(["waits", "--dry", "--out", str(tmp_path)]) == 0
    assert parts.main(["table", "waits", "head_speed", "--out", str(tmp_path)]) == 1
    report = json.loads((tmp_path / "report.json").read_text())
    verdicts = [figure["verdict"] for figure in report["figures"]]
    assert verdicts == [FAILED, FAILED, MISSED, OK, FAILED, "", "", FAILED]
    assert report["figures"][-1]["part"] == "head_speed"
    out = capsys.readouterr().out
    assert "RuntimeError: CUDA error: an illegal memory access" in out
    assert "8 figures, 4 failed" in out


def test_a_wrong_head_is_seen(tmp_path, monkeypatch):
    original = cases.HeadBatch.step
    monkeypatch.setattr(
        cases.HeadBatch,
        "step",
        lambda batch: tuple(x * (1.01 if x.dtype == torch.float32 else 1) for x in original(batch)),
    )
    parts.main(["head_accuracy", "--dry", "--out", str(tmp_path)])
    failed = {figure.name for figure in read_figures(tmp_path / "figures.jsonl") if figure.verdict == FAILED}
    assert "CTC, even, torch.float32: of hidden" in failed
    assert not any("float64" in name for name in failed)


def run_script(tmp_path, **variables):
    environment = {**os.environ, "DRY": "1", "OUT": str(tmp_path), "PYTHON": sys.executable, **variables}
    command = ["bash", str(REPOSITORY / "runs" / "gpu_check.sh")]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=600)


def test_the_script_ends_parts_for_which_no_time_is_left(tmp_path):
    result = run_script(tmp_path, PARTS="waits environment", SECONDS_IN_ALL="0")
    assert result.returncode == 1, result.stderr
    assert "2 figures, 2 failed" in result.stdout
    assert (tmp_path / "report.txt").read_text().count("did not end") == 2
    for wrong, parts_given in {"nothing": "nothing", "wait": "waits wait"}.items():
        refused = run_script(tmp_path, PARTS=parts_given)
        assert (refused.returncode, refused.stderr) == (2, f"PARTS: there is no such part: {wrong}\n")


def test_paths_are_those_of_the_caller(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # A link would hide the environment from some builds of Python.
    (tmp_path / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (tmp_path / "python").chmod(0o755)
    result = run_script("results", PARTS="waits", PYTHON="./python", SECONDS_IN_ALL="0")
    assert "1 figures, 1 failed" in result.stdout, result.stderr
    assert (tmp_path / "results" / "report.json").exists()


def test_launches_that_grow_with_texts_fail_the_check(tmp_path, monkeypatch):
    figures = Figures("recurrences", tmp_path / "figures.jsonl", torch.device("cpu"))
    ran = []
    # The run counts itself: here one launch for each token, there one for each time that the text doubles.
    monkeypatch.setattr(launches, "_launches", lambda figures, run: run())
    for name, count in {"a loop": lambda length: length, "a few more": lambda length: length.bit_length() * 6}.items():
        launches._compare(figures, name, lambda length, count=count: ran.append(length) or count(length))
    assert max(ran) <= launches._MODEL["max_position_embeddings"] // 2  # a text of n tokens has 2n slots
    found = {figure.name: figure.verdict for figure in read_figures(tmp_path / "figures.jsonl")}
    assert found == {"a loop: launches more": "FAILED", "a few more: launches more": "ok"}


def test_a_broken_triton_is_a_line_of_the_table(tmp_path, monkeypatch):
    (tmp_path / "triton.py").write_text("raise OSError('libcuda.so.1: cannot open shared object file')")
    monkeypatch.delitem(sys.modules, "triton", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    figures = Figures("environment", tmp_path / "figures.jsonl", torch.device("cpu"))
    speed.environment(figures, cases.Scale(True))
    named = {figure.name: figure for figure in read_figures(tmp_path / "figures.jsonl")}
    assert named["triton"].value == "missing: libcuda.so.1: cannot open shared object file"
    assert named["CTC"].value == "CTC in batched PyTorch (cpu)"


@pytest.mark.slow
def test_the_script_runs_without_deepspeed(tmp_path):
    (tmp_path / "deepspeed").mkdir()
    (tmp_path / "deepspeed" / "__init__.py").write_text("raise ImportError('not installed')")
    path = f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    few = ["environment", "head_accuracy", "waits"]  # every part runs above, in this process
    result = run_script(tmp_path / "out", PYTHONPATH=path, SECONDS_IN_ALL="550", PARTS=" ".join(few))
    assert result.returncode == 0, result.stdout + result.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert {figure["part"] for figure in report["figures"]} == set(few)
    assert (tmp_path / "out" / "report.txt").read_text() == result.stdout
