"""Scores equal those that the libraries themselves compute for the same files."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer
from scipy import stats
from sklearn import metrics

from bnb_ds.errors import DataError
from bnb_ds.evaluate.scoring import predicted, score_labels, score_texts, text_scorer
from bnb_ds.evaluate.significance import paired_bootstrap
from bnb_ds.tasks.registry import get_task

OUTPUTS = [
    "the cat sat on on the mat .",
    "A man is playing a guitar on the street",
    "two dogs run through the Snow",
    "",
]
REFERENCES = [
    "The cat is sitting on the mat .",
    "A man plays the guitar in the street .",
    "Two dogs are running through the snow .",
    "A child .",
]


@pytest.fixture
def files(tmp_path):
    for name, lines in (("out", OUTPUTS), ("ref", REFERENCES)):
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines))
    return tmp_path / "out", tmp_path / "ref"


@pytest.mark.parametrize("lowercase", [False, True])
def test_bleu_is_that_of_sacrebleus_command(files, lowercase):
    outputs, references = files
    command = [sys.executable, "-m", "sacrebleu", str(references), "-i", str(outputs), "-w", "6", "--format", "json"]
    result = subprocess.run([*command, *(["-lc"] if lowercase else [])], capture_output=True, text=True, check=True)
    theirs = json.loads(result.stdout)
    ours = score_texts(["sacrebleu"], OUTPUTS, REFERENCES, lowercase=lowercase)
    assert ours.values["bleu"] == pytest.approx(theirs["score"], abs=1e-6)
    assert ours.settings["bleu"] == f"sacreBLEU {theirs['signature']}"
    assert f"case:{'lc' if lowercase else 'mixed'}" in ours.settings["bleu"]


def test_rouge_is_that_of_rouge_score():
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    each = [scorer.score(reference, output) for output, reference in zip(OUTPUTS, REFERENCES, strict=True)]
    ours = score_texts(["rouge"], OUTPUTS, REFERENCES)
    for name in ("rouge1", "rouge2", "rougeL"):
        assert ours.values[name] == pytest.approx(100 * np.mean([score[name].fmeasure for score in each]))
    assert "Porter stemmer" in ours.settings["rouge"]


def test_length_ratio_and_repetition_rate():
    values = score_texts(["length_ratio", "repetition_rate"], OUTPUTS, REFERENCES).values
    assert values["length_ratio"] == 23 / 28
    assert values["repetition_rate"] == pytest.approx(100 / 23)


def test_labels_are_scored_as_scikit_learn_and_scipy_do():
    outputs, references = np.array([1, 0, 1, 1, 0, 1]), np.array([1, 0, 0, 1, 1, 1])
    values = score_labels(["accuracy", "f1", "mcc"], outputs, references).values
    assert values["accuracy"] == pytest.approx(100 * metrics.accuracy_score(references, outputs))
    assert values["accuracy"] == pytest.approx(100 * 4 / 6)
    assert values["f1"] == pytest.approx(100 * metrics.f1_score(references, outputs))
    assert values["f1"] == pytest.approx(75)
    assert values["matthews_correlation"] == pytest.approx(metrics.matthews_corrcoef(references, outputs))
    scores, wanted = np.array([0.1, 2.0, 3.5, 4.0]), np.array([0.0, 2.5, 3.0, 5.0])
    values = score_labels(["pearson", "spearman"], scores, wanted).values
    assert values["pearson"] == pytest.approx(stats.pearsonr(scores, wanted).statistic)
    assert values["spearman"] == pytest.approx(1.0)
    assert score_labels(["pearson"], np.ones(4), wanted).values["pearson"] == 0.0


def test_a_correlation_with_outputs_that_are_no_numbers_is_none():
    outputs = np.array([1.0, np.nan, 3.0])
    values = score_labels(["pearson", "spearman"], outputs, np.array([1.0, 2.0, 3.0])).values
    assert np.isnan(list(values.values())).all()


LABEL_METRICS = ["accuracy", "f1", "mcc", "pearson", "spearman"]
TEXT_METRICS = ["rouge", "sacrebleu", "bleu4", "length_ratio", "repetition_rate"]


@pytest.mark.parametrize("metric", LABEL_METRICS)
@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_a_score_of_outputs_that_are_no_numbers_is_none(metric, wrong):
    values = score_labels([metric], np.array([1.0, wrong, 0.0]), np.array([1.0, 0.0, 1.0])).values
    assert np.isnan(list(values.values())).all()


@pytest.mark.parametrize("metric", LABEL_METRICS)
def test_labels_that_cannot_be_scored(metric):
    for outputs, references, message in (
        ([], [], "there are no rows to score: give at least one"),
        ([1.0], [1.0, 0.0], "there are 1 outputs for 2 references: give one for each"),
        ([1.0, 0.0], [0.0, np.nan], "the label of row 1 is nan: give a number"),
    ):
        with pytest.raises(DataError, match=message):
            score_labels([metric], np.array(outputs), np.array(references))


@pytest.mark.parametrize("metric", ["accuracy", "f1", "mcc"])
def test_a_row_without_a_label_is_named(metric):
    with pytest.raises(
        DataError, match="the label of row 2 is -1, which stands for none: score only rows with a label"
    ):
        score_labels([metric], np.array([0, 1, 1]), np.array([0, 1, -1]))


def test_f1_is_of_two_classes():
    with pytest.raises(DataError, match="f1 is of the classes 0 and 1, and row 1 has 2: leave f1 out"):
        score_labels(["f1"], np.array([0, 2, 1]), np.array([0, 1, 1]))
    assert score_labels(["accuracy", "mcc"], np.array([0, 2, 1]), np.array([0, 2, 0])).values["accuracy"] > 66


@pytest.mark.parametrize("metric", TEXT_METRICS)
def test_texts_that_cannot_be_scored(metric):
    with pytest.raises(DataError, match="there are no rows to score: give at least one"):
        score_texts([metric], [], [])
    with pytest.raises(DataError, match="there are 1 outputs for 2 references: give one for each"):
        score_texts([metric], ["a"], ["a", "b"])


def test_predictions_of_logits():
    logits = np.array([[0.1, 0.2], [3.0, -1.0]], np.float32)
    assert predicted(get_task("sst2"), logits).tolist() == [1, 0]
    assert predicted(get_task("stsb"), np.array([[1.23456789]], np.float32)).tolist() == [1.2346]


def test_bleu_of_drawn_rows_is_that_of_those_rows_as_a_corpus():
    outputs, references = OUTPUTS[:3] * 2, REFERENCES[:3] * 2
    bleu = text_scorer("bleu", outputs, references)
    for rows in ([0, 1, 2], [2, 2, 1], [5, 0, 0, 4]):
        whole = score_texts(["sacrebleu"], [outputs[i] for i in rows], [references[i] for i in rows])
        assert bleu(np.array(rows)) == pytest.approx(whole.values["bleu"])


def test_paired_bootstrap_tells_a_better_system_from_a_lucky_one():
    generator = np.random.default_rng(0)
    weak = generator.random(400)
    better, alike = weak + 0.1 + 0.1 * generator.random(400), weak + generator.normal(0, 0.3, 400)

    def scorer(values):
        return lambda rows: float(values[rows].mean())

    def compared(other):
        return paired_bootstrap("x", scorer(weak), scorer(other), num_samples=400, resamples=200, seed=1)

    sure = compared(better)
    assert sure.p_value < 0.01
    assert 0 < sure.low < sure.second - sure.first < sure.high
    unsure = compared(alike)
    assert unsure.p_value > 0.01
    assert unsure.low < 0 < unsure.high
    assert "95% interval" in str(sure)
