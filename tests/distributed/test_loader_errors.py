"""If one rank cannot read its samples, all ranks end with the same error instead of waiting."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("missing", "rank 1: train-00003.tokens.npy: cannot be read: No such file or directory"),
        ("slow", "rank 1: no data for 2 s: waiting for train-00003.tokens.npy; mend the storage or raise"),
    ],
)
def test_both_ranks_say_what_rank_1_met(tmp_path, fork_server, fault, message):
    launch = fork_server.launch([fault], tmp_path / "log", program="tests.distributed.failing_loader")
    assert launch.wait() == [2, 2], launch.text()
    lines = launch.text().splitlines()
    for rank in range(2):
        prefix = "failing_loader: error" + (" on rank 1" if rank else "")
        assert len([line for line in lines if line.startswith(f"{prefix}: {message}")]) == 1, launch.text()
        assert f"rank {rank} has step 2" in lines
        assert f"rank {rank} has step 3" not in lines
    assert "Traceback" not in launch.text()
