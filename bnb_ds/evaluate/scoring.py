"""Score outputs against references with the field's standard libraries, and record the settings of each score.

Scores are percentages. Correlations lie between -1 and 1; the length ratio is a plain number.
"""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from bnb_ds.tasks.task import Task

#: decimals of reported numbers; differences beyond them come from rounding in the arithmetic
DECIMALS = 4


@dataclass
class Scores:
    """Scores by name, and the settings that computed them.

    Attributes:
        values: name of a score -> value.
        settings: name of a metric -> library version and settings, as papers quote them.
    """

    values: dict[str, float] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)


def score_texts(
    metrics: Sequence[str], outputs: Sequence[str], references: Sequence[str], *, lowercase: bool = False
) -> Scores:
    """Score texts.

    Args:
        metrics: ``rouge``, ``sacrebleu``, ``bleu4``, ``length_ratio``, ``repetition_rate``.
        outputs: one text for each reference.
        references: unchanged from the data.
        lowercase: compute BLEU on lowercased text, for models that write only lowercase; the signature records it.
    """
    scores = Scores()
    for metric in metrics:
        _TEXT_METRICS[metric](scores, list(outputs), list(references), lowercase)
    return scores


def score_labels(metrics: Sequence[str], outputs: np.ndarray, references: np.ndarray) -> Scores:
    """Score labels.

    Args:
        metrics: ``accuracy``, ``f1`` (of class 1), ``mcc``; for regressions ``pearson``, ``spearman``.
        outputs: [N] classes or scores.
        references: [N].
    """
    scores = Scores()
    for metric in metrics:
        _LABEL_METRICS[metric](scores, outputs, references)
    return scores


def predicted(task: Task, logits: np.ndarray) -> np.ndarray:
    """Convert float32 logits [N, C] to classes (int64) or scores (float64) [N].

    Scores are rounded, because the order of a sum depends on the batch and changes the last digits.
    """
    if task.kind == "classification":
        return logits.argmax(1)
    return np.round(logits[:, 0].astype(np.float64), DECIMALS)


def scores_of(task: Task, outputs: Any, references: Any, *, lowercase: bool = False) -> Scores:
    """Compute the scores of a task, from texts or from the output of :func:`predicted`."""
    if task.is_generation:
        return score_texts(task.metrics, outputs, references, lowercase=lowercase)
    return score_labels(task.metrics, outputs, references)


def rouge_scorer() -> Any:
    """ROUGE-1, -2 and -L with Porter's stemmer."""
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)


def bleu_metric(*, lowercase: bool) -> Any:
    """sacreBLEU's corpus BLEU with its defaults (4-grams, tokenizer 13a, exponential smoothing)."""
    from sacrebleu.metrics import BLEU

    return BLEU(lowercase=lowercase)


def _rouge(scores: Scores, outputs: list[str], references: list[str], lowercase: bool) -> None:
    scorer = rouge_scorer()
    results = [scorer.score(reference, output) for output, reference in zip(outputs, references, strict=True)]
    for name in ("rouge1", "rouge2", "rougeL"):
        scores.values[name] = 100 * float(np.mean([result[name].fmeasure for result in results]))
    version = importlib.metadata.version("rouge-score")
    scores.settings["rouge"] = f"rouge-score {version}, mean F1, Porter stemmer, rougeL over the whole text"


def _sacrebleu(scores: Scores, outputs: list[str], references: list[str], lowercase: bool) -> None:
    _bleu("bleu", scores, outputs, references, lowercase)


def _bleu4(scores: Scores, outputs: list[str], references: list[str], lowercase: bool) -> None:
    # Case is ignored for questions, as in Du et al., 2017.
    _bleu("bleu4", scores, outputs, references, True)


def _bleu(name: str, scores: Scores, outputs: list[str], references: list[str], lowercase: bool) -> None:
    metric = bleu_metric(lowercase=lowercase)
    scores.values[name] = metric.corpus_score(outputs, [references]).score
    scores.settings[name] = f"sacreBLEU {metric.get_signature()}"


def _length_ratio(scores: Scores, outputs: list[str], references: list[str], lowercase: bool) -> None:
    written, wanted = (sum(len(text.split()) for text in texts) for texts in (outputs, references))
    scores.values["length_ratio"] = written / max(wanted, 1)
    scores.settings["length_ratio"] = "words of all outputs over words of all references"


def _repetition_rate(scores: Scores, outputs: list[str], references: list[str], lowercase: bool) -> None:
    repeated = total = 0
    for output in outputs:
        words = output.split()
        repeated += sum(word == before for before, word in pairwise(words))
        total += len(words)
    scores.values["repetition_rate"] = 100 * repeated / max(total, 1)
    scores.settings["repetition_rate"] = "percentage of output words that equal the word before them"


def _accuracy(scores: Scores, outputs: np.ndarray, references: np.ndarray) -> None:
    from sklearn.metrics import accuracy_score

    scores.values["accuracy"] = 100 * float(accuracy_score(references, outputs))
    scores.settings["accuracy"] = _version("scikit-learn")


def _f1(scores: Scores, outputs: np.ndarray, references: np.ndarray) -> None:
    from sklearn.metrics import f1_score

    scores.values["f1"] = 100 * float(f1_score(references, outputs, zero_division=0))
    scores.settings["f1"] = f"{_version('scikit-learn')}, of class 1"


def _mcc(scores: Scores, outputs: np.ndarray, references: np.ndarray) -> None:
    from sklearn.metrics import matthews_corrcoef

    scores.values["matthews_correlation"] = float(matthews_corrcoef(references, outputs))
    scores.settings["matthews_correlation"] = _version("scikit-learn")


def _pearson(scores: Scores, outputs: np.ndarray, references: np.ndarray) -> None:
    from scipy.stats import pearsonr

    scores.values["pearson"] = _correlation(pearsonr, outputs, references)
    scores.settings["pearson"] = _version("scipy")


def _spearman(scores: Scores, outputs: np.ndarray, references: np.ndarray) -> None:
    from scipy.stats import spearmanr

    scores.values["spearman"] = _correlation(spearmanr, outputs, references)
    scores.settings["spearman"] = _version("scipy")


def _correlation(function: Callable[..., Any], outputs: np.ndarray, references: np.ndarray) -> float:
    # The libraries return NaN if all outputs are equal; such a model correlates with nothing, so its score is 0.
    if outputs.size < 2 or np.ptp(outputs) == 0 or np.ptp(references) == 0:
        return 0.0
    value = float(function(outputs, references).statistic)
    return value if math.isfinite(value) else 0.0


def _version(package: str) -> str:
    return f"{package} {importlib.metadata.version(package)}"


_TEXT_METRICS: dict[str, Callable[..., None]] = {
    "rouge": _rouge,
    "sacrebleu": _sacrebleu,
    "bleu4": _bleu4,
    "length_ratio": _length_ratio,
    "repetition_rate": _repetition_rate,
}
_LABEL_METRICS: dict[str, Callable[..., None]] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "mcc": _mcc,
    "pearson": _pearson,
    "spearman": _spearman,
}
