"""Workloads of a measurement: the sources, and the length of each output."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bnb_ds.bench.generation.reference_style import POSITIONS, Rows
from bnb_ds.data.batch import count_repeats
from bnb_ds.errors import DataError
from bnb_ds.model.configuration import BnbConfig
from bnb_ds.model.slots import decoder_lengths
from bnb_ds.tasks.codec import Codec
from bnb_ds.tasks.rows import read_file, read_parallel
from bnb_ds.tasks.task import Task
from bnb_ds.tasks.text_tasks import SQUAD_QG, SUMMARIZATION, TRANSLATION

_SOURCE_FIELDS = ("source", "document", "text")
_TARGET_FIELDS = ("target", "summary")
#: suffixes of files with sources and references; other files are plain lines
_PAIRED_FORMS = (".json", ".jsonl", ".csv", ".tsv", ".parquet")


@dataclass(frozen=True)
class Workload:
    """The sources of one measurement, sorted from long to short, as in `bnb_ds.decoding.decode`.

    Attributes:
        name: name in the table.
        rows: token ids of each source, with its special tokens.
        output_tokens: tokens of each output, including its end token.
        policy: fields of `BnbConfig` that set the number of decoder slots.
        slots_needed: number of slots that CTC needs for each reference; None if there are no references.
    """

    name: str
    rows: Rows
    output_tokens: Sequence[int]
    policy: dict[str, Any]
    slots_needed: Sequence[int] | None = None

    def __post_init__(self) -> None:
        order = sorted(range(len(self.rows)), key=lambda index: -len(self.rows[index]))
        for name in ("rows", "output_tokens", "slots_needed"):
            values = getattr(self, name)
            if values is not None:
                object.__setattr__(self, name, [values[index] for index in order])

    def batches(self, batch_size: int, most: int | None) -> list[tuple[Rows, list[int]]]:
        """Rows and output lengths of up to ``most`` full batches, spread evenly; None: all batches."""
        begins = list(range(0, len(self.rows), batch_size))
        if most is not None:
            full = [begin for begin in begins if begin + batch_size <= len(self.rows)]
            count = min(most, len(full))
            begins = [full[(2 * place + 1) * len(full) // (2 * count)] for place in range(count)]
        return [(self.rows[b : b + batch_size], list(self.output_tokens[b : b + batch_size])) for b in begins]

    def summary(self, config: BnbConfig) -> dict[str, Any]:
        """The facts that the figures depend on; ``config`` has the policy."""
        lengths = np.array([len(row) for row in self.rows])
        slots = decoder_lengths(lengths, config)
        needed = self.slots_needed
        return {
            "workload": self.name,
            "num_sources": len(self.rows),
            "source_tokens": _mean_and_max(lengths),
            "output_tokens": _mean_and_max(np.array(self.output_tokens)),
            "policy": self.policy,
            "decoder_slots": _mean_and_max(slots),
            "references_that_fit": None if needed is None else int((slots >= np.array(needed)).sum()),
        }


def fixed_policy(num_tokens: int, slots_per_token: float) -> dict[str, Any]:
    """A policy with the same number of slots for every source, enough for outputs of this length."""
    num_slots = math.ceil(slots_per_token * num_tokens)
    return {"decoder_length_min": num_slots, "decoder_length_max": num_slots}


def random_rows(num_sources: int, source_tokens: int, vocab_size: int) -> Rows:
    """Random sources that all have one length."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(5, vocab_size, (num_sources, source_tokens), generator=generator).tolist()


def of_references(
    data: Path, references: Path | None, codec: Codec, num_sources: int | None, policy: dict[str, Any]
) -> Workload:
    """Make a workload of pairs spread evenly over a file, tokenised as for fine-tuning.

    Args:
        data: SQuAD JSON (answer and passage -> question), json, jsonl, csv, tsv or parquet with the fields ``source``
            (or ``document``, ``text``) and ``target`` (or ``summary``; the first of a list), or plain text.
        references: file with the reference of each line, if ``data`` is plain text.
        codec: the tokenizers.
        num_sources: number of pairs; None: all.
        policy: see `Workload`.

    Raises:
        DataError: the files cannot be read, or have fewer pairs than ``num_sources``.
    """
    if references is None and Path(data.name.removesuffix(".gz")).suffix not in _PAIRED_FORMS:
        raise DataError(f"--data {data}: plain lines have no references; give --references or --output-tokens")
    task = _task_of(data, references)
    pairs = [(source, target) for source, target in _pairs(task, data, references) if all(source) and target]
    if len(pairs) < (num_sources or 1):
        raise DataError(f"--data {data}: holds {len(pairs)} pairs of source and reference; lower --num-sources")
    count = num_sources or len(pairs)
    chosen = [pairs[i * len(pairs) // count] for i in range(count)]
    longest = min(task.max_source_length, POSITIONS)
    sources = codec.encode_sources([source for source, _ in chosen], longest, cut=task.cut).tokens
    targets, _ = codec.encode_targets([target for _, target in chosen], task.max_target_length)
    offsets = np.cumsum([0, *map(len, targets)])
    needed = np.diff(offsets) + count_repeats(np.concatenate(targets), offsets)
    # The first token of a target is the start token, which the decoder is given.
    lengths = [len(target) - 1 for target in targets]
    return Workload(data.name, [row.tolist() for row in sources], lengths, policy, needed.tolist())


def _task_of(data: Path, references: Path | None) -> Task:
    if references is not None:
        return TRANSLATION
    return SQUAD_QG if data.name.removesuffix(".gz").endswith(".json") else SUMMARIZATION


def _pairs(task: Task, data: Path, references: Path | None) -> Iterator[tuple[tuple[str, ...], str]]:
    rows = read_file(data, form=task.form) if references is None else read_parallel(data, references)
    for place, row in rows:
        if isinstance(row, DataError):
            raise row
        if task is SQUAD_QG:
            answers = row["answers"]["text"]
            yield (answers[0].strip() if answers else "", row["context"].strip()), row["question"].strip()
        else:
            yield (_field(place, row, _SOURCE_FIELDS, " "),), _field(place, row, _TARGET_FIELDS, None)


def _field(place: str, row: dict[str, Any], names: tuple[str, ...], joined_by: str | None) -> str:
    """The text of the first field in ``names`` that the row has. A list is joined, or gives its first element."""
    for name in names:
        if name in row:
            value = row[name]
            if isinstance(value, list):
                value = value[0] if joined_by is None and value else (joined_by or "").join(map(str, value))
            return "" if value is None else str(value).strip()
    raise DataError(f"{place}: has none of the fields {', '.join(names)}; rename one")


def _mean_and_max(values: np.ndarray) -> dict[str, float]:
    return {"mean": float(values.mean()), "max": int(values.max())}
