"""`bnb-ds check` finds all faults of a launch at once."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from bnb_ds.checkpoint import store
from bnb_ds.checkpoint.run_lock import RunLock
from bnb_ds.cli import main
from bnb_ds.errors import CheckpointError, ConfigError
from bnb_ds.finetune import plan as finetune
from bnb_ds.pretrain import plan as pretrain
from bnb_ds.pretrain.plan import decide, describe_dry_run, make_plan
from bnb_ds.train.launch import Launch

DS = {
    "train_batch_size": 8,
    "train_micro_batch_size_per_gpu": 2,
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-3}},
}
SIZE = "{hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 64}"


def command(folder, recipe: str, ds) -> list[str]:
    """Write both files; return the arguments of the command for two ranks."""
    recipe_path, ds_path = folder / "recipe.yaml", folder / "ds.json"
    recipe_path.write_text(recipe)
    ds_path.write_text(json.dumps(ds))
    return ["check", str(recipe_path), "--deepspeed_config", str(ds_path), "--world-size", "2"]


@pytest.fixture
def settings(tmp_path, small_shards):
    """Write both files; return the arguments of the command."""

    def write(shards=small_shards, output=tmp_path / "out", ds=DS):
        recipe = (
            f"output_dir: {output}\nsteps: 4\nmodel: {{size: {SIZE}}}\ndata: {{shards: {shards}, max_length: 32}}\n"
        )
        return command(tmp_path, recipe, ds)

    return write


def test_a_launch_without_faults(settings, tmp_path, capsys):
    assert main(settings()) == 0
    shown = capsys.readouterr().out
    assert "check: no errors, this can be launched" in shown
    assert "a new run: there is no checkpoint in output_dir" in shown
    assert "8 samples = 2 x 2 micro steps x 2 ranks" in shown
    assert "memory/GPU   about" in shown
    assert "slots        targets that do not fit: train 0 of 216 (0.0%), heldout 0 of 24 (0.0%)" in shown
    assert not (tmp_path / "out").exists()


def test_all_faults_at_once(settings, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    arguments = settings(
        shards=tmp_path / "nowhere", output=tmp_path / "file" / "run", ds={**DS, "train_batch_size": 9}
    )
    assert main(arguments) == 2
    shown = capsys.readouterr().out
    errors = [line for line in shown.splitlines() if line.startswith("error ")]
    assert len(errors) == 3
    assert "train_batch_size 9 cannot be divided among 2 ranks" in errors[0]
    assert "nowhere" in errors[1]
    assert f"{tmp_path / 'file'} is not a writable directory; choose another" in errors[2]
    assert shown.splitlines()[-1] == "check: 3 errors"


def test_glancing_that_the_model_cannot_have_is_an_error_of_check_and_dry_run(settings, capsys):
    arguments = [*settings(), "glancing.start=0.5"]
    message = "glancing shows target tokens to the decoder: set model.decoder_tokens to true"
    assert main(arguments) == 2
    assert message in capsys.readouterr().out
    plan = make_plan(arguments[1], ["glancing.start=0.5"], arguments[3], 2)
    for planned in (describe_dry_run, decide):
        with pytest.raises(ConfigError, match=message):
            planned(plan, Launch())


def test_a_recipe_that_cannot_be_read_ends_the_check(settings, capsys):
    arguments = settings()
    assert main([arguments[0], arguments[1], "data.max_lenght=3", *arguments[2:]]) == 2
    assert "did you mean 'max_length'?" in capsys.readouterr().out


def test_too_little_disk(settings, capsys, monkeypatch):
    monkeypatch.setattr(store, "BYTES_PER_PARAMETER", 10**12)
    assert main(settings()) == 2
    assert "5 checkpoints take about" in capsys.readouterr().out


@pytest.fixture
def finetuning(tmp_path, small_tokenizer):
    """The same for fine-tuning."""

    def write(validation="rows.jsonl", output=tmp_path / "out"):
        small_tokenizer.save_pretrained(tmp_path / "tokenizer")
        row = json.dumps({"document": "some text and more of it", "summary": "the text"})
        (tmp_path / "rows.jsonl").write_text(f"{row}\n" * 8)
        recipe = (
            f"output_dir: {output}\nsteps: 4\ntask: summarization\nmodel: {{kind: bnb, size: {SIZE}}}\n"
            f"data: {{train: {tmp_path}/rows.jsonl, validation: {tmp_path}/{validation}, cache_dir: {tmp_path}/cache,"
            f" tokenizer: {tmp_path}/tokenizer, max_source_length: 32, max_target_length: 16}}\n"
        )
        return command(tmp_path, recipe, DS)

    return write


def test_fine_tuning_is_checked_too(finetuning, tmp_path, capsys):
    assert main(finetuning()) == 0
    shown = capsys.readouterr().out
    assert "check: no errors, this can be launched" in shown
    lines = shown.splitlines()
    assert "ok     resume" in lines
    assert "       start        a new run: there is no checkpoint in output_dir" in lines
    assert "task         Summarization (summarization), model kind bnb" in shown
    assert "data         train 8, validation 8 samples" in shown
    assert "slots        targets that do not fit: train 0 of 8 (0.0%), validation 0 of 8 (0.0%)" in shown
    assert not (tmp_path / "out").exists()


def test_all_faults_of_fine_tuning_at_once(finetuning, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(finetuning(validation="nowhere.jsonl", output=tmp_path / "file" / "run")) == 2
    errors = [line for line in capsys.readouterr().out.splitlines() if line.startswith("error ")]
    assert len(errors) == 2
    assert f"{tmp_path / 'file'} is not a writable directory; choose another" in errors[0]
    assert "nowhere.jsonl: no such file; data.validation names it" in errors[1]


def test_targets_that_do_not_fit_are_an_error(finetuning, settings, capsys):
    for arguments in (finetuning(), settings()):
        assert main([*arguments[:2], "model.decoder_length_ratio=0.1", *arguments[2:]]) == 2
        (error,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("error "))
        assert "decoder slots: model.decoder_length_ratio: " in error
        assert "(100.0%) targets of the train split do not fit into the decoder's slots" in error


def test_equal_slots_are_an_error_of_a_new_run(finetuning, settings, capsys, monkeypatch):
    ratio = "model.decoder_length_ratio=2.5"
    for arguments in (finetuning(), settings()):
        assert main([*arguments[:2], ratio, *arguments[2:]]) == 2
        (error,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("error "))
        assert "settings of a new model: model.decoder_length_ratio 2.5: with model.decoder_positions shared" in error
    for plan in (finetune, pretrain):  # a run that began with these settings goes on
        goes_on = SimpleNamespace(resume="a checkpoint", describe=lambda ds_config: "goes on")
        monkeypatch.setattr(plan, "find_start", lambda *rest, goes_on=goes_on, **flags: goes_on)
    for arguments in (finetuning(), settings()):
        assert main([*arguments[:2], ratio, *arguments[2:]]) == 0


def test_check_takes_the_command_line_of_the_launch(settings, capsys):
    """Overrides after an option, and the launch's own options."""
    arguments = settings()
    options = ["--resume", "auto", "steps=5", "--stop-at", "3", "--dry-run", "seed=7"]
    assert main([*arguments, *options]) == 0
    assert "steps        5" in capsys.readouterr().out
    assert main([*arguments, "--extend"]) == 2
    assert "--extend needs --resume auto or --resume PATH" in capsys.readouterr().err


def test_a_missing_checkpoint_is_refused_by_check_and_dry_run(settings, finetuning, tmp_path, capsys):
    nowhere = str(tmp_path / "nowhere")
    for family, write in ((pretrain, settings), (finetune, finetuning)):
        arguments = write()
        assert main([*arguments, "--resume", nowhere]) == 2
        shown = capsys.readouterr().out
        (error,) = (line for line in shown.splitlines() if line.startswith("error "))
        assert error.startswith(f"error  resume: {nowhere}: ")
        plan = family.make_plan(arguments[1], [], arguments[3], 2)
        with pytest.raises(CheckpointError) as raised:
            family.describe_dry_run(plan, Launch(resume=nowhere))
        assert error.endswith(str(raised.value))


def test_another_launch_in_the_directory_is_an_error(settings, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("bnb_ds.checkpoint.run_lock._DYING_SECONDS", 0.0)
    arguments = settings()
    (tmp_path / "out").mkdir()
    with RunLock(tmp_path / "out"):
        assert main(arguments) == 2
        assert "is writing here; wait until it ends, or stop it" in capsys.readouterr().out
        with pytest.raises(ConfigError, match="is writing here"):
            describe_dry_run(make_plan(arguments[1], [], arguments[3], 2))
    assert main(arguments) == 0
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.slow
def test_a_resume_is_planned(whole_run, capsys):
    arguments = ["check", str(whole_run.recipe), "--deepspeed_config", str(whole_run.ds_config), "--world-size"]
    auto = ["--resume", "auto"]
    assert main([*arguments, "1", *auto]) == 0
    assert "step_00000008, converted from 2 ranks at ZeRO stage 1 to 1 at 1" in capsys.readouterr().out
    assert main([arguments[0], arguments[1], "seed=1", *arguments[2:], "2", *auto]) == 2
    assert "was started with different settings: seed: 42 -> 1" in capsys.readouterr().out


@pytest.mark.slow
def test_check_and_dry_run_refuse_what_the_launch_refuses(whole_run, capsys):
    """The messages of launches are those of `test_resume_refusals_name_the_way_out`."""
    arguments = ["check", str(whole_run.recipe), "--deepspeed_config", str(whole_run.ds_config), "--world-size", "2"]
    cases = [
        ([], Launch(), [], f"output_dir {whole_run.output}: already holds a run; add --resume auto"),
        (["--resume", "auto", "--extend"], Launch("auto", extend=True), ["steps=5"], "steps: the run has done 8 steps"),
    ]
    for options, launch, overrides, message in cases:
        assert main([*arguments, *options, *overrides]) == 2
        assert message in capsys.readouterr().out
        with pytest.raises(ConfigError, match=message):
            describe_dry_run(make_plan(str(whole_run.recipe), overrides, str(whole_run.ds_config), 2), launch)
