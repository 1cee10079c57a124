"""Errors of `bnb-ds export`: no whole checkpoint, missing files, and exports that do not exist."""

from __future__ import annotations

import pytest

from bnb_ds.checkpoint.weights import read_weights
from bnb_ds.cli import main
from bnb_ds.errors import CheckpointError
from bnb_ds.export import finetuned
from bnb_ds.export.finetuned import best_of


@pytest.fixture
def run(tmp_path):
    """A run with one checkpoint whose manifest lists no files."""
    checkpoint = tmp_path / "run" / "checkpoints" / "step_00000001"
    checkpoint.mkdir(parents=True)
    (checkpoint / "checkpoint.json").write_text('{"files": {}}')
    (tmp_path / "run" / "config.resolved.yaml").touch()
    return tmp_path / "run"


def refusal(capsys, *arguments) -> str:
    """The last line of a failed `bnb-ds export`."""
    assert main(["export", *map(str, arguments)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


def test_runs_without_a_whole_checkpoint(run, tmp_path, capsys):
    said = refusal(capsys, tmp_path, tmp_path / "new")
    assert f"{tmp_path}: no whole checkpoint here; name a step_* directory or a run's output_dir" in said
    with pytest.raises(CheckpointError, match="absent: no whole checkpoint here; train longer, or name another run"):
        best_of(tmp_path / "absent")
    (run / "checkpoints" / "step_00000001" / "checkpoint.json").write_text(
        '{"files": {"a": {"bytes": 1, "sha256": ""}}}'
    )
    with pytest.raises(CheckpointError, match="step_00000001: a is missing; restore it, or export another checkpoint"):
        best_of(run)


def test_the_configuration_is_missing(run, tmp_path, capsys):
    said = refusal(capsys, run, tmp_path / "new")
    assert f"{run}: has no model/config.json; restore it from a copy of the run" in said
    assert not (tmp_path / "new").exists()


def test_the_encoder_of_a_fine_tuned_model(run, tmp_path, capsys):
    (run / "model").mkdir()
    (run / "model" / "task.json").touch()
    said = refusal(capsys, run, tmp_path / "new", "--encoder")
    assert f"--encoder: {run} holds a fine-tuned model; export the pre-training run that it started from" in said


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ([], "No such file or directory"),
        (["mp_rank_00_model_states.pt"], ""),
        (["zero_pp_rank_0_mp_rank_00_optim_states.pt"], ""),
    ],
)
def test_weights_that_are_not_deepspeeds(run, files, reason):
    checkpoint = run / "checkpoints" / "step_00000001"
    for name in files:
        (checkpoint / name).write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match=f"step_00000001: cannot be read as a DeepSpeed checkpoint: .*{reason}"):
        read_weights(checkpoint)


def test_the_best_of_evaluations_without_a_number_is_called_what_it_is(run, monkeypatch):
    """The newest checkpoint is exported, as it is all there is; it is not said to be the best."""
    monkeypatch.setattr(finetuned, "export_task_model", lambda run, found, output: output.mkdir())
    assert finetuned.export_best(run).startswith(
        "best         step_00000001, the newest: no evaluation gave a number -> "
    )
    scored = run / "checkpoints" / "step_00000001" / "checkpoint.json"
    scored.write_text('{"files": {}, "selection_loss": -3.5}')
    assert finetuned.export_best(run).startswith("best         step_00000001 -> ")


def test_a_finished_run_that_is_started_again_keeps_the_evaluations_of_its_best_model(run, monkeypatch):
    """They are of the same model. Those of an older best model go with it."""
    weights = b"1"

    def export_model(_, found, output):
        output.mkdir()
        (output / "model.safetensors").write_bytes(weights)

    monkeypatch.setattr(finetuned, "export_task_model", export_model)
    finetuned.export_best(run)
    results = run / "best" / "evaluation" / "sst2-validation" / "eval_results.json"
    results.parent.mkdir(parents=True)
    results.write_text("{}")
    finetuned.export_best(run)
    assert results.read_text() == "{}"
    weights = b"2"
    finetuned.export_best(run)
    assert (run / "best" / "model.safetensors").read_bytes() == b"2"
    assert not results.exists()
    assert {path.name for path in run.iterdir()} == {"best", "checkpoints", "config.resolved.yaml"}
