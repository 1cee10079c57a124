"""Paired bootstrap test: is one system significantly better than another on the same test set?

Koehn, Statistical significance tests for machine translation evaluation, EMNLP 2004. Samples of the test set are drawn
with replacement, and both systems are scored on each sample.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bnb_ds.errors import ConfigError, DataError, nearest
from bnb_ds.evaluate.model import PREDICTIONS_FILE, REFERENCES_FILE, RESULTS_FILE
from bnb_ds.evaluate.scoring import bleu_metric, rouge_scorer, score_labels
from bnb_ds.tasks.registry import get_task
from bnb_ds.tasks.task import Task

#: the score of a drawn sample: int [N] rows -> value
Score = Callable[[np.ndarray], float]

#: name of a score -> name of its metric, where they differ
_METRIC_OF = {"matthews_correlation": "mcc"}


@dataclass(frozen=True)
class Comparison:
    """The comparison of two systems.

    Attributes:
        score: name of the score.
        first, second: scores on the whole test set.
        low, high: 95% interval of ``second - first``.
        p_value: fraction of drawn samples on which the better system is not better, counted as in Koehn (2004).
    """

    score: str
    first: float
    second: float
    low: float
    high: float
    p_value: float

    def __str__(self) -> str:
        return (
            f"{self.score}: {self.first:.2f} -> {self.second:.2f}, difference {self.second - self.first:+.2f}"
            f" (95% interval {self.low:+.2f} to {self.high:+.2f}), p = {self.p_value:.4f}"
        )


def compare(first: Path, second: Path, *, score: str | None = None, resamples: int = 1000, seed: int = 0) -> Comparison:
    """Compare two directories that ``bnb-ds evaluate`` wrote for one split of a task.

    Raises:
        DataError: a directory holds no evaluation, or the evaluations are of different data.
        ConfigError: the score is unknown, or cannot be computed for single samples.
    """
    results = [_read_results(directory) for directory in (first, second)]
    for key in ("task", "split"):
        ours, theirs = (result[key] for result in results)
        if ours != theirs:
            raise DataError(
                f"{second}: its {key} is {theirs}, that of {first} is {ours}; give evaluations of the same {key}"
            )
    references = [_lines(directory / REFERENCES_FILE) for directory in (first, second)]
    if references[0] != references[1]:
        raise DataError(f"{second}: its references differ from those of {first}; evaluate both on the same rows")
    outputs = [_lines(directory / PREDICTIONS_FILE) for directory in (first, second)]
    for directory, lines in zip((first, second), outputs, strict=True):
        if len(lines) != len(references[0]):
            raise DataError(
                f"{directory}: {PREDICTIONS_FILE} has {len(lines)} lines for {len(references[0])} references;"
                " evaluate it again"
            )
    task = get_task(results[0]["task"])
    name = score or task.main_score
    scorers = [_scorer(task, name, lines, references[0]) for lines in outputs]
    return paired_bootstrap(name, *scorers, num_samples=len(references[0]), resamples=resamples, seed=seed)


def paired_bootstrap(
    name: str, first: Score, second: Score, *, num_samples: int, resamples: int, seed: int
) -> Comparison:
    """Score both systems on samples of ``num_samples`` rows drawn with replacement; both get the same rows."""
    everything = np.arange(num_samples)
    whole = [first(everything), second(everything)]
    generator = np.random.default_rng(seed)
    differences = np.empty(resamples)
    for i in range(resamples):
        rows = generator.integers(0, num_samples, num_samples)
        differences[i] = second(rows) - first(rows)
    low, high = np.percentile(differences, [2.5, 97.5])
    better = differences if whole[1] >= whole[0] else -differences
    p_value = (1 + int((better <= 0).sum())) / (1 + resamples)
    return Comparison(name, whole[0], whole[1], float(low), float(high), p_value)


def _scorer(task: Task, name: str, outputs: list[str], references: list[str]) -> Score:
    if not task.is_generation:
        metric = _METRIC_OF.get(name, name)
        if metric not in task.metrics:
            raise ConfigError(f"--score {name}: is not a score of {task.name}; {nearest(name, task.metrics)}")
        known = {label: number for number, label in enumerate(task.labels)}
        values, wanted = (
            np.array([known[line] if known else float(line) for line in lines]) for lines in (outputs, references)
        )
        return lambda rows: next(iter(score_labels((metric,), values[rows], wanted[rows]).values.values()))
    if name.startswith("rouge"):
        scorer = rouge_scorer()
        each = [scorer.score(reference, output) for output, reference in zip(outputs, references, strict=True)]
        if name not in each[0]:
            raise ConfigError(f"--score {name}: {nearest(name, each[0])}")
        f1 = np.array([100 * result[name].fmeasure for result in each])
        return lambda rows: float(f1[rows].mean())
    if name in ("bleu", "bleu4"):
        return _bleu_scorer(outputs, references, lowercase=name == "bleu4")
    raise ConfigError(f"--score {name}: give one of rouge1, rouge2, rougeL, bleu, bleu4, or a score of labels")


def _bleu_scorer(outputs: list[str], references: list[str], *, lowercase: bool) -> Score:
    """BLEU of any rows from the sum of their counts; it equals sacreBLEU's score of these rows as a corpus."""
    from sacrebleu.metrics import BLEU

    metric = bleu_metric(lowercase=lowercase)
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
        return BLEU.compute_bleu(correct, total, system, reference, smooth_method="exp").score

    return bleu


def _read_results(directory: Path) -> dict[str, str]:
    try:
        results = json.loads((directory / RESULTS_FILE).read_text(encoding="utf-8"))
        return {key: results[key] for key in ("task", "split")}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise _no_evaluation(directory, error) from None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").split("\n")[:-1]
    except (OSError, UnicodeDecodeError) as error:
        raise _no_evaluation(path.parent, error) from None


def _no_evaluation(directory: Path, error: Exception) -> DataError:
    return DataError(f"{directory}: holds no evaluation ({error}); give a directory that `bnb-ds evaluate` wrote")
