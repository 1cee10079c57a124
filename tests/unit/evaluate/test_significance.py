"""Two evaluations compared: what cannot be, and that every score of a task can."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest

from bnb_ds.cli import main
from bnb_ds.evaluate.scoring import score_labels, score_texts
from bnb_ds.evaluate.significance import compare

TEXTS = ["a b", "c d"]
LABELS = ["unacceptable", "acceptable"]


def evaluation(folder, task="summarization", split="test", references=TEXTS, predictions=None, **more):
    """What `bnb-ds evaluate` writes; without ``predictions`` they are the references."""
    folder.mkdir()
    (folder / "eval_results.json").write_text(json.dumps({"task": task, "split": split, **more}))
    for name, lines in (("references", references), ("generated_predictions", predictions or references)):
        (folder / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines))
    return folder


@pytest.fixture
def evaluations(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    evaluation(tmp_path / "a")
    evaluation(tmp_path / "split", split="validation")
    evaluation(tmp_path / "labels", task="sst2", references=["negative", "positive"])
    evaluation(tmp_path / "rows", references=["a b", "x"])
    evaluation(tmp_path / "few", predictions=["a b"])
    evaluation(tmp_path / "none", references=[])
    evaluation(tmp_path / "other", task="sst2", references=["negative", "positive"], predictions=["negative", "great"])
    evaluation(tmp_path / "unlabelled", task="sst2", references=["-1", "-1"])
    evaluation(tmp_path / "no number", task="stsb", references=["1.0", "2.0"], predictions=["1.0", "many"])
    return tmp_path


def test_given_lengths_are_compared_with_given_lengths_only(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, told in (("honest", False), ("told", True), ("told too", True)):
        evaluation(tmp_path / name, oracle_length=told)
    for pair in (["honest", "told"], ["told", "honest"]):
        assert main(["compare", *pair]) == 2
        said = "told: its outputs were given the lengths of their references, those of honest were not; evaluate both"
        assert said in capsys.readouterr().err
    assert main(["compare", "told", "told too", "--resamples", "5"]) == 0


def test_runs_stand_for_their_newest_evaluations(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    ages = {"one": ["squad_qg-test", "xsum-test", "xsum-validation"], "two": ["xsum-validation", "xsum-test"]}
    for run, names in ages.items():
        place = tmp_path / run / "best" / "evaluation" if run == "one" else tmp_path / run / "evaluation"
        place.mkdir(parents=True)
        for age, name in enumerate(names):
            task, split = name.split("-")
            evaluation(place / name, task=task.replace("xsum", "summarization"), split=split)
            os.utime(place / name / "eval_results.json", (1000 - age, 1000 - age))
    assert main(["compare", "one", "two", "--resamples", "5"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "one/best/evaluation/xsum-test -> two/evaluation/xsum-test"
    assert main(["compare", "two", "one/best/evaluation/xsum-validation", "--resamples", "5"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "two/evaluation/xsum-validation -> one/best/evaluation/xsum-validation"
    assert main(["compare", "one/best/evaluation/squad_qg-test", "two"]) == 2
    said = (
        "two: was evaluated on summarization test, summarization validation, and one/best/evaluation/squad_qg-test on"
    )
    assert f"{said} squad_qg test; evaluate both on one split of a task" in capsys.readouterr().err
    (tmp_path / "new").mkdir()
    assert main(["compare", "new", "two"]) == 2
    assert "new: holds no evaluation; make one with `bnb-ds evaluate new`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a", "split"], "split: its split is validation, that of a is test; give evaluations of the same split"),
        (["a", "labels"], "labels: its task is sst2, that of a is summarization; give evaluations of the same task"),
        (["a", "rows"], "rows: its references differ from those of a; evaluate both on the same rows"),
        (["a", "few"], "few: generated_predictions.txt has 1 lines for 2 references; evaluate it again"),
        (["few", "a"], "few: generated_predictions.txt has 1 lines for 2 references; evaluate it again"),
        (["a", "absent"], "absent: holds no evaluation ("),
        (["none", "none"], "none: references.txt has no lines, so there is nothing to compare; evaluate rows"),
        (["labels", "other"], "other: line 2 of generated_predictions.txt is 'great', which is no label of sst2;"),
        (["unlabelled", "unlabelled"], "unlabelled: line 1 of references.txt is '-1', which is no label of sst2;"),
        (["no number", "no number"], "no number: line 2 of generated_predictions.txt is 'many', which is no number;"),
        (["labels", "labels", "--score", "f2"], "--score f2: is not a score of sst2; known: accuracy"),
        (["a", "a", "--score", "rouge3"], "--score rouge3: did you mean 'rougeL'?"),
        (["a", "a", "--score", "meteor"], "--score meteor: give one of rouge1, rouge2, rougeL, bleu, bleu4"),
    ],
)
def test_what_cannot_be_compared(evaluations, capsys, arguments, message):
    assert main(["compare", *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("content", ["[]", "{}", "null", '{"task": "sst2"}', "{"])
def test_results_that_are_none(evaluations, capsys, content):
    (evaluations / "rows" / "eval_results.json").write_text(content)
    assert main(["compare", "a", "rows"]) == 2
    said = capsys.readouterr().err
    assert "rows: holds no evaluation (" in said
    assert said.endswith("; give a directory that `bnb-ds evaluate` wrote\n")
    assert said.count("\n") == 1


@pytest.mark.parametrize("name", ["references.txt", "generated_predictions.txt"])
@pytest.mark.parametrize(
    "damage", [lambda file: file.unlink(), lambda file: file.write_bytes(b"\xff\n")], ids=["missing", "no text"]
)
def test_files_that_are_missing_or_no_text(evaluations, capsys, name, damage):
    damage(evaluations / "few" / name)
    assert main(["compare", "a", "few"]) == 2
    said = capsys.readouterr().err
    assert "few: holds no evaluation (" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("name", ["mcc", "matthews_correlation", None])
def test_the_score_of_cola_goes_by_both_its_names(tmp_path, name):
    generator = np.random.default_rng(0)
    references, *outputs = (generator.integers(0, 2, 40) for _ in range(3))
    words = [[LABELS[label] for label in labels] for labels in (references, *outputs)]
    folders = [evaluation(tmp_path / str(i), "cola", "validation", words[0], words[i]) for i in (1, 2)]
    found = compare(*folders, score=name, resamples=5)
    expected = [score_labels(["mcc"], labels, references).values["matthews_correlation"] for labels in outputs]
    assert [found.first, found.second] == pytest.approx(expected)


CASED = ["The Cat sat on the Mat in Rome", "A Dog ran to the House of Anna"]
OLD = {"settings": {"bleu": "sacreBLEU nrefs:1|case:lc|eff:no|tok:13a"}}


@pytest.mark.parametrize("recorded", [{"lowercase": True}, OLD], ids=["recorded", "older results"])
def test_a_model_that_writes_lowercase_is_scored_as_it_was_evaluated(tmp_path, capsys, recorded):
    lower = [text.lower() for text in CASED]
    folders = [evaluation(tmp_path / name, "translation", "test", CASED, lower, **recorded) for name in ("a", "b")]
    found = compare(*folders, resamples=5)
    expected = score_texts(["sacrebleu"], lower, CASED, lowercase=True).values["bleu"]
    assert found.first == found.second == expected == pytest.approx(100)
    assert str(found).endswith("; without regard to case, because both models write lowercase only")
    cased = evaluation(tmp_path / "cased", "translation", "test", CASED, CASED, lowercase=False)
    mixed = compare(folders[0], cased, resamples=5)
    assert mixed.first == mixed.second == pytest.approx(100)
    assert str(mixed).endswith(f"; without regard to case, because {folders[0]} writes lowercase only")


@pytest.mark.parametrize("name", ["bleu", "bleu4", "rouge2", "rougeL"])
def test_a_comparison_gives_the_scores_of_the_evaluations(tmp_path, name):
    predictions = [["The Cat sat on a Mat in Rome", CASED[1]], ["the cat", "A Dog ran to the House of Anna"]]
    folders = [evaluation(tmp_path / str(i), "squad_qg", "test", CASED, predictions[i]) for i in (0, 1)]
    found = compare(*folders, score=name, resamples=5)
    metrics = ["sacrebleu", "bleu4", "rouge"]
    expected = [score_texts(metrics, outputs, CASED).values[name] for outputs in predictions]
    assert [found.first, found.second] == expected
    assert found.note == ""


def test_scores_that_are_no_numbers_are_not_compared(tmp_path, capsys):
    good = evaluation(tmp_path / "good", "stsb", "validation", ["1.0", "2.0", "4.0"], ["1.0", "2.0", "3.0"])
    bad = evaluation(tmp_path / "bad", "stsb", "validation", ["1.0", "2.0", "4.0"], ["nan", "nan", "nan"])
    assert main(["compare", str(good), str(bad)]) == 2
    assert "bad: its pearson is not a number, so it cannot be compared" in capsys.readouterr().err


def test_texts_of_a_model_whose_outputs_were_no_numbers_are_not_compared(tmp_path, capsys):
    """They have no score in the evaluation, so they have none here."""
    good = evaluation(tmp_path / "good", scores={"rougeL": 50.0})
    bad = evaluation(tmp_path / "bad", scores={"rougeL": None, "rouge1": None})
    evaluation(tmp_path / "older", scores={"rougeL": float("nan"), "rouge1": float("nan")})
    assert main(["compare", str(tmp_path / "older"), str(good)]) == 2
    assert "older: its scores are no numbers" in capsys.readouterr().err
    for score in ([], ["--score", "bleu"]):
        assert main(["compare", str(good), str(bad), *score]) == 2
        said = capsys.readouterr().err
        assert "bad: its scores are no numbers, so it cannot be compared; give another model" in said
