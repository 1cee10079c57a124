"""Paired bootstrap test: is one system significantly better than another on the same test set?

Koehn, Statistical significance tests for machine translation evaluation, EMNLP 2004. Samples of the test set are drawn
with replacement, and both systems are scored on each sample.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bnb_ds.errors import DataError
from bnb_ds.evaluate.model import PREDICTIONS_FILE, REFERENCES_FILE, RESULTS_FILE
from bnb_ds.evaluate.scoring import Score, label_scorer, text_scorer
from bnb_ds.tasks.registry import get_task
from bnb_ds.tasks.task import Task


@dataclass(frozen=True)
class Comparison:
    """The comparison of two systems.

    Attributes:
        score: name of the score.
        first, second: scores on the whole test set.
        low, high: 95% interval of ``second - first``.
        p_value: share of drawn corpora, counted as in Koehn (2004), on which the better system is not better.
        note: how both were scored, where that is not plain.
    """

    score: str
    first: float
    second: float
    low: float
    high: float
    p_value: float
    note: str = ""

    def __str__(self) -> str:
        return (
            f"{self.score}: {self.first:.2f} -> {self.second:.2f}, difference {self.second - self.first:+.2f}"
            f" (95% interval {self.low:+.2f} to {self.high:+.2f}), p = {self.p_value:.4f}{self.note}"
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
    told = [result["oracle_length"] for result in results]
    if told[0] != told[1]:
        raise DataError(
            f"{(first, second)[told.index(True)]}: its outputs were given the lengths of their references, those of"
            f" {(first, second)[told.index(False)]} were not; evaluate both with --oracle-length or both without"
        )
    references = [_lines(directory / REFERENCES_FILE) for directory in (first, second)]
    if references[0] != references[1]:
        raise DataError(f"{second}: its references differ from those of {first}; evaluate both on the same rows")
    if not references[0]:
        raise DataError(f"{first}: {REFERENCES_FILE} has no lines, so there is nothing to compare; evaluate rows")
    outputs = [_lines(directory / PREDICTIONS_FILE) for directory in (first, second)]
    for directory, lines in zip((first, second), outputs, strict=True):
        if len(lines) != len(references[0]):
            raise DataError(
                f"{directory}: {PREDICTIONS_FILE} has {len(lines)} lines for {len(references[0])} references;"
                " evaluate it again"
            )
    for directory, result in zip((first, second), results, strict=True):
        if not result["is_number"]:  # texts do not show what they were read off
            raise DataError(f"{directory}: its scores are no numbers, so it cannot be compared; give another model")
    # Models of one's own classes may know of different ones.
    own = dict.fromkeys(label for result in results for label in result["labels"])
    task = get_task(results[0]["task"])
    task = replace(task, labels=tuple(own)) if own else task
    name = score or task.main_score
    cases = [result["lowercase"] for result in results]
    scorers = [
        _scorer(task, name, directory, lines, references[0], lowercase=any(cases))
        for directory, lines in zip((first, second), outputs, strict=True)
    ]
    everything = np.arange(len(references[0]))
    for directory, scorer in zip((first, second), scorers, strict=True):
        if not math.isfinite(scorer(everything)):
            raise DataError(f"{directory}: its {name} is not a number, so it cannot be compared; give another model")
    found = paired_bootstrap(name, *scorers, num_samples=everything.size, resamples=resamples, seed=seed)
    if not (task.is_generation and name == "bleu" and any(cases)):
        return found
    who = "both models write" if all(cases) else f"{(first, second)[cases.index(True)]} writes"
    return replace(found, note=f"; without regard to case, because {who} lowercase only")


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


def _scorer(
    task: Task, name: str, directory: Path, outputs: list[str], references: list[str], *, lowercase: bool
) -> Score:
    if task.is_generation:
        return text_scorer(name, outputs, references, lowercase=lowercase)
    wanted = _values(task, directory / REFERENCES_FILE, references)
    return label_scorer(task, name, _values(task, directory / PREDICTIONS_FILE, outputs), wanted)


def _values(task: Task, path: Path, lines: list[str]) -> np.ndarray:
    """The classes or scores that the lines of a file say."""
    known = {label: number for number, label in enumerate(task.labels)}
    values: list[float] = []
    for number, line in enumerate(lines, 1):
        try:
            values.append(known[line] if known else float(line))
        except (KeyError, ValueError):
            what = f"label of {task.name}" if known else "number"
            raise DataError(
                f"{path.parent}: line {number} of {path.name} is {line!r}, which is no {what}; evaluate it again"
            ) from None
    return np.array(values)


def _read_results(directory: Path) -> dict[str, Any]:
    try:
        results = json.loads((directory / RESULTS_FILE).read_text(encoding="utf-8"))
        found = {key: results[key] for key in ("task", "split")}
        # Older results say it in BLEU's signature only.
        lowercase = "case:lc" in results.get("settings", {}).get("bleu", "")
        scores = {name: value for name, value in results.get("scores", {}).items() if name != "loss"}
        is_number = all(value is not None and math.isfinite(value) for value in scores.values())
        found["labels"] = results.get("labels", [])
        found["oracle_length"] = bool(results.get("oracle_length", False))
        return {**found, "is_number": is_number, "lowercase": bool(results.get("lowercase", lowercase))}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise _no_evaluation(directory, error) from None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").split("\n")[:-1]
    except (OSError, UnicodeDecodeError) as error:
        raise _no_evaluation(path.parent, error) from None


def _no_evaluation(directory: Path, error: Exception) -> DataError:
    return DataError(f"{directory}: holds no evaluation ({error}); give a directory that `bnb-ds evaluate` wrote")
