"""Scripts: those of Slurm that somebody starts by hand, directories that cannot be, and the tables."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from pathlib import Path

import pytest

from bnb_ds.bench.frontier.contestants import AUTOREGRESSIVE_SETTINGS, SETTINGS, read_contestant
from bnb_ds.config.loading import load_recipe
from bnb_ds.finetune.recipe import FinetuneRecipe
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


@pytest.fixture
def table(tmp_path):
    """The script of a table where there are no data, whatever the checkout holds."""
    (tmp_path / "runs").mkdir()
    for name in ("multi30k_table.sh", "squad_table.sh", "tables.sh", "environment.sh"):
        (tmp_path / "runs" / name).write_text((REPOSITORY / "runs" / name).read_text())

    def run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = ["bash", str(tmp_path / "runs" / f"{name}_table.sh"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    return run


@pytest.mark.parametrize("name", ["multi30k", "squad"])
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["no_system"], "no_system: no such system; --list shows the commands of all\n"),
        (["--seeds", "0"], "--seeds 0: give a number from 1 to 9\n"),
        (["--seeds"], "--seeds : give a number from 1 to 9\n"),
        (["bert2bert"], "no such file\n"),
    ],
)
def test_what_a_table_refuses(table, name, arguments, said):
    result = table(name, *arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"{name}_table: error: ")
    assert result.stderr.endswith(said)


def test_a_table_says_how_it_is_used(table):
    said = table("squad", "--bad").stderr
    assert said.startswith("Train the systems of RESULTS.md's SQuAD table on a CPU")
    assert "  --seeds   train each system with at most so many seeds" in said


@pytest.mark.parametrize(
    ("name", "samples", "batch", "steps", "num_runs", "num_systems"),
    [("multi30k", 29_000, 64, 4079, 25, 35), ("squad", 5_877, 8, 900, 12, 9)],
)
def test_a_table_names_recipes_settings_and_ways_of_decoding_that_exist(
    table, monkeypatch, name, samples, batch, steps, num_runs, num_systems
):
    monkeypatch.chdir(REPOSITORY)
    listed = table(name, "--list").stdout.splitlines()
    lines = [shlex.split(line) for line in listed if line.startswith("bnb-ds")]  # the others prepare files
    runs = []
    for recipe, *settings in (line[2:] for line in lines if line[1] == "finetune"):
        overrides = [setting for setting in settings if "=" in setting]
        loaded = load_recipe(recipe, overrides, FinetuneRecipe)
        ds_config = json.loads(Path(settings[settings.index("--deepspeed-config") + 1]).read_text())
        assert ds_config["train_batch_size"] == batch
        assert loaded.total_steps(samples, batch) == steps, recipe
        runs.append(loaded.output_dir)
    assert len(runs) == len(set(runs)) == num_runs
    systems = [text for text in lines[-1][3:] if "=work/" in text and not text.startswith("work/")]
    contestants = [read_contestant(text) for text in systems]
    assert sorted({str(model) for contestant in contestants for model in contestant.models}) == sorted(runs)
    assert len({contestant.name for contestant in contestants}) == len(contestants) == num_systems
    for contestant in contestants:
        assert set(contestant.settings) <= {*SETTINGS, *AUTOREGRESSIVE_SETTINGS}, contestant.name


def test_a_table_with_fewer_seeds_and_systems(table):
    lines = table("multi30k", "--list", "--train", "--seeds", "2", "dag", "distilled").stdout.splitlines()
    assert [line.split()[1] for line in lines] == ["prep", "finetune", "finetune", "distill", "finetune"]
    assert lines[2].endswith("output_dir=work/runs/multi30k_table/dag-2 seed=2 ")
    lines = table("squad", "--list", "--train", "--seeds", "1", "bnb_pretrained").stdout.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("bnb-ds")] == [
        "prep",
        "pretrain",
        "export",
        "finetune",
    ]
