"""What may change between the launches of a run, and what a launch that came to nothing leaves behind."""

from __future__ import annotations

import json
import shutil

import pytest
import yaml

from bnb_ds.checkpoint.lasting import FREE_RECIPE_FIELDS, lasting_recipe
from bnb_ds.checkpoint.run_dir import RunDir
from bnb_ds.errors import ConfigError
from bnb_ds.pretrain.plan import PretrainPlan, make_plan

pytestmark = pytest.mark.slow


@pytest.fixture
def resumed(whole_run, tmp_path):
    """Finds the checkpoint of a copy of a finished run, under changed settings."""
    run = shutil.copytree(whole_run.output, tmp_path / "run")

    def find(*settings: str, **options):
        plan = make_plan(str(whole_run.recipe), [f"output_dir={run}", *settings], str(whole_run.ds_config), 2)
        return directory(plan).find_resume("auto", **options)

    find.run = run
    return find


def directory(plan: PretrainPlan) -> RunDir:
    return RunDir(plan.recipe, plan.ds_config, plan.train_shards.fingerprint)


def test_the_same_data_at_another_path_continues(resumed, small_shards, tmp_path):
    moved = shutil.copytree(small_shards, tmp_path / "moved")
    found, _ = resumed(f"data.shards={moved}", "intervals.log_steps=7", "loader.workers=2")
    assert found.name == "step_00000008"


def test_other_data_at_the_same_path_does_not(resumed):
    launches = resumed.run / "launches.jsonl"
    rows = [json.loads(line) for line in launches.read_text().splitlines()]
    launches.write_text("".join(json.dumps({**row, "data_fingerprint": "other"}) + "\n" for row in rows))
    with pytest.raises(ConfigError, match="was started with different settings: data: "):
        resumed()


def test_a_run_can_be_extended_in_place(whole_run, tmp_path, fork_server):
    run = shutil.copytree(whole_run.output, tmp_path / "run")
    arguments = [str(whole_run.recipe), "--deepspeed_config", str(whole_run.ds_config), f"output_dir={run}"]
    refused = fork_server.launch([*arguments, "--resume", "auto", "steps=10"], tmp_path / "refused.log", ranks=2)
    assert refused.wait() == [2, 2]
    assert "restore them, or add --extend to change the length of this run" in refused.text()
    launch = fork_server.launch([*arguments, "--resume", "auto", "--extend", "steps=10"], tmp_path / "log", ranks=2)
    assert launch.wait() == [0, 0], launch.text()
    assert "done         step 10 of 10" in launch.text()
    shorter = fork_server.launch([*arguments, "--resume", "auto", "--extend", "steps=9"], tmp_path / "shorter.log")
    assert shorter.wait() == [2, 2]
    assert "steps: the run has done 10 steps, and should end after 9; give at least as many as it has" in shorter.text()
    # Now 10 steps are the run's own length.
    again = fork_server.launch([*arguments, "--resume", "auto", "steps=10"], tmp_path / "again.log", ranks=2)
    assert again.wait() == [0, 0], again.text()


def test_extending_changes_the_length_and_nothing_else(resumed):
    with pytest.raises(ConfigError, match=r"different settings: seed: 42 -> 7; restore them, or choose"):
        resumed("steps=10", "seed=7", extend=True)


def test_a_constant_rate_has_no_length(resumed):
    resolved = resumed.run / "config.resolved.yaml"
    constant = ["schedule.decay=constant", "schedule.warmup_ratio=0"]
    resolved.write_text(
        resolved.read_text()
        .replace("decay: linear", "decay: constant")
        .replace("warmup_ratio: 0.05", "warmup_ratio: 0.0")
    )
    found, _ = resumed(*constant, "steps=99")
    assert found.name == "step_00000008"
    with pytest.raises(ConfigError, match=r"schedule.warmup_ratio: 0.0 -> 0.5"):
        resumed("schedule.decay=constant", "schedule.warmup_ratio=0.5", "steps=99")


def test_a_launch_that_died_before_its_first_checkpoint_refuses_nobody(resumed):
    shutil.rmtree(resumed.run / "checkpoints")
    assert resumed("seed=7", "steps=3") == (None, [])
    for resume in ("never", "auto"):
        plan = make_plan(*arguments_of(resumed), 2)
        assert directory(plan).find_resume(resume) == (None, [])


def arguments_of(resumed) -> tuple[str, list[str], str]:
    recipe, ds_config = resumed.run.parent / "recipe.yaml", resumed.run.parent / "ds.json"
    shutil.copy(resumed.run / "config.resolved.yaml", recipe)
    values = json.loads((resumed.run / "ds_config.resolved.json").read_text())
    values.pop("gradient_accumulation_steps", None)
    ds_config.write_text(json.dumps(values))
    return str(recipe), [f"output_dir={resumed.run}", "seed=9"], str(ds_config)


def test_what_began_the_run_is_what_counts(resumed):
    """Earlier launches came to nothing: their record says nothing of this run."""
    launches = resumed.run / "launches.jsonl"
    rows = launches.read_text().splitlines()
    dead = {**json.loads(rows[0]), "data_fingerprint": "of other data"}
    launches.write_text("\n".join([json.dumps(dead), *rows]) + "\n")
    found, _ = resumed()
    assert found.name == "step_00000008"


def test_every_free_field_is_a_field(whole_run):
    from bnb_ds.config.sections import PretrainRecipe
    from bnb_ds.finetune.recipe import FinetuneRecipe

    for field in FREE_RECIPE_FIELDS:
        head, _, rest = field.partition(".")
        sections = [
            recipe.model_fields[head] for recipe in (PretrainRecipe, FinetuneRecipe) if head in recipe.model_fields
        ]
        assert sections, field
        assert not rest or any(rest in str(section.annotation.model_fields) for section in sections), field
    assert lasting_recipe({"a": 1, "data": {"shards": "x", "max_length": 3}}) == {"a": 1, "data": {"max_length": 3}}


def test_a_run_that_began_with_equal_slots_goes_on_and_no_new_one_begins(whole_run, tmp_path, fork_server):
    run = shutil.copytree(whole_run.output, tmp_path / "run")
    resolved = run / "config.resolved.yaml"
    settings = yaml.safe_load(resolved.read_text())
    settings["model"]["decoder_length_ratio"] = 2.5
    resolved.write_text(yaml.safe_dump(settings))
    arguments = [str(whole_run.recipe), "--deepspeed_config", str(whole_run.ds_config), "--resume", "auto"]
    arguments += ["model.decoder_length_ratio=2.5"]
    old = fork_server.launch([*arguments, f"output_dir={run}"], tmp_path / "old.log", ranks=2)
    assert old.wait() == [0, 0], old.text()
    assert "slots        targets that do not fit: train 0 of 216 (0.0%)" in old.text()
    new = fork_server.launch([*arguments, f"output_dir={tmp_path / 'new'}"], tmp_path / "new.log", ranks=1)
    assert new.wait() == [2]
    (error,) = (line for line in new.text().splitlines() if "error" in line)
    assert "model.decoder_length_ratio 2.5: with model.decoder_positions shared a source token has two" in error
