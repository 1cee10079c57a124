"""Scripts of Slurm that somebody starts by hand say so in one line."""

from __future__ import annotations

import os
import subprocess

import pytest

from tests.launching import REPOSITORY


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (
            "pretrain.sbatch",
            "pretrain.sbatch: error: this is a job of Slurm: submit it with sbatch, or start runs/launch/torchrun.sh",
        ),
        (
            "prep.sbatch",
            "prep.sbatch: error: this is a job array of Slurm: submit it with sbatch, or give --task-index and"
            " --num-tasks to bnb-ds prep",
        ),
    ],
)
def test_a_job_of_slurm_outside_slurm(script, said):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    result = subprocess.run(
        ["bash", str(REPOSITORY / "runs" / "slurm" / script), "recipe.yaml"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stdout, result.stderr) == (2, "", said + "\n")


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (
            "launch/torchrun.sh --gpus 1 --logs {file}/logs recipe.yaml",
            "torchrun.sh: error: {file}/logs: cannot make this directory of logs; name another one with --logs",
        ),
        (
            "quickstart.sh --work {file}/work",
            "quickstart: error: {file}/work: there is no permission to write there; name another directory with --work",
        ),
        (
            "quickstart.sh --work {folder}",
            "quickstart: error: {file}/venv: cannot make the environment there; name another directory with BNB_VENV",
        ),
    ],
    ids=["logs", "work", "environment"],
)
def test_a_place_that_cannot_be_written(tmp_path, command, said):
    """A file stands where a directory would be made. (Root may write into every directory.)"""
    (tmp_path / "file").touch()
    places = {"file": tmp_path / "file", "folder": tmp_path}
    script, *arguments = command.format(**places).split()
    result = subprocess.run(
        ["bash", str(REPOSITORY / "runs" / script), *arguments],
        env={**os.environ, "BNB_VENV": f"{tmp_path}/file/venv"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stdout, result.stderr) == (2, "", said.format(**places) + "\n")
