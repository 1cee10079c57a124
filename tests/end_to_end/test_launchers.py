"""The launch scripts refuse wrong arguments, and end a job in an orderly way when asked to stop."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
from pathlib import Path

import pytest

from tests import launching
from tests.documents import commands
from tests.jobs import Job

#: only the request to stop causes a checkpoint
ENDLESS = ["steps=100000", "intervals.checkpoint_steps=100000"]

# The parts of Slurm's three commands that the script uses: one node, two tasks, signals only to the tasks.
SRUN = """#!/usr/bin/env bash
while [[ $1 == --* ]]; do case $1 in --output=*) output=${1#--output=} ;; esac; shift; done
pids=()
for task in 0 1; do
    SLURM_PROCID=$task SLURM_LOCALID=$task SLURM_NTASKS=2 "$@" > "${output/\\%t/$task}" 2>&1 &
    pids+=($!)
done
echo "${pids[@]}" > "$STATE/tasks"
code=0
for pid in "${pids[@]}"; do wait "$pid" || code=$?; done
exit $code
"""
SCONTROL = """#!/usr/bin/env bash
case $1 in
    show) echo localhost ;;
    requeue) echo "$2" > "$STATE/requeued" ;;
esac
"""
SCANCEL = """#!/usr/bin/env bash
kill "-${1#--signal=}" $(cat "$STATE/tasks")
"""


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("hostfile.sh", ["--num_gpus"], "hostfile.sh: error: --num_gpus needs a value"),
        ("hostfile.sh", ["--num_gpus", "x", "recipe"], "--num_gpus: give the number of GPUs of a host"),
        ("hostfile.sh", ["--num-nodes", "2", "--num-gpus", "1", "recipe"], "--num_nodes 2 needs --hostfile"),
        ("hostfile.sh", ["--num_nodes", "2", "--num_gpus", "1", "recipe"], "--num_nodes 2 needs --hostfile"),
        ("hostfile.sh", ["--hostfile", "/no", "--num_gpus", "1", "recipe"], "--hostfile /no: no such file"),
        ("hostfile.sh", [], "bash runs/launch/hostfile.sh [--hostfile FILE --num_nodes N]"),
        ("torchrun.sh", ["--nodes"], "torchrun.sh: error: --nodes needs a value"),
        ("torchrun.sh", ["--gpus", "0", "recipe"], "--gpus: give the number of GPUs of this host"),
        ("torchrun.sh", ["--nodes", "2", "--gpus", "1", "recipe"], "--nodes 2 needs --master"),
        ("torchrun.sh", ["--help"], "bash runs/launch/torchrun.sh --nodes N --gpus G --master HOST[:PORT]"),
    ],
)
def test_misuse(script, arguments, message):
    result = launching.run(["bash", f"runs/launch/{script}", *arguments])
    assert result.returncode == 2
    assert message in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("script", "gpus"), [("hostfile.sh", "--num_gpus"), ("torchrun.sh", "--gpus")])
def test_fine_tuning_is_launched_too(script, gpus, tmp_path):
    """A program is named before the recipe, and the script shows the output of this program."""
    port = str(launching.free_port())
    where = ["--master_port", port] if gpus == "--num_gpus" else ["--master", f"127.0.0.1:{port}", "--restarts", "0"]
    command = ["bash", f"runs/launch/{script}", gpus, "1", *where, "--logs", str(tmp_path)]
    result = launching.run([*command, "runs/finetune.py", "absent.yaml", "--deepspeed_config", "absent.json"])
    assert result.returncode != 0
    assert "finetune.py: error: absent.yaml: no such recipe" in result.stdout + result.stderr


def test_pdsh_is_asked_for_by_name(tmp_path):
    (tmp_path / "hosts").write_text("localhost slots=1\n")
    for name in ("bash", "dirname", "realpath", "date"):
        (tmp_path / name).symlink_to(f"/usr/bin/{name}")
    command = ["bash", "runs/launch/hostfile.sh", "--hostfile", str(tmp_path / "hosts"), "--num_gpus", "1", "recipe"]
    result = launching.run(command, env={"PATH": str(tmp_path)})
    assert result.returncode == 2
    assert "pdsh is not installed; install it, or use" in result.stderr


def end(process: subprocess.Popen[str], job: Job, number: int) -> tuple[str, str]:
    """Ask a running job to stop after its first steps; return the launcher's output."""
    try:
        launching.wait_for(lambda: job.last_step() >= 2, process)
        process.send_signal(number)
        output, errors = process.communicate(timeout=launching.TIMEOUT_SECONDS)
    finally:
        launching.kill(process)
    assert process.returncode == 0, output + errors
    latest = (job.output / "checkpoints" / "latest").read_text()
    assert re.fullmatch(r"step_\d+", latest)
    return output, errors


def documented(number: int, job: Job, where: str, here: str) -> list[str]:
    """A command of docs/faults.md, with two ranks of this host in the place of sixteen hosts, and with another job."""
    command = commands("clusters")[number]
    assert where in command
    program, _, arguments = command.replace(where, here).partition("runs/recipes/pretrain/wikipedia_base.yaml")
    arguments = re.sub(r"ds_configs/\S+", str(job.ds_config), arguments)
    return shlex.split(f"{program} {job.recipe} {arguments} {' '.join(ENDLESS)}")


@pytest.mark.slow
def test_deepspeed_ends_well(tmp_path, small_shards):
    job = Job(tmp_path, small_shards)
    here = f"--num_gpus 2 --master_port {launching.free_port()} --logs {tmp_path / 'logs'}"
    command = documented(0, job, "--hostfile HOSTFILE --num_nodes 16 --num_gpus 8", here)
    output, _ = end(launching.start(command), job, signal.SIGTERM)
    assert re.search(r"stopped      at step \d+ \(file \S+ on rank 0\); continue with --resume auto", output)
    assert sorted(path.name[-9:] for path in (tmp_path / "logs").glob("*_rank?.log")) == ["rank0.log", "rank1.log"]


@pytest.mark.slow
def test_torchrun_ends_well(tmp_path, small_shards):
    job = Job(tmp_path, small_shards)
    here = f"--gpus 2 --master 127.0.0.1:{launching.free_port()} --logs {tmp_path / 'logs'}"
    command = documented(1, job, "--nodes 16 --gpus 8 --master HOST", here)
    output, _ = end(launching.start(command), job, signal.SIGTERM)
    assert re.search(r"stopped      at step \d+ \(SIGTERM on rank \d", output)
    assert len(list((tmp_path / "logs").rglob("stdout.log"))) == 2


@pytest.mark.slow
def test_slurm_saves_before_the_time_limit_and_requeues(tmp_path, small_shards):
    job = Job(tmp_path, small_shards)
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("scancel", SCANCEL)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    (tmp_path / "cluster").mkdir()
    for name in ("runs", "bnb_ds"):  # the logs are then written here and not into the repository
        (tmp_path / "cluster" / name).symlink_to(launching.REPOSITORY / name)
    environment = launching.environment(
        STATE=str(tmp_path),
        SLURM_JOB_ID="4711",
        SLURM_JOB_NODELIST="localhost",
        SLURM_NTASKS_PER_NODE="2",
        SLURM_SUBMIT_DIR=str(tmp_path / "cluster"),
    )
    environment["PATH"] = f"{programs}{os.pathsep}{environment['PATH']}"
    process = launching.start(documented(2, job, "sbatch --nodes 16", "bash"), env=environment)
    output, errors = end(process, job, signal.SIGUSR1)
    assert "the time limit is near; the tasks save" in output, errors
    assert (tmp_path / "requeued").read_text() == "4711\n"
    logs = tmp_path / "cluster" / "work" / "logs" / "bnb-pretrain-4711"
    # A rank that the signal reaches after the step's vote is not named, but stops all the same.
    assert re.search(r"stopped      at step \d+ \(SIGUSR1 on rank \d", (logs / "0.log").read_text())
    assert Path(logs / "1.log").exists()
