"""The records of a run that were damaged: a launch that was killed while it wrote, a file that is lost."""

from __future__ import annotations

import json

import pytest

from bnb_ds.checkpoint import run_dir
from bnb_ds.checkpoint.run_dir import read_launches, read_recipe
from bnb_ds.config.deepspeed import load_ds_config
from bnb_ds.config.loading import load_recipe
from bnb_ds.errors import CheckpointError
from bnb_ds.export.model_card import read_history
from tests.jobs import Job

LAUNCH = {"start_step": 0, "data_fingerprint": "f"}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run with one checkpoint, and the settings that it was started with."""
    monkeypatch.setattr(run_dir, "provenance", lambda: {"python": "3", "packages": {}, "git_revision": None})
    job = Job(tmp_path, tmp_path / "shards")
    made = run_dir.RunDir(load_recipe(str(job.recipe), []), load_ds_config(str(job.ds_config), 2), "f")
    made.record_launch(0)
    checkpoint = made.checkpoints / "step_00000004"
    checkpoint.mkdir(parents=True)
    (checkpoint / "checkpoint.json").write_text('{"files": {}}')
    return made


def test_a_launch_that_was_killed_while_it_recorded_itself_blocks_nobody(run):
    launches = run.path / "launches.jsonl"
    with launches.open("a") as file:
        file.write('{"command": ["pretr')
    found, _ = run.find_resume("auto")
    assert found.name == "step_00000004"
    run.record_launch(4)
    assert [launch["start_step"] for launch in read_launches(run.path)] == [0, 4]
    assert [launch["start_step"] for launch in read_history(run.path)[1]] == [0, 4]
    assert run.find_resume("auto")[0] == found


@pytest.mark.parametrize("name", ["launches.jsonl", "config.resolved.yaml", "ds_config.resolved.json"])
@pytest.mark.parametrize("content", ["", "[", "\0{", b"\xff\xfe"])
def test_records_that_cannot_be_read_are_one_line(run, name, content):
    (run.path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CheckpointError, match=rf"run/{name}: .*; restore it from a copy of the run") as found:
        run.find_resume("auto")
    assert "\n" not in str(found.value)


def test_a_record_that_is_lost_is_named(run):
    (run.path / "launches.jsonl").unlink()
    with pytest.raises(CheckpointError, match=r"launches.jsonl: No such file or directory; restore it from a copy of"):
        run.find_resume("auto")
    (run.path / "config.resolved.yaml").write_text("- a\n")
    with pytest.raises(CheckpointError, match=r"config.resolved.yaml: is not what a launch writes; restore it from"):
        read_recipe(run.path)
    (run.path / "config.resolved.yaml").write_text("{a: b")
    with pytest.raises(CheckpointError, match=r"config.resolved.yaml: "):
        read_history(run.path)


def test_the_first_launch_is_the_one_that_began(run):
    (run.path / "launches.jsonl").write_text("".join(json.dumps({**LAUNCH, "n": n}) + "\n" for n in (1, 2)))
    assert run_dir._first_launch(run.path)["n"] == 2
