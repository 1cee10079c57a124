"""``bnb-ds predict``: what a fine-tuned model says of rows that have neither label nor reference.

The output is a JSON-lines file with one object for each row, in their order:

  classes       {"id": "7", "label": "positive", "probabilities": {"negative": 0.01, "positive": 0.99}}
  regression    {"id": "7", "score": 3.25}
  texts         {"id": "7", "text": "Where is the house?"}
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bnb_ds.common.empty_outputs import count_empty, empty_warning
from bnb_ds.common.files import new_file, refuse_output
from bnb_ds.errors import DataError
from bnb_ds.evaluate.scoring import DECIMALS, predicted
from bnb_ds.systems.base import System
from bnb_ds.systems.model_dir import best_model, system_and_data
from bnb_ds.systems.task_samples import TaskSamples
from bnb_ds.tasks.examples import ReadingCounts, read_sources
from bnb_ds.tasks.row_reader import Example
from bnb_ds.tasks.tokenised import Tokenised, rows_lines, write_examples

_WINDOW = 4096


@torch.no_grad()
def predict(
    model: Path,
    source: Path,
    output: Path,
    *,
    task_name: str | None = None,
    batch_size: int = 32,
    overrides: Sequence[str] = (),
) -> list[str]:
    """Write what a model says of each row of a file; returns lines for the user.

    Args:
        model: a model directory, or a run with its best model.
        source: rows of any format that a recipe may name; labels and references are not read.
        output: a file that does not exist yet, or a pipe or a device.
        task_name: default: what the model was fine-tuned for.
        batch_size: samples of a batch; it makes no difference to the output.
        overrides: ``data.KEY=VALUE``, such as the names of columns.

    Raises:
        CheckpointError, ConfigError, DataError: naming what is missing; ``output`` exists, or a source is empty.
    """
    refuse_output(output, [source], is_new=True, makes_parents=True)
    model = best_model(model)
    system, data = system_and_data(model, task_name, overrides)
    counts = ReadingCounts()
    examples = read_sources(system.task, data, source, counts)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    totals, num_empty = {"num_samples": 0, "num_sources_cut": 0}, 0
    with new_file(output) as file:
        network = system.load(model).to(device).eval()
        for window in _windows(examples):
            with tempfile.TemporaryDirectory() as made:
                rows, info = _tokenised(system, window, Path(made))
                said = _predictions(system, network, rows, batch_size, device)
            for example, values in zip(window, said, strict=True):
                file.write(json.dumps({"id": example.id, **values}, ensure_ascii=False).encode() + b"\n")
            num_empty += count_empty(values.get("text", "a label") for values in said)
            totals = {name: number + info[name] for name, number in totals.items()}
        if not totals["num_samples"]:
            raise DataError(f"{source}: gives no sources; check the file and data.columns")
    info = {**totals, "num_targets_cut": 0, "num_rows_read": counts.read, "rows_left_out": counts.left_out}
    info |= {"limit": None, "notes": counts.notes.lines()}
    lines = [f"predict: {model}, {system.task.name}, {source} to {output}", *(f"  {line}" for line in rows_lines(info))]
    warning = empty_warning(num_empty, totals["num_samples"])
    return lines if warning is None else [*lines, warning]


def _windows(examples: Iterator[Example]) -> Iterator[list[Example]]:
    while window := list(islice(examples, _WINDOW)):
        yield window


def _tokenised(system: System, window: list[Example], directory: Path) -> tuple[Tokenised, dict[str, Any]]:
    # A batch has targets. These stand in for them; nothing that is written depends on them.
    target = "" if system.task.is_generation else 0
    examples = (replace(example, target=target) for example in window)
    info = write_examples(system.task, system.lengths, system.codec, examples, directory, references=None)
    (directory / "info.json").write_text(json.dumps(info), encoding="utf-8")
    return Tokenised(directory), info


def _predictions(
    system: System, network: Any, rows: Tokenised, batch_size: int, device: torch.device
) -> list[dict[str, Any]]:
    samples = TaskSamples(rows, system)
    order = np.argsort(rows.source_lengths(np.arange(len(rows))), kind="stable")
    by_row: dict[int, np.ndarray] = {}
    are_numbers = True
    for begin in range(0, order.size, batch_size):
        ids = order[begin : begin + batch_size]
        prediction = system.predict(network, samples.batch(ids, np.zeros_like(ids)), device)
        by_row |= dict(zip(ids.tolist(), prediction.outputs, strict=True))
        are_numbers &= not math.isnan(prediction.loss_sum)  # tokens do not show it, but their loss does
    ordered = [by_row[number] for number in range(len(rows))]
    task = system.task
    if not are_numbers or not all(np.isfinite(values).all() for values in ordered):
        raise DataError("the model's outputs are not numbers; give a checkpoint from before its training went wrong")
    if task.is_generation:
        return [{"text": text} for text in system.codec.decode(ordered)]
    logits = np.stack(ordered)
    if task.kind == "regression":
        return [{"score": float(score)} for score in predicted(task, logits)]
    shares = torch.softmax(torch.from_numpy(logits).double(), 1).tolist()
    return [
        {
            "label": task.labels[int(number)],
            "probabilities": {name: round(share, DECIMALS) for name, share in zip(task.labels, row, strict=True)},
        }
        for number, row in zip(predicted(task, logits), shares, strict=True)
    ]
