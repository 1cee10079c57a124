"""Each error of `bnb-ds evaluate` is one line."""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path

import pytest

from bnb_ds.cli import main
from bnb_ds.errors import ConfigError, DataError
from bnb_ds.evaluate.model import Evaluation, best_of_evaluations
from tests.exports import save_model


@pytest.fixture(scope="module")
def models(small_tokenizer, tmp_path_factory):
    """A pre-trained model, and directories that claim to be fine-tuned models."""
    folder = tmp_path_factory.mktemp("evaluating")
    save_model(folder / "model", small_tokenizer)
    for name, kind, task in (
        ("tuned", "bnb", "sst2"),
        ("texts", "bnb", "summarization"),
        ("other", "seq2seq", "sst2"),
    ):
        shutil.copytree(folder / "model", folder / name)
        made_for = {"kind": kind, "task": task, "lengths": {"source": 20, "target": 20}}
        (folder / name / "task.json").write_text(json.dumps(made_for))
    (folder / "graph").mkdir()
    (folder / "graph" / "model.onnx").touch()
    (folder / "half").mkdir()
    (folder / "half" / "task.json").write_text('{"kind": "bnb"}')
    return folder


SET = ["{models}/texts", "--set"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["a", "--select", "--split", "test"],
            "--split test with --select: a model must not be chosen on a test split",
        ),
        (
            ["a", "--select", "--oracle-length"],
            "--oracle-length with --select: no user of a model knows the lengths of the references, so a model must",
        ),
        (["a", "b", "--output", "o"], "--output: several models cannot write into one directory; leave it out"),
        (["{models}/absent"], "absent: not a fine-tuned model (task.json: "),
        (["{models}/half"], "half: not a fine-tuned model (task.json: 'task'); give a run of `bnb-ds finetune`, its"),
        (
            ["{models}/graph"],
            "graph: is an ONNX model, for `bnb-ds generate` and `bnb-ds serve`; give the model that it",
        ),
        (["{models}/absent", "--task", "sst2"], "absent: not a model directory ("),
        (
            ["{models}/model", "--task", "sst2"],
            "model: was only pre-trained and has no head for sst2; fine-tune it with `bnb-ds finetune`",
        ),
        (["{models}/tuned", "--task", "mnli"], "--task mnli: {models}/tuned was fine-tuned for sst2; give that"),
        (["{models}/other"], "model.kind seq2seq: task sst2 needs labels; give one of: bnb, classifier"),
        ([*SET, "steps=3"], "override 'steps=3': write it as data.KEY=VALUE"),
        ([*SET, "data.max_source_length=x"], "error: data.max_source_length: "),
        ([*SET, "data.max_sourse_length=9"], "unknown key 'data.max_sourse_length': did you mean 'max_source_length'?"),
        ([*SET, "data.max_source_length"], "override 'data.max_source_length': write it as key.path=value"),
        (
            [*SET, "data.split={{validation: 0.5, test: 0.5}}"],
            "error: data.split: validation 0.5 and test 0.5 leave no",
        ),
    ],
)
def test_what_is_refused_is_one_line(models, capsys, arguments, message):
    assert main(["evaluate", *(argument.format(models=models) for argument in arguments)]) == 2
    said = capsys.readouterr().err
    assert message.format(models=models) in said
    assert said.count("\n") == 1


def test_every_fault_of_the_data_is_told_at_once(models, capsys):
    wrong = ["--set", "data.max_source_length=x", "--set", "data.tests=x"]
    assert main(["evaluate", str(models / "texts"), *wrong]) == 2
    said = capsys.readouterr().err
    assert "data.max_source_length: " in said
    assert "unknown key 'data.tests': did you mean 'test'?" in said


def test_the_loss_says_over_how_many_samples_it_is(models, tmp_path, capsys):
    """The model has as many slots as source tokens. The second summary is longer than its document."""
    path = tmp_path / "rows.jsonl"
    rows = [("the value of the object", "the value"), ("it", "the value of the object")]
    path.write_text("".join(json.dumps({"document": d, "summary": s}) + "\n" for d, s in rows))
    arguments = ["evaluate", str(models / "texts"), "--set", f"data.validation={path}", "--output", str(tmp_path / "o")]
    assert main([*arguments, "--set", f"data.cache_dir={tmp_path / 'cache'}"]) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("  loss "))
    assert line.endswith("(over 1 samples, whose targets fit into the decoder's slots)")
    results = json.loads((tmp_path / "o" / "eval_results.json").read_text())
    assert (results["num_samples"], results["loss_samples"]) == (2, 1)
    assert (results["data_overrides"], results["hub"]) == ([f"data.validation={path}"], None)
    assert main(arguments) == 2
    said = f"{tmp_path / 'o' / 'eval_results.json'}: already exists; add --overwrite to replace it, or choose another"
    assert said in capsys.readouterr().err
    assert main([*arguments, "--set", f"data.cache_dir={tmp_path / 'cache'}", "--overwrite"]) == 0


def test_the_best_of_different_tasks():
    evaluations = {Path(name): Evaluation(Path(name), {"task": name}) for name in ("sst2", "cola")}
    with pytest.raises(
        ConfigError, match=r"--select: the models are for different tasks \(cola, sst2\); give models of one"
    ):
        best_of_evaluations(evaluations)


def test_a_score_that_is_no_number_is_never_the_best():
    nan = float("nan")

    def evaluations(*scores):
        return {
            Path(str(i)): Evaluation(Path(str(i)), {"task": "sst2", "scores": {"accuracy": score}})
            for i, score in enumerate(scores)
        }

    for order in ((nan, 80.0, 90.0), (80.0, nan, 90.0), (80.0, 90.0, nan)):
        best = best_of_evaluations(evaluations(*order))
        assert order[int(str(best))] == 90.0
    with pytest.raises(DataError, match="--select: accuracy of every model is not a number; none can be chosen"):
        best_of_evaluations(evaluations(nan, nan))


def test_results_that_would_be_lost_or_destroy_the_data_are_refused_before_the_work(
    models, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("bnb_ds.evaluate.model.tokenise", None)
    (tmp_path / "file").write_text("mine")
    assert main(["evaluate", str(models / "tuned"), "--output", str(tmp_path / "file")]) == 2
    assert f"--output {tmp_path / 'file'}: is no directory: choose another name" in capsys.readouterr().err
    data = tmp_path / "references.txt"
    data.write_text("mine")
    output = ["--output", str(tmp_path), "--set", f"data.validation={data}"]
    assert main(["evaluate", str(models / "tuned"), *output]) == 2
    assert f"--output {data}: is the same file as {data}, which is read" in capsys.readouterr().err
    assert data.read_text() == "mine"


def test_data_from_a_pipe_are_refused_not_waited_for(models, tmp_path, capsys):
    os.mkfifo(tmp_path / "rows.jsonl")
    output = ["--output", str(tmp_path / "o"), "--set", f"data.validation={tmp_path / 'rows.jsonl'}"]
    assert main(["evaluate", str(models / "tuned"), *output]) == 2
    message = "rows.jsonl: is no regular file, and is read several times; data.validation names it"
    assert message in capsys.readouterr().err


def test_texts_have_scores_where_no_reference_fits_the_slots(models, tmp_path, capsys):
    """What cannot be learnt from can still be written, and scored: only the loss is no number."""
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"document": "it", "summary": "the value of the object"}) + "\n")
    arguments = ["evaluate", str(models / "texts"), "--set", f"data.validation={path}", "--output", str(tmp_path / "o")]
    assert main([*arguments, "--set", f"data.cache_dir={tmp_path / 'cache'}"]) == 0
    results = json.loads((tmp_path / "o" / "eval_results.json").read_text())
    assert results["loss_samples"] == 0
    assert results["scores"].pop("loss") is None  # JSON has no NaN
    assert all(map(math.isfinite, results["scores"].values())), results["scores"]
    assert "over 0 samples, whose targets fit" in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"data: [", b"- a\n", b"\xff\xfe", b"data: 3\n"])
@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_a_recipe_in_a_model_that_is_damaged_is_one_line(models, tmp_path, capsys, command, content):
    model = shutil.copytree(models / "tuned", tmp_path / "model")
    (model / "recipe.yaml").write_bytes(content)
    (tmp_path / "rows.tsv").write_text("sentence\na\n")
    more = ["--input", str(tmp_path / "rows.tsv"), "--output", str(tmp_path / "o")] if command == "predict" else []
    assert main([command, str(model), *more]) == 2
    said = capsys.readouterr().err
    assert "recipe.yaml: is not a recipe of fine-tuning" in said
    assert said.count("\n") == 1
