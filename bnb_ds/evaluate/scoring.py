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

from bnb_ds.errors import ConfigError, DataError, nearest
from bnb_ds.tasks.task import Task

#: score of some rows: int [N] rows -> value
Score = Callable[[np.ndarray], float]

ROUGE_SCORES = ("rouge1", "rouge2", "rougeL")
#: metrics of texts that have a ceiling: the score of the references after the way through the tokenizer and back
CEILING_METRICS = ("rouge", "sacrebleu", "bleu4")
#: decimals of what is reported; differences beyond them are the arithmetic's, not the model's
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

    Raises:
        DataError: there are no rows, or not one output for each reference.
    """
    _check_rows(outputs, references)
    scores = Scores()
    for metric in metrics:
        _TEXT_METRICS[metric](scores, list(outputs), list(references), lowercase)
    return scores


def score_labels(metrics: Sequence[str], outputs: np.ndarray, references: np.ndarray) -> Scores:
    """Score labels.

    Args:
        metrics: ``accuracy``, ``f1`` (of class 1), ``macro_f1`` (the mean over classes), ``mcc``; for regressions
            ``pearson``, ``spearman``.
        outputs: [N] classes or scores. If one of them is no number, neither is any score.
        references: [N].

    Raises:
        DataError: there are no rows, not one output for each reference, or a row has no label.
    """
    _check_rows(outputs, references)
    _check_labels(metrics, outputs, references)
    scores = Scores()
    is_number = np.isfinite(outputs)
    for metric in metrics:
        _LABEL_METRICS[metric](scores, np.where(is_number, outputs, 0), references)
    if not is_number.all():
        scores.values = dict.fromkeys(scores.values, math.nan)
    return scores


def _check_rows(outputs: Sequence[Any] | np.ndarray, references: Sequence[Any] | np.ndarray) -> None:
    if len(outputs) != len(references):
        raise DataError(f"there are {len(outputs)} outputs for {len(references)} references: give one for each")
    if len(references) == 0:
        raise DataError("there are no rows to score: give at least one")


def _check_labels(metrics: Sequence[str], outputs: np.ndarray, references: np.ndarray) -> None:
    for row in np.flatnonzero(~np.isfinite(references)):
        raise DataError(f"the label of row {row} is {references[row]}: give a number")
    if set(metrics) & {"accuracy", "f1", "macro_f1", "mcc"}:
        for row in np.flatnonzero(references < 0):
            raise DataError(
                f"the label of row {row} is {references[row]:g}, which stands for none: score only rows with a label"
            )
    if "f1" in metrics:
        for row in np.flatnonzero((outputs > 1) & np.isfinite(outputs) | (references > 1)):
            found = max(outputs[row], references[row])
            raise DataError(f"f1 is of the classes 0 and 1, and row {row} has {found:g}: leave f1 out")


def finite_or_none(values: dict[Any, float]) -> dict[Any, float | None]:
    """Scores as JSON can hold them: null in the place of one that is no number."""
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


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


def score_names(task: Task) -> list[str]:
    """The names of all scores of a task that writes texts."""
    return list(score_texts(task.metrics, ["a"], ["a"]).values)


def label_scorer(task: Task, name: str, outputs: np.ndarray, references: np.ndarray) -> Score:
    """A score of labels, of any rows.

    Raises:
        ConfigError: it is not a score of the task.
    """
    metric = {"matthews_correlation": "mcc"}.get(name, name)
    if metric not in task.metrics:
        raise ConfigError(f"--score {name}: is not a score of {task.name}; {nearest(name, task.metrics)}")
    return lambda rows: next(iter(score_labels((metric,), outputs[rows], references[rows]).values.values()))


def text_scorer(name: str, outputs: Sequence[str], references: Sequence[str], *, lowercase: bool = False) -> Score:
    """A score of texts, of any rows. `score_texts` takes all of them; a bootstrap draws some.

    Args:
        name: ``rouge1``, ``rouge2``, ``rougeL``, ``bleu`` or ``bleu4``.
        outputs: one text for each reference.
        references: as the data has them.
        lowercase: BLEU without regard to case.

    Raises:
        ConfigError: there is no such score.
        DataError: there are no rows, or not one output for each reference.
    """
    _check_rows(outputs, references)
    if name.startswith("rouge"):
        if name not in ROUGE_SCORES:
            raise ConfigError(f"--score {name}: {nearest(name, ROUGE_SCORES)}")
        f1 = _rouge_f1(outputs, references)[name]
        return lambda rows: float(f1[rows].mean())
    if name in ("bleu", "bleu4"):
        return _bleu_scorer(_bleu_metric_of(name, lowercase), outputs, references)
    raise ConfigError(f"--score {name}: give one of rouge1, rouge2, rougeL, bleu, bleu4, or a score of labels")


def _rouge_f1(outputs: Sequence[str], references: Sequence[str]) -> dict[str, np.ndarray]:
    """Score -> float64 [N], F1 of each text in percent; Porter's stemmer."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(list(ROUGE_SCORES), use_stemmer=True)
    each = [scorer.score(reference, output) for output, reference in zip(outputs, references, strict=True)]
    return {name: np.array([100 * result[name].fmeasure for result in each]) for name in ROUGE_SCORES}


def _bleu_metric_of(name: str, lowercase: bool) -> Any:
    # Questions (bleu4) are compared without regard to case, as in Du et al., 2017.
    return bleu_metric(lowercase=lowercase or name == "bleu4")


def _bleu_scorer(metric: Any, outputs: Sequence[str], references: Sequence[str]) -> Score:
    """BLEU of rows from each row's counts, which add up: what sacreBLEU says of those rows as a corpus."""
    counts = np.array(
        [
            [score.sys_len, score.ref_len, *score.counts, *score.totals]
            for score in (
                metric.corpus_score([output], [[reference]])
                for output, reference in zip(outputs, references, strict=True)
            )
        ]
    )

    def bleu(rows: np.ndarray) -> float:
        system, reference, *rest = counts[rows].sum(0).tolist()
        correct, total = rest[: len(rest) // 2], rest[len(rest) // 2 :]
        return metric.compute_bleu(correct, total, system, reference, smooth_method="exp").score

    return bleu


def bleu_metric(*, lowercase: bool) -> Any:
    """sacreBLEU's corpus BLEU with its defaults (4-grams, tokenizer 13a, exponential smoothing)."""
    from sacrebleu.metrics import BLEU

    return BLEU(lowercase=lowercase)


def _rouge(scores: Scores, outputs: list[str], references: list[str], lowercase: bool) -> None:
    for name, f1 in _rouge_f1(outputs, references).items():
        scores.values[name] = float(f1.mean())
    version = importlib.metadata.version("rouge-score")
    scores.settings["rouge"] = f"rouge-score {version}, mean F1, Porter stemmer, rougeL over the whole text"


def _sacrebleu(scores: Scores, outputs: list[str], references: list[str], lowercase: bool) -> None:
    _bleu("bleu", scores, outputs, references, lowercase)


def _bleu4(scores: Scores, outputs: list[str], references: list[str], lowercase: bool) -> None:
    _bleu("bleu4", scores, outputs, references, lowercase)


def _bleu(name: str, scores: Scores, outputs: list[str], references: list[str], lowercase: bool) -> None:
    metric = _bleu_metric_of(name, lowercase)
    scores.values[name] = _bleu_scorer(metric, outputs, references)(np.arange(len(references)))
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


def _macro_f1(scores: Scores, outputs: np.ndarray, references: np.ndarray) -> None:
    from sklearn.metrics import f1_score

    scores.values["macro_f1"] = 100 * float(f1_score(references, outputs, average="macro", zero_division=0))
    scores.settings["macro_f1"] = f"{_version('scikit-learn')}, mean over the classes that occur"


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
    # A model that gives the same score to everything correlates with nothing; the libraries say NaN.
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
    "macro_f1": _macro_f1,
    "mcc": _mcc,
    "pearson": _pearson,
    "spearman": _spearman,
}
