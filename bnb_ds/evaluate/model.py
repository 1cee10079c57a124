"""``bnb-ds evaluate``: run a model on one split of a task, and write outputs and scores next to the model.

MODEL/evaluation/TASK-SPLIT/
  generated_predictions.txt   one output per line, in the order of the data
  references.txt              one reference per line
  eval_results.json           the scores, and the settings of the libraries that computed them
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bnb_ds.common.empty_outputs import count_empty
from bnb_ds.common.files import disk_errors, refuse_directory, refuse_output, refuse_overwriting, write_atomic
from bnb_ds.decoding.options import DecodeOptions
from bnb_ds.errors import ConfigError, DataError
from bnb_ds.evaluate.conditions import effective
from bnb_ds.evaluate.scoring import DECIMALS, finite_or_none
from bnb_ds.evaluate.split import Results, ceilings, evaluate_split, one_line
from bnb_ds.systems.base import System
from bnb_ds.systems.bnb import BnbGenerator
from bnb_ds.systems.model_dir import EVALUATION, best_model, system_and_data
from bnb_ds.systems.shown_targets import refuse_refinement_of
from bnb_ds.tasks.examples import files_of, hub_of, reads_file
from bnb_ds.tasks.own_tasks import definition
from bnb_ds.tasks.registry import get_task
from bnb_ds.tasks.task import Task
from bnb_ds.tasks.tokenised import Tokenised, rows_lines, tokenise
from bnb_ds.version import __version__

PREDICTIONS_FILE = "generated_predictions.txt"
REFERENCES_FILE = "references.txt"
RESULTS_FILE = "eval_results.json"
#: end of the directory's name if outputs had the length of their references
ORACLE_SUFFIX = "-oracle_length"


@dataclass(frozen=True)
class Evaluation:
    """The directory and the results of an evaluation."""

    directory: Path
    results: dict[str, Any]
    #: outputs without text
    num_empty: int = 0

    @property
    def scores(self) -> dict[str, float]:
        return self.results["scores"]


def evaluate_model(
    model: Path,
    *,
    task_name: str | None = None,
    split: str | None = None,
    batch_size: int = 32,
    overrides: Sequence[str] = (),
    output: Path | None = None,
    oracle_length: bool = False,
    overwrite: bool = True,
    decoding: dict[str, Any] | None = None,
) -> Evaluation:
    """Evaluate a model directory, or the best model of a run.

    Args:
        model: a directory that ``bnb-ds finetune`` or ``bnb-ds export`` wrote.
        task_name: default: the task that the model was fine-tuned for.
        split: default: the task's first validation split.
        batch_size: samples decoded together; it does not change the scores.
        overrides: ``data.KEY=VALUE``; they replace the data settings of the fine-tuning recipe.
        output: directory for the results; default: next to the model.
        oracle_length: give each output the length of its reference, which the model would have to predict. Published
            scores of some non-autoregressive models are such; no user of a model has them.
        overwrite: replace results in ``output``; those next to the model are always replaced.
        decoding: settings (`bnb_ds.model.settings_rules.DECODING`) that replace those that the model was saved with.
            The results then have a directory of their own.

    Raises:
        CheckpointError, ConfigError, DataError: the model, a setting or the data is wrong; the message names it.
    """
    model = best_model(model)
    system, data = system_and_data(model, task_name, overrides)
    split = split or system.task.validation_splits[0]
    system.decoding, system.oracle_length = decoding or {}, oracle_length
    _refuse_other_decoding(model, system)
    suffix = "".join(f"-{name}_{value}" for name, value in system.decoding.items()) + ORACLE_SUFFIX * oracle_length
    directory = output or model / EVALUATION / f"{system.task.name}-{split}{suffix}"
    refuse_directory(directory)
    for name in (PREDICTIONS_FILE, REFERENCES_FILE, RESULTS_FILE):
        refuse_output(directory / name, files_of(data, split), makes_parents=True)
    if output is not None:
        refuse_overwriting(directory / RESULTS_FILE, overwrite=overwrite)
    rows = tokenise(system.task, data, split, system.codec)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = system.load(model).to(device)
    results = evaluate_split(system, network, rows, batch_size=batch_size, device=device)
    of_data = {
        "data_overrides": effective(overrides),
        "hub": None if reads_file(data, split) else hub_of(system.task, data, split)[0].name,
    }
    return _write(system, rows, split, results, directory, of_data)


def refuse_choosing_on_test(split: str | None) -> None:
    """Raise ConfigError if a model would be chosen by its scores on a test split."""
    if split is not None and split.startswith("test"):
        raise ConfigError(
            f"--split {split} with --select: a model must not be chosen on a test split; choose on a validation split,"
            " then evaluate the chosen model on the test split"
        )


def best_of_evaluations(evaluations: dict[Path, Evaluation]) -> Path:
    """The model with the highest main score.

    Raises:
        ConfigError: the evaluations are of different tasks.
    """
    tasks = {evaluation.results["task"] for evaluation in evaluations.values()}
    if len(tasks) > 1:
        raise ConfigError(
            f"--select: the models are for different tasks ({', '.join(sorted(tasks))}); give models of one task"
        )
    name = get_task(tasks.pop()).main_score
    scores = {model: evaluation.scores[name] for model, evaluation in evaluations.items()}
    finite = {model: score for model, score in scores.items() if math.isfinite(score)}
    if not finite:
        raise DataError(f"--select: {name} of every model is not a number; none can be chosen")
    return max(finite, key=lambda model: finite[model])


def _write(
    system: System, rows: Tokenised, split: str, results: Results, directory: Path, of_data: dict[str, Any]
) -> Evaluation:
    task = system.task
    if task.is_generation:
        outputs, references = list(results.outputs), [one_line(text) for text in rows.references()]
    else:
        outputs, references = ([_label(task, value) for value in values] for values in (results.outputs, rows.labels))
    values = {
        "task": task.name,
        **definition(task),
        "split": split,
        "num_samples": len(rows),
        "loss_samples": results.loss_samples,
        "scores": {"loss": results.loss, **results.scores.values},
        "settings": results.scores.settings,
        "ceilings": {name: round(value, DECIMALS) for name, value in ceilings(system, rows).items()},
        "lowercase": system.codec.lowercases,
        "rows": rows_lines(rows.info),
        **of_data,
        "decoding": system.decoding,
        "oracle_length": system.oracle_length,
        "main_score": task.main_score,
        "bnb_ds": __version__,
        "data_fingerprint": rows.fingerprint,
    }
    values["scores"] = {name: round(value, DECIMALS) for name, value in values["scores"].items()}
    with disk_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
    for name, lines in ((PREDICTIONS_FILE, outputs), (REFERENCES_FILE, references)):
        write_atomic(directory / name, "".join(f"{line}\n" for line in lines))
    # Written last, so that scores never exist without their outputs.
    written = {**values, "scores": finite_or_none(values["scores"])}
    write_atomic(directory / RESULTS_FILE, json.dumps(written, indent=1, allow_nan=False) + "\n")
    return Evaluation(directory, values, count_empty(outputs))


def _refuse_other_decoding(model: Path, system: System) -> None:
    """Refuse settings of decoding that the model cannot have, or that do nothing."""
    is_ours = isinstance(system, BnbGenerator)
    if not system.decoding and not system.oracle_length and not is_ours:
        return
    config = system.load_config(model)
    if system.oracle_length and (not is_ours or config.decoder_length != "predicted"):
        raise ConfigError(
            f"--oracle-length: {model} predicts no lengths; give a model with decoder_length predicted, or leave it out"
        )
    if not is_ours:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in system.decoding)
        raise ConfigError(f"{flags}: {model} is a model of kind {system.kind}, which has no such setting; leave it out")
    if system.oracle_length and "length_beam" in system.decoding:
        raise ConfigError(
            "--length-beam with --oracle-length: no lengths are tried where each output has the length of its"
            " reference; leave one of them out"
        )
    DecodeOptions.of(DecodeOptions.of_model(config), system.decoding).check(config)
    refuse_refinement_of(model, config, system.decoding)


def _label(task: Task, value: np.generic) -> str:
    return task.labels[int(value)] if task.labels else f"{float(value):.{DECIMALS}f}"
