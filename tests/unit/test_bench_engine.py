from __future__ import annotations

import re
import sys

import pytest
import torch

from bnb_ds.cli import main
from tests import launching


@pytest.mark.slow
def test_both_ways_are_measured():
    command = [sys.executable, "-m", "bnb_ds.cli", "bench", "engine", "--size", "tiny", "--repeats", "1"]
    result = launching.run([*command, "--stage", "0", "--stage", "2", "--tokens", "16"])
    assert result.returncode == 0, result.stderr
    rows = re.findall(r"^\| (\d) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|", result.stdout, re.MULTILINE)
    assert [row[0] for row in rows] == ["0", "2"]
    assert all(float(bare) > 0 and float(engine) > 0 for _, bare, engine, _ in rows)
    assert "128 tokens a step" in result.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu(capsys):
    assert main(["bench", "engine", "--device", "cuda"]) == 2
    assert "--device cuda: torch sees no GPU here: use --device cpu" in capsys.readouterr().err
