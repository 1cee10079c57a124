from __future__ import annotations

import re

import pytest
import torch

from bnb_ds.cli import main


@pytest.mark.slow
def test_both_ways_are_measured(fork_server, tmp_path):
    """The command runs in its own process, because DeepSpeed initialises a process group."""
    command = ["bench", "engine", "--size", "tiny", "--repeats", "1", "--stage", "0", "--stage", "2", "--tokens", "16"]
    code, text = fork_server.run("bnb-ds", command, tmp_path / "log")
    assert code == 0, text
    rows = re.findall(r"^\| (\d) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|", text, re.MULTILINE)
    assert [row[0] for row in rows] == ["0", "2"]
    assert all(float(bare) > 0 and float(engine) > 0 for _, bare, engine, _ in rows)
    assert "128 tokens a step" in text


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu(capsys):
    assert main(["bench", "engine", "--device", "cuda"]) == 2
    assert "--device cuda: torch sees no GPU here: use --device cpu" in capsys.readouterr().err
