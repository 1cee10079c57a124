"""``bnb-ds generate --processes N``: divide a file among local processes, with one GPU each if there are GPUs."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import torch

from bnb_ds.common.children import child_command, ctrl_c_held_back
from bnb_ds.common.files import disk_errors, replaced_file
from bnb_ds.common.line_outputs import refuse_finished_output
from bnb_ds.errors import DataError
from bnb_ds.generate.lines import LineJob, for_task


def generate_in_processes(job: LineJob, command: list[str], num_processes: int) -> str:
    """Run the command once for each share of the input, then join the outputs into one file.

    Args:
        job: the whole job.
        command: the arguments of ``bnb-ds``, without ``--processes``.
        num_processes: number of processes, and of shares.

    Raises:
        DataError: a process failed, after it printed its own message. Finished work is kept for ``--resume``.
    """
    jobs = [for_task(job, index, num_processes) for index in range(num_processes)]
    jobs[0].check("--processes")
    refuse_finished_output(job.output_name, resume=job.resume, overwrite=job.overwrite)
    start = time.monotonic()
    with ctrl_c_held_back():
        processes = [subprocess.Popen(_task_command(command, task), env=_environment(task)) for task in jobs]
    try:
        codes = [process.wait() for process in processes]
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()  # what is finished is on the disk, and there is no second message
                process.wait()
    failed = [task.task_index for task, code in zip(jobs, codes, strict=True) if code]
    if failed:
        raise DataError(
            f"--processes {num_processes}: process {failed[0]} failed; correct its error above, then add --resume"
        )
    num_lines = join([task.output_path for task in jobs], Path(job.output_name))
    seconds = time.monotonic() - start
    return (
        f"generate: {num_lines} lines from {job.input_name} to {job.output_name} by {num_processes} processes, "
        f"{num_lines / seconds:.1f} sentences/s with start-up"
    )


def join(parts: list[Path], output: Path) -> int:
    """Concatenate the parts into ``output``, remove the parts, and return the number of lines."""
    num_lines = 0
    with replaced_file(output) as target:
        for part in parts:
            with open(part, "rb") as file:
                while block := file.read(1 << 20):
                    target.write(block)
                    num_lines += block.count(b"\n")
    with disk_errors(output):
        for part in parts:
            part.unlink()
            part.with_name(f"{part.name}.progress.json").unlink(missing_ok=True)
    return num_lines


def _task_command(command: list[str], task: LineJob) -> list[str]:
    share = ["--task-index", str(task.task_index), "--num-tasks", str(task.num_tasks)]
    return child_command("bnb_ds.cli", *command, *share)


def _environment(task: LineJob) -> dict[str, str]:
    environment = dict(os.environ)
    if torch.cuda.is_available():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(torch.cuda.device_count())))).split(
            ","
        )
        environment["CUDA_VISIBLE_DEVICES"] = visible[task.task_index % len(visible)]
    else:
        cores = len(os.sched_getaffinity(0))
        environment.setdefault("OMP_NUM_THREADS", str(max(cores // task.num_tasks, 1)))
    return environment
