"""Compute loss, outputs and scores of a model on one split of a task, during training or afterwards."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from bnb_ds.common.markdown import markdown_lists
from bnb_ds.data.tokenization import text_of
from bnb_ds.distributed import ranks
from bnb_ds.distributed.shares import rounds
from bnb_ds.evaluate.scoring import CEILING_METRICS, Scores, predicted, score_texts, scores_of
from bnb_ds.systems.base import System
from bnb_ds.systems.task_samples import TaskSamples
from bnb_ds.tasks.tokenised import Tokenised


@dataclass(frozen=True)
class Results:
    """Loss, outputs and scores of a model on a split.

    Attributes:
        loss: mean loss, computed as in training; NaN if no target fits into its slots.
        loss_samples: number of samples whose target fits. The others add nothing to the loss.
        outputs: texts, or an array [N] of classes or scores, in the order of the data.
        scores: scores of the outputs.
    """

    loss: float
    loss_samples: int
    outputs: list[str] | np.ndarray
    scores: Scores


@torch.no_grad()
def evaluate_split(
    system: System,
    model: Any,
    split: Tokenised,
    *,
    batch_size: int,
    device: torch.device,
    check_in: Callable[[], None] = lambda: None,
) -> Results:
    """Score a model on a whole split. Each rank computes its share, and every rank gets all results.

    Samples of similar length are batched together. The output of a sample does not depend on its batch.

    Args:
        system: the system of the model.
        model: a DeepSpeed engine or the model itself; its mode is restored afterwards.
        split: a split with references.
        batch_size: samples of a batch on one rank.
        device: the device of this rank.
        check_in: called before each batch, on all ranks alike; an exception from it ends the evaluation.
    """
    samples = TaskSamples(split, system)
    totals, local = torch.zeros(4, dtype=torch.float64), {}
    was_training = model.training
    order = np.argsort(split.source_lengths(np.arange(len(split))), kind="stable")
    model.eval()
    try:
        for ids, counted in rounds(order, batch_size):
            check_in()
            batch = samples.batch(ids, np.zeros_like(ids))
            prediction = system.predict(model, batch, device)
            if counted:
                fitting = batch.num_samples - batch.num_infeasible
                totals += torch.tensor(
                    [prediction.loss_sum, batch.loss_count, batch.num_targets, fitting], dtype=torch.float64
                )
                local |= dict(zip(ids.tolist(), prediction.outputs, strict=True))
    finally:
        model.train(was_training)
    loss_sum, count, targets, fitting = ranks.all_sum(totals.to(device)).tolist()
    loss = loss_sum / count if targets else math.nan
    by_id: dict[int, np.ndarray] = {}
    for part in ranks.gather(local):
        by_id |= part
    ordered = [by_id[number] for number in range(len(split))]
    are_numbers = not math.isnan(loss_sum)  # a sum over no target is 0
    return ranks.on_main(lambda: _results(system, split, loss, int(fitting), ordered, are_numbers))


def _results(
    system: System, split: Tokenised, loss: float, loss_samples: int, ordered: list[np.ndarray], are_numbers: bool
) -> Results:
    task = system.task
    if task.is_generation:
        outputs, references = system.texts(ordered), [one_line(text) for text in split.references()]
    else:
        outputs, references = predicted(task, np.stack(ordered)), split.labels
        are_numbers = bool(np.isfinite(np.stack(ordered)).all())
    scores = scores_of(task, outputs, references, lowercase=system.codec.lowercases)
    if system.scored_spelling != "none":
        scores.settings["romanian"] = f"outputs and references spelled as {system.scored_spelling}"
    if not are_numbers:
        # What is read off logits that are not numbers is an accident. A score of it could look like that of a model.
        scores.values = dict.fromkeys(scores.values, math.nan)
    return Results(loss, loss_samples, outputs, scores)


def ceilings(system: System, split: Tokenised, most_samples: int | None = None) -> dict[str, float]:
    """BLEU and ROUGE of a model that makes no mistake: references, tokenised (and cut) and decoded again.

    Args:
        system: gives the tokenizers.
        split: with references; for a task with labels the result is empty.
        most_samples: only so many; None: all.
    """
    task = system.task
    metrics = [metric for metric in task.metrics if metric in CEILING_METRICS]
    if not task.is_generation or not metrics:
        return {}
    ids = np.arange(min(len(split), most_samples or len(split)))
    values, cu_seqlens = split.targets(ids)
    outputs = system.texts(np.split(values, cu_seqlens[1:-1]))
    references = [" ".join(text.splitlines()) for text in split.references()[: ids.size]]
    return score_texts(metrics, outputs, references, lowercase=system.codec.lowercases).values


def one_line(text: str) -> str:
    """The text with its line breaks replaced by spaces."""
    return " ".join(text.splitlines())


def shown_outputs(split: Tokenised, system: System, results: Results, number: int) -> str:
    """Markdown with source, output and reference of the first samples, without [CLS], [SEP] and padding."""
    task = system.task
    rows = []
    for i in range(min(number, len(split))):
        source = text_of(system.codec.source, split.sources(np.array([i]))[0].tolist())
        reference = _shown(task.labels, split.labels[i]) if split.labels is not None else split.references()[i]
        rows.append((source, _shown(task.labels, results.outputs[i]), reference))
    return markdown_lists(("source", "output", "reference"), rows)


def _shown(labels: tuple[str, ...], output: Any) -> str:
    return labels[int(output)] if labels else str(output)
