"""Resuming from checkpoints: damaged and incomplete ones are ignored, wrong settings are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from bnb_ds.checkpoint import store
from bnb_ds.checkpoint.run_dir import locate_checkpoint
from bnb_ds.errors import CheckpointError

pytestmark = pytest.mark.slow


@pytest.fixture
def copy_of_run(whole_run, tmp_path):
    """A copy of a finished run's directory, to be damaged."""
    return shutil.copytree(whole_run.output, tmp_path / "run")


def test_checkpoints_of_the_run(whole_run):
    names = [path.name for path in store.whole_checkpoints(whole_run.output / "checkpoints")]
    assert names == ["step_00000004", "step_00000006", "step_00000008"]
    assert (whole_run.output / "checkpoints" / "latest").read_text() == "step_00000008"
    state = store.read_state(whole_run.output / "checkpoints" / "step_00000006")
    assert (state["step"], state["samples_consumed"], state["world_size"]) == (6, 48, 2)
    assert not list(whole_run.output.rglob("*partial*"))


def test_old_checkpoints_are_removed(tmp_path, fork_server, small_shards):
    from tests.jobs import Job

    job = Job(tmp_path, small_shards)
    job.train_forked(fork_server, "intervals.keep_checkpoints=1", "steps=4", ranks=1)
    assert [path.name for path in store.whole_checkpoints(job.output / "checkpoints")] == ["step_00000004"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file: file.unlink(), "is missing"),
        (lambda file: file.write_bytes(file.read_bytes()[:-7]), "bytes instead of"),
        (lambda file: file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:]), "has changed since"),
    ],
    ids=["missing", "truncated", "flipped bit"],
)
def test_a_damaged_checkpoint_is_passed_over(copy_of_run, damage, message):
    newest = copy_of_run / "checkpoints" / "step_00000008"
    damage(next(newest.glob("zero_pp_rank_1_*")))
    found, notes = locate_checkpoint(copy_of_run)
    assert found.name == "step_00000006"
    assert len(notes) == 1
    assert message in notes[0]
    with pytest.raises(CheckpointError, match=f"{message}.*; name an older checkpoint or the run's directory"):
        locate_checkpoint(newest)


def test_with_every_checkpoint_damaged_nothing_starts_anew(copy_of_run, whole_run, tmp_path):
    for file in (copy_of_run / "checkpoints").glob("*/zero_pp_rank_0_*"):
        file.unlink()
    with pytest.raises(CheckpointError, match=r"step_00000008: .*; .*step_00000004: .* is missing: no checkpoint is"):
        store.newest_intact(copy_of_run / "checkpoints")


def test_an_unfinished_checkpoint_is_ignored(copy_of_run):
    checkpoints = copy_of_run / "checkpoints"
    (checkpoints / "step_00000006").rename(checkpoints / "step_00000009.partial")
    (checkpoints / "step_00000008" / "checkpoint.json").unlink()
    assert locate_checkpoint(copy_of_run)[0].name == "step_00000004"


def test_an_unreadable_manifest_is_damage(copy_of_run):
    newest = copy_of_run / "checkpoints" / "step_00000008"
    (newest / "checkpoint.json").write_text("{")
    assert store.find_damage(newest) == "checkpoint.json cannot be read"


def test_what_deepspeed_cannot_load():
    engine = SimpleNamespace(load_checkpoint=lambda directory, tag: (None, None))
    with pytest.raises(CheckpointError, match="run/step_1: DeepSpeed cannot load it; resume from an older checkpoint"):
        store.load(engine, Path("run/step_1"))


def test_a_checkpoint_outside_its_run_is_refused(copy_of_run, tmp_path):
    from bnb_ds.checkpoint.run_dir import run_of

    alone = tmp_path / "alone" / "step_00000008"
    shutil.copytree(copy_of_run / "checkpoints" / "step_00000008", alone)
    with pytest.raises(CheckpointError, match="keep checkpoints inside their run"):
        run_of(locate_checkpoint(alone)[0])


def test_resume_refusals_name_the_way_out(whole_run, copy_of_run, fork_server):
    """One launch for each case: without --resume, with other settings (all are listed), and into another run."""
    other = copy_of_run / "checkpoints" / "step_00000004"
    cases = [
        ([], f"output_dir {whole_run.output}: already holds a run; add --resume auto"),
        (
            ["--resume", "auto", "steps=9", "seed=7"],
            "was started with different settings: seed: 42 -> 7; steps: 8 -> 9",
        ),
        (["--resume", str(other), f"output_dir={whole_run.output}"], "holds a different run than --resume"),
        (["--resume", "auto", "spikes.factor=3"], "spikes.factor: None -> 3.0"),
    ]
    before = {path: path.stat().st_mtime_ns for path in whole_run.output.rglob("*") if path.is_file()}
    for arguments, message in cases:
        launch = whole_run.fork(fork_server, *arguments)
        assert launch.wait() == [2, 2], launch.text()
        errors = [line for line in launch.text().splitlines() if "pretrain.py: error" in line]
        # No launcher ends rank 1 at once, so it may report the same error.
        assert len([line for line in errors if " on rank 1: " not in line]) == 1, launch.text()
        assert all(message in line for line in errors), launch.text()
        assert "Traceback" not in launch.text()
    assert before == {path: path.stat().st_mtime_ns for path in whole_run.output.rglob("*") if path.is_file()}


def test_a_run_of_an_older_release_is_continued(copy_of_run, whole_run, tmp_path):
    """Its files lack the settings and the state that were added later."""
    from bnb_ds.checkpoint.resume import plan_resume
    from bnb_ds.checkpoint.run_dir import RunDir
    from bnb_ds.pretrain.plan import make_plan

    resolved = copy_of_run / "config.resolved.yaml"
    settings = yaml.safe_load(resolved.read_text())
    resolved.write_text(yaml.safe_dump({k: v for k, v in settings.items() if k not in ("spikes", "faults")}))
    manifest = copy_of_run / "checkpoints" / "step_00000008" / "checkpoint.json"
    state = json.loads(manifest.read_text())
    assert state.pop("zero_stage") == 1
    manifest.write_text(json.dumps(state))
    plan = make_plan(str(whole_run.recipe), [f"output_dir={copy_of_run}"], str(whole_run.ds_config), 1)
    found, _ = RunDir(plan.recipe, plan.ds_config, plan.train_shards.fingerprint).find_resume("auto")
    resume = plan_resume(found, plan.ds_config, weights_only=False)
    assert (resume.checkpoint, resume.way) == (manifest.parent, "universal")


def test_a_finished_run_resumed_does_nothing(copy_of_run, whole_run, tmp_path, fork_server):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(whole_run.recipe.read_text().replace(str(whole_run.output), str(copy_of_run)))
    arguments = [str(recipe), "--deepspeed_config", str(whole_run.ds_config), "--resume", "auto"]
    launch = fork_server.launch(arguments, tmp_path / "log")
    assert launch.wait() == [0, 0], launch.text()
    assert "done         step 8 of 8" in launch.text()
    launches = (copy_of_run / "launches.jsonl").read_text().splitlines()
    assert [json.loads(line)["start_step"] for line in launches] == [0, 8]


def test_a_run_is_resumed_from_a_named_checkpoint(copy_of_run, whole_run, tmp_path, fork_server):
    """A checkpoint of another directory starts a new run, which trains exactly as the first one continued."""
    from bnb_ds.train.tracking import read_scalars

    fork = tmp_path / "fork"
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(whole_run.recipe.read_text().replace(str(whole_run.output), str(fork)))
    named = copy_of_run / "checkpoints" / "step_00000006"
    arguments = [str(recipe), "--deepspeed_config", str(whole_run.ds_config), "--resume", str(named)]
    launch = fork_server.launch(arguments, tmp_path / "log")
    assert launch.wait() == [0, 0], launch.text()
    assert read_scalars(fork / "runs")["train/loss"] == whole_run.scalars()["train/loss"][6:]
