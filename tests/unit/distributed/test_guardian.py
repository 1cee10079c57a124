"""What the guardian of rank 0 concludes from the states of the ranks."""

from __future__ import annotations

import contextlib
import json
import resource
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bnb_ds.distributed import guardian
from bnb_ds.distributed.guardian import Lines, RankState, judge

NOW = 1000.0
SILENCE, HANG = 60.0, 600.0


def states(**of_rank_1) -> list[RankState]:
    """Two ranks that are well at NOW, with these changes to rank 1."""
    well = {"host": "node7", "pid": 42, "step": 5, "phase": "backward", "progress": 9}
    times = {"heard": NOW, "moved": NOW, "event_since": NOW}
    return [RankState(0, **{**well, **times}), RankState(1, **{**well, **times, **of_rank_1})]


def test_all_is_well():
    assert judge(states(), NOW, SILENCE, HANG) is None
    assert judge(states(heard=NOW - 59), NOW, SILENCE, HANG) is None


@pytest.mark.parametrize(
    ("news", "verdict"),
    [
        ({"event": "died"}, "rank 1 (host node7, process 42) died in step 5, backward"),
        ({"event": "silent"}, "rank 1 (host node7, process 42) has not run for 60 s; it stopped in step 5, backward"),
        ({"heard": NOW - 61}, "rank 1 (host node7, process 42) cannot be reached for 60 s; it was in step 5, backward"),
    ],
)
def test_a_lost_rank_is_named(news, verdict):
    assert judge(states(**news), NOW, SILENCE, HANG) == verdict


def test_the_rank_that_is_behind_hangs():
    both = states(progress=7, phase="data")
    for state in both:
        state.moved = state.event_since = NOW - 601
    assert judge(both, NOW, SILENCE, HANG).endswith("hangs: no progress for 600 s in step 5, data")
    both[0].moved = NOW - 10
    assert judge(both, NOW, SILENCE, HANG) is None


def test_activity_of_one_rank_is_no_hang_and_does_not_put_the_others_behind():
    """Rank 0 has tokenised while rank 1 waited. Later both hang together."""
    both = states()
    for state in both:
        state.moved = state.event_since = NOW - 601
    news = {**vars(both[0]), "activity": 40}
    both[0].update(news)
    assert both[0].moved > NOW - 601
    both[0].moved = NOW - 601
    assert judge(both, NOW, SILENCE, HANG) == "all ranks hang: no progress for 600 s in step 5, backward"


def test_a_rank_that_has_waited_may_end_after_the_one_it_waited_for():
    both = states(moved=NOW - 5000)
    both[0].event, both[0].event_since = "bye", NOW - 1
    assert judge(both, NOW, SILENCE, HANG) is None
    for state in both:
        state.moved = state.event_since = NOW - 601
    verdict = "rank 1 (host node7, process 42) hangs: no progress for 600 s in step 5, backward"
    assert judge(both, NOW, SILENCE, HANG) == verdict


def test_ranks_that_hang_together():
    both = states()
    for state in both:
        state.moved = state.event_since = NOW - 601
    assert judge(both, NOW, SILENCE, HANG) == "all ranks hang: no progress for 600 s in step 5, backward"


def test_a_rank_that_fails_gets_time_for_its_message_and_the_others_for_theirs():
    assert judge(states(event="failed"), NOW + 1, SILENCE, HANG) is None
    assert judge(states(event="failed"), NOW + 16, SILENCE, HANG) == ""
    both = states(event="failed")
    both[0].event = "lost"  # only waits for the other rank
    assert judge(both, NOW + 1, SILENCE, HANG) == ""


def test_lost_connections_are_the_fault_of_whoever_died():
    both = states(event="lost", message="Connection closed by peer")
    assert judge(both, NOW + 1, SILENCE, HANG) is None
    both[0].event = "died"
    assert judge(both, NOW + 1, SILENCE, HANG).startswith("rank 0 (host node7, process 42) died")
    both[0].event = "beat"
    verdict = judge(both, NOW + 4, SILENCE, HANG)
    assert verdict.startswith("rank 1")
    assert verdict.endswith("lost its connections in step 5, backward: Connection closed by peer")


def test_a_rank_that_others_have_waited_for_in_vain():
    both = states(event="lost", message="timed out", progress=12)
    both[0].phase = "data"
    verdict = judge(both, NOW + 4, SILENCE, HANG)
    assert (
        verdict
        == "rank 0 (host node7, process 42) hangs in step 5, data; rank 1 waited for it and then lost its connections"
    )


def test_a_rank_that_has_ended_is_not_missed():
    assert judge(states(event="bye", heard=NOW - 1000), NOW, SILENCE, HANG) is None


def test_lines_out_of_pieces():
    lines = Lines()
    assert list(lines.feed(b"one\ntw")) == ["one"]
    assert list(lines.feed(b"o\n")) == ["two"]


def test_a_line_without_an_end_is_refused():
    lines = Lines()
    assert list(lines.feed(b"x" * 60_000)) == []
    with pytest.raises(ValueError, match="a line without an end"):
        list(lines.feed(b"x" * 60_000))


@contextlib.contextmanager
def hub(world_size: int, files: int | None = None):
    """The guardian of rank 0 in a process of its own, and the port on which it meets the others."""
    command = [sys.executable, "-S", "-E", str(Path(guardian.__file__)), "0", str(world_size), "10000", "10000"]
    limit = None if files is None else lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, preexec_fn=limit)
    try:
        process.stdin.write(json.dumps({"token": "secret"}).encode() + b"\n")
        process.stdin.flush()
        yield process, int(process.stdout.readline())
    finally:
        process.kill()
        process.communicate()


def news(rank: int, event: str) -> bytes:
    state = {"rank": rank, "host": "node", "pid": 1, "event": event, "step": 1, "phase": "data", "message": ""}
    return json.dumps({**state, "progress": 1, "activity": 0}).encode() + b"\n"


@pytest.mark.slow
def test_thousands_of_ranks():
    """More than the usual soft limit of open files; strangers and endless lines in between."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    num_peers = min(4096, hard - 300)
    try:
        with hub(num_peers + 1) as (process, port), contextlib.ExitStack() as stack:
            stranger = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            stranger.sendall(b"not the token\n")
            endless = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            peers = [
                stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=60)) for _ in range(num_peers)
            ]
            with contextlib.suppress(OSError):  # it hangs up in the middle
                endless.sendall(b"x" * (1 << 20))
            for rank, peer in enumerate(peers, 1):
                peer.sendall(b"secret\n" + news(rank, "beat") + news(rank, "bye"))
            process.stdin.write(news(0, "bye"))
            process.stdin.flush()
            assert process.wait(timeout=60) == 0
            for peer in peers:
                assert b"over\n" in b"".join(iter(lambda peer=peer: peer.recv(4096), b""))
            assert process.stderr.read() == b""
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_without_files_for_more_ranks_it_warns_and_lives_on():
    with hub(50, files=20) as (process, port), contextlib.ExitStack() as stack:
        for _ in range(40):
            stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        assert b"a rank cannot connect to its watchdog: [Errno 24] Too many open files" in process.stderr.readline()
        time.sleep(0.5)
        assert process.poll() is None
