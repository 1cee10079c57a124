"""Ranks that cannot meet: one line with the way out, soon."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys

import pytest

from tests import launching

pytestmark = pytest.mark.slow

_JOIN = """
import sys
from datetime import timedelta
from bnb_ds.distributed import ranks
from bnb_ds.errors import run_reporting_errors
sys.exit(run_reporting_errors("pretrain.py", lambda: ranks.init(timedelta(seconds=5)) and None))
"""


def join(rank: int, world_size: int, port: int) -> subprocess.CompletedProcess[str]:
    meeting = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
    meeting |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "DS_ACCELERATOR": "cpu"}
    command = [sys.executable, "-c", _JOIN]
    return subprocess.run(command, env={**os.environ, **meeting}, capture_output=True, text=True, check=False)


def error_lines(result: subprocess.CompletedProcess[str]) -> list[str]:
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    return [line for line in result.stderr.splitlines() if ": error" in line]


def test_a_busy_port():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        (line,) = error_lines(join(0, 1, port))
    expected = rf"rank 0 cannot meet the other ranks at 127\.0\.0\.1:{port} \(the port is in use\); choose another one"
    assert re.search(expected, line)


def test_a_master_that_is_not_there():
    (line,) = error_lines(join(1, 2, launching.free_port()))
    assert "rank 1 cannot meet the other ranks at 127.0.0.1:" in line
    assert "check that every rank runs and reaches that host" in line


def test_a_rank_that_never_comes():
    (line,) = error_lines(join(0, 2, launching.free_port()))
    assert "rank 0 cannot meet the other ranks at 127.0.0.1:" in line
