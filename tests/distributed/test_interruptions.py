"""Ranks that are killed, paused or asked to stop. The job ends in time, names the rank, and resumes exactly from its
last checkpoint."""

from __future__ import annotations

import random
import re
import signal
import time

import pytest

from tests import launching
from tests.jobs import Job

pytestmark = pytest.mark.slow

STEPS = 24
SILENCE_SECONDS = 4
SETTINGS = [f"steps={STEPS}", "intervals.checkpoint_steps=2", f"faults.silence_seconds={SILENCE_SECONDS}"]


def history(job: Job) -> list[tuple[int, float, int]]:
    rows = [row for row in job.metrics() if "train/loss" in row]
    return [(row["step"], row["train/loss"], row["sample_fingerprint"]) for row in rows]


@pytest.fixture(scope="module")
def uninterrupted(small_shards, fork_server, tmp_path_factory):
    job = Job(tmp_path_factory.mktemp("uninterrupted"), small_shards)
    job.train_forked(fork_server, *SETTINGS)
    return job


def assert_same(job: Job, reference: Job) -> None:
    assert history(job) == history(reference)
    theirs = reference.weights()
    assert all(weight.equal(theirs[name]) for name, weight in job.weights().items())


def test_random_ranks_killed_at_random_steps(tmp_path, small_shards, fork_server, uninterrupted):
    """One run is killed five times, each time only one rank. Dropout is on."""
    job = Job(tmp_path, small_shards)
    dice = random.Random(6)
    victims = []
    for _ in range(5):
        before = job.last_step()
        launch = job.fork(fork_server, *SETTINGS, "--resume", "auto")
        at, victim = before + dice.randint(1, 4), dice.randrange(2)
        launch.wait_for(lambda at=at: job.last_step() >= at)
        launch.kill(victim)
        started = time.monotonic()
        codes = launch.wait()
        assert codes == [-signal.SIGKILL] * 2, launch.text()
        assert time.monotonic() - started < 3 * SILENCE_SECONDS
        errors = [line for line in launch.text().splitlines() if "error" in line]
        assert len(errors) == 1, launch.text()
        pattern = rf"bnb_ds: error: rank {victim} \(host \S+, process {launch.pids[victim]}\) died in step \d+, \w+; "
        assert re.match(pattern, errors[0])
        assert "Traceback" not in launch.text()
        victims.append(victim)
    assert set(victims) == {0, 1}
    job.train_forked(fork_server, *SETTINGS, "--resume", "auto")
    assert_same(job, uninterrupted)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_stopped_rank_ends_the_job(tmp_path, small_shards, fork_server, victim):
    """After SIGSTOP, neither the process group nor a launcher notices anything."""
    job = Job(tmp_path, small_shards)
    launch = job.fork(fork_server, "steps=100000", *SETTINGS[1:])
    launch.wait_for(lambda: job.last_step() >= 3)
    launch.kill(victim, signal.SIGSTOP)
    started = time.monotonic()
    assert launch.wait() == [-signal.SIGKILL] * 2
    assert time.monotonic() - started < 3 * SILENCE_SECONDS
    errors = [line for line in launch.text().splitlines() if "error" in line]
    assert len(errors) == 1, launch.text()
    assert re.search(rf"rank {victim} \(.*\) has not run for {SILENCE_SECONDS} s; it stopped in step \d+", errors[0])
    assert "Traceback" not in launch.text()


def test_a_rank_that_hangs_ends_the_job(tmp_path, small_shards, fork_server):
    """Its process runs and sends heartbeats, but its main thread does nothing."""
    job = Job(tmp_path, small_shards)
    launch = job.fork(fork_server, "steps=100000", *SETTINGS[1:], "faults.hang_seconds=10")
    launch.wait_for(lambda: job.last_step() >= 3)
    launch.kill(1, signal.SIGUSR2)
    assert launch.wait(90) == [-signal.SIGKILL] * 2
    errors = [line for line in launch.text().splitlines() if "error" in line]
    assert len(errors) == 1, launch.text()
    # Where rank 0 waits in a collective of the same phase, nobody can tell which rank it waits for.
    pattern = r"(rank 1 \(.*\) hangs|all ranks hang): no progress for 10 s in step \d+, \w+; the whole job ends"
    assert re.search(pattern, errors[0])
    assert "Traceback" not in launch.text()


@pytest.mark.parametrize("asked", [[0], [1], [0, 1]], ids=["rank 0", "rank 1", "both"])
def test_sigterm_saves_and_exits_0(tmp_path, small_shards, fork_server, uninterrupted, asked):
    job = Job(tmp_path, small_shards)
    # The signal causes the only checkpoint.
    settings = [SETTINGS[0], "intervals.checkpoint_steps=1000", *SETTINGS[2:]]
    launch = job.fork(fork_server, *settings)
    launch.wait_for(lambda: job.last_step() >= 3)
    for rank in asked:
        launch.kill(rank, signal.SIGTERM)
    assert launch.wait() == [0, 0], launch.text()
    stopped = re.search(r"stopped      at step (\d+) \(SIGTERM on rank \d", launch.text())
    assert f"start        step {stopped[1]}, from" in job.train_forked(fork_server, *settings, "--resume", "auto")
    assert_same(job, uninterrupted)


def test_a_stop_file_saves_and_exits_0(tmp_path, small_shards, fork_server):
    job = Job(tmp_path, small_shards)
    launch = job.fork(fork_server, "steps=100000", BNB_STOP_FILE=str(tmp_path / "stop"))
    launch.wait_for(lambda: job.last_step() >= 1)
    (tmp_path / "stop").touch()
    assert launch.wait() == [0, 0], launch.text()
    assert f"(file {tmp_path / 'stop'} on rank 0)" in launch.text()


def test_a_run_outlives_no_launcher(tmp_path, small_shards):
    """Only the deepspeed launcher is killed. Its ranks remain, save a checkpoint and end by themselves."""
    job = Job(tmp_path, small_shards)
    process = launching.start(job.command("steps=100000", "intervals.checkpoint_steps=100000"))
    try:
        launching.wait_for(lambda: job.last_step() >= 2, process)
        ranks = launching.find_ranks(process.pid)
        assert len(ranks) == 2
        process.kill()
        launching.wait_until(lambda: not any(map(launching.alive, ranks)))
    finally:
        launching.kill(process)
    assert re.fullmatch(r"step_\d+", (job.output / "checkpoints" / "latest").read_text())


def test_an_error_of_one_rank_is_reported_by_rank_0_and_ends_the_job(tmp_path, small_shards, fork_server):
    """Rank 1 cannot write. Rank 0 waits for it, so it ends as well, without a message of its own."""
    job = Job(tmp_path, small_shards)
    launch = job.fork(fork_server, *SETTINGS, TEST_FILE_LIMIT_OF_RANK="1")
    assert launch.wait() == [-signal.SIGKILL, 2], launch.text()
    errors = [line for line in launch.text().splitlines() if "error" in line]
    assert len(errors) == 1, launch.text()
    assert re.match(r"pretrain.py: error on rank 1: .*checkpoints: cannot write", errors[0])
    assert "Traceback" not in launch.text()
