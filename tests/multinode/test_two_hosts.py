"""Train on two hosts over a network, with the launch script for clusters."""

from __future__ import annotations

import os
import time

import pytest

from tests import launching
from tests.jobs import Job
from tests.multinode import hosts

pytestmark = [pytest.mark.slow, pytest.mark.multinode]

SILENCE_SECONDS = 5


@pytest.fixture(scope="module")
def two_hosts(tmp_path_factory):
    lack = hosts.why_not()
    if lack is not None:
        pytest.skip(lack)
    with hosts.TwoHosts(tmp_path_factory.mktemp("hosts")) as both:
        yield both


def launch(two_hosts, job: Job, *arguments: str, both: bool = True) -> list[str]:
    """The command that starts a job from the first host."""
    where = ["--hostfile", str(two_hosts.hostfile), "--num_nodes", "2"] if both else []
    logs = job.output.with_name(f"logs-{len(list(job.output.parent.glob('logs-*')))}")
    options = [*where, "--num_gpus", "1", "--master_port", "29700", "--logs", str(logs)]
    script = ["bash", "runs/launch/hostfile.sh", *options, *job.arguments(*arguments)]
    return two_hosts.command(0, script)


def test_two_hosts_train_as_two_local_ranks(two_hosts, tmp_path, small_shards, whole_run):
    job = Job(tmp_path, small_shards)
    result = launching.run(launch(two_hosts, job))
    assert result.returncode == 0, result.stdout + result.stderr
    assert "done         step 8 of 8" in result.stdout  # of the first rank's log
    (log,) = tmp_path.glob("logs-0/*_rank1.log")
    assert "done" not in log.read_text()
    for tag in ("train/loss", "train/grad_norm", "eval/loss"):
        ours, theirs = ([value for _, value in j.scalars()[tag]] for j in (job, whole_run))
        assert ours == pytest.approx(theirs, rel=1e-6), tag


def test_an_output_that_the_hosts_do_not_share_is_refused(two_hosts, tmp_path, small_shards):
    job = Job(tmp_path, small_shards)
    job.output.mkdir()
    two_hosts.run(1, "mount", "-t", "tmpfs", "tmpfs", str(job.output))
    result = launching.run(launch(two_hosts, job))
    assert result.returncode == 2, result.stdout + result.stderr
    expected = f"output_dir {job.output}: {two_hosts.names[1]} cannot see what rank 0 writes there; put it on storage"
    assert result.stderr.count(expected) == 1, result.stderr
    assert not list(job.output.glob("checkpoints/*"))


def test_a_host_that_is_cut_off_ends_the_job_and_the_other_goes_on_alone(two_hosts, tmp_path, small_shards):
    settings = ["steps=100000", "intervals.checkpoint_steps=2", f"faults.silence_seconds={SILENCE_SECONDS}"]
    job = Job(tmp_path, small_shards)
    process = launching.start(launch(two_hosts, job, *settings))
    try:
        launching.wait_for(lambda: job.last_step() >= 5, process)
        two_hosts.cut()
        cut = time.monotonic()
        output, errors = process.communicate(timeout=60)
    finally:
        launching.kill(process)
    assert process.returncode not in (0, None)
    # The time adds up from the watchdog, the launcher's check of its ranks, and three missed keep-alives of ssh.
    assert time.monotonic() - cut < SILENCE_SECONDS + 40
    assert f"rank 1 (host {two_hosts.names[1]}, process " in errors, output + errors
    assert f"cannot be reached for {SILENCE_SECONDS} s; it was in step " in errors
    (log,) = tmp_path.glob("logs-0/*_rank1.log")
    assert f"cannot reach rank 0 for {SILENCE_SECONDS} s" in log.read_text()
    for host in range(2):
        commands = two_hosts.run(host, "ps", "-e", "-o", "args=")
        assert "runs/pretrain.py" not in commands.replace("hostfile.sh", "")
    reached = job.last_step()
    result = launching.run(
        launch(two_hosts, job, *settings, "--resume", "auto", "--stop-at", str(reached + 3), both=False),
        env=launching.environment(HOME=os.environ["HOME"]),
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "converted from 2 ranks at ZeRO stage 1 to 1 at 1" in result.stdout
    assert [row["step"] for row in job.metrics() if "train/loss" in row] == list(range(1, reached + 4))
