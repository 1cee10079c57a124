"""A rank that cannot read its samples ends all ranks with the same error, instead of leaving them to wait."""

from __future__ import annotations

import pytest

from tests import launching

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("missing", "rank 1: train-00003.tokens.npy: cannot be read: No such file or directory"),
        ("slow", "rank 1: no data for 2 s: waiting for train-00003.tokens.npy; mend the storage or raise"),
    ],
)
def test_both_ranks_say_what_rank_1_met(fault, message, monkeypatch):
    # Started by hand, so that no launcher kills one rank when the other has ended.
    port = str(launching.free_port())
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [str(launching.BIN / "python"), "-m", "tests.distributed.failing_loader", fault]
    processes = [
        launching.start(command, env=launching.environment(RANK=rank, LOCAL_RANK=rank, **shared)) for rank in "01"
    ]
    try:
        results = [process.communicate(timeout=launching.TIMEOUT_SECONDS) for process in processes]
    except BaseException:
        for process in processes:
            launching.kill(process)
        raise
    for rank, (process, (output, errors)) in enumerate(zip(processes, results, strict=True)):
        assert process.returncode == 2, output + errors
        prefix = "failing_loader: error" + (" on rank 1" if rank else "")
        assert next(line for line in errors.splitlines() if ": error" in line).startswith(f"{prefix}: {message}")
        assert "Traceback" not in errors
        assert f"rank {rank} has step 2" in output
        assert f"rank {rank} has step 3" not in output
