"""Long work of one rank is no hang: it may download, hash, tokenise or save for longer than `hang_seconds`."""

from __future__ import annotations

import signal

import pytest

pytestmark = pytest.mark.slow


def test_work_is_progress(tmp_path, fork_server):
    launch = fork_server.launch([str(tmp_path)], tmp_path / "log", program="tests.distributed.long_work")
    assert launch.wait() == [0, 0], launch.text()


def test_doing_nothing_is_a_hang(tmp_path, fork_server):
    launch = fork_server.launch([], tmp_path / "log", program="tests.distributed.long_work")
    assert launch.wait() == [-signal.SIGKILL] * 2
    assert "all ranks hang: no progress for 6 s in step 0, download; the whole job ends" in launch.text()
