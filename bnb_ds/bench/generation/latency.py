"""``bnb-ds bench generate --against MODEL``: measure BnB and other models on the same batches.

A system with a number of beams is a *way*. A way at one batch size is a *cell*. The ways of a batch size take turns
after each batch, so that slow phases of the machine affect all of them. A cell that would take too long, or too much
memory, is skipped, and the table says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import psutil
import torch
from transformers.utils import logging

from bnb_ds.bench.generation.contenders import CONTENDERS, cache_bytes, contender, write_exactly
from bnb_ds.bench.generation.nar_contenders import NAR_CONTENDERS, nar_contender, write_lengths
from bnb_ds.bench.generation.reference_style import Rows, Setting, bnb_model, engine_of, policy_of
from bnb_ds.bench.generation.workloads import Workload
from bnb_ds.bench.measure import Timing, stopwatch
from bnb_ds.decoding.options import DecodeOptions
from bnb_ds.generate.engines import Engine
from bnb_ds.tasks.codec import Codec

OURS = "bnb"
# Fraction of the free memory that a cache may take. Reordering beams copies one layer of it; logits need memory too.
_MEMORY_SHARE = 0.6

Batch = tuple[Rows, list[int]]


@dataclass(frozen=True)
class Effort:
    """How much to measure.

    Attributes:
        batch_sizes: numbers of sources decoded together.
        beams: numbers of hypotheses; 1 is greedy.
        batches: batches of each cell, spread evenly over the sources; None: all batches.
        limit_seconds: cells that are expected to take longer are skipped.
    """

    batch_sizes: Sequence[int]
    beams: Sequence[int]
    batches: int | None
    limit_seconds: float


@dataclass
class Way:
    """One system with a number of beams.

    Attributes:
        name: name in the table.
        run: writes the outputs of a batch.
        cache_bytes: gives the bytes of the cache for a batch.
        seconds_per_source: measured at the last batch size that was measured or tried.
        taken: wall-clock and CPU seconds of each batch of the current cell.
    """

    name: str
    run: Callable[[Rows, list[int]], Any]
    cache_bytes: Callable[[Rows, list[int]], int]
    seconds_per_source: float = 0.0
    taken: list[tuple[float, float]] = field(default_factory=list)


class Systems:
    """BnB and the models that it is measured against, which are made once."""

    def __init__(self, setting: Setting, codec: Codec, names: Sequence[str]) -> None:
        logging.set_verbosity_error()
        self.setting = setting
        self.bnb = bnb_model(setting)
        self.others = {name: contender(name, setting, codec) for name in names if name in CONTENDERS}
        self.nar = {name: nar_contender(name, setting, codec) for name in names if name in NAR_CONTENDERS}

    def parameters(self) -> dict[str, int]:
        """The number of parameters of each model."""
        models = {OURS: self.bnb, **self.others, **self.nar}
        return {name: sum(weight.numel() for weight in model.parameters()) for name, model in models.items()}

    def measure(self, workload: Workload, effort: Effort) -> Iterator[dict[str, Any]]:
        """Yield one result for each batch size, from small to large."""
        setting = self.setting
        with (
            policy_of(self.bnb, workload.policy),
            engine_of(self.bnb, setting.engine, setting.dtype) as engine,
        ):
            summary = workload.summary(self.bnb.config)
            ways = self._ways(engine, effort.beams)
            for batch_size in sorted(set(effort.batch_sizes)):
                batches = workload.batches(batch_size, effort.batches)
                cells = _cells(ways, batches, effort, setting)
                yield {**summary, "batch_size": batch_size, "num_batches": len(batches), "cells": cells}

    def _ways(self, engine: Engine, beams: Sequence[int]) -> list[Way]:
        ways = []
        for num_beams in sorted(set(beams)):
            suffix = "" if num_beams == 1 else f", beam {num_beams}"
            if num_beams == 1 or self.setting.engine == "torch":  # the other engines decode greedily
                options = DecodeOptions(token_budget=1 << 30, beam_size=num_beams)
                ways.append(Way(OURS + suffix, partial(_decode, engine, options), lambda rows, lengths: 0))
            for name, model in self.others.items():
                ways.append(
                    Way(
                        name + suffix,
                        partial(write_exactly, model, num_beams=num_beams),
                        partial(cache_bytes, model, num_beams=num_beams),
                    )
                )
            if num_beams == 1:  # the lengths that they try are part of their settings
                ways += [
                    Way(name, partial(write_lengths, model), lambda rows, lengths: 0)
                    for name, model in self.nar.items()
                ]
        return ways


def _decode(engine: Engine, options: DecodeOptions, rows: Rows, lengths: list[int]) -> Any:
    return engine.decode(rows, options)


def _cells(ways: list[Way], batches: list[Batch], effort: Effort, setting: Setting) -> dict[str, dict[str, Any]]:
    cells: dict[str, dict[str, Any]] = {}
    taking_part = []
    for way in ways:
        reason = _too_large(way, batches, setting.device) or _too_slow(way, batches, setting, effort.limit_seconds)
        if reason is None:
            way.taken.clear()
            taking_part.append(way)
        cells[way.name] = {"skipped": reason}
    for _ in range(setting.repeats):
        for rows, lengths in batches:
            for way in taking_part:
                way.taken.append(stopwatch(partial(way.run, rows, lengths), setting.device))
    for way in taking_part:
        cells[way.name] = _figures(way.taken, batches, setting.repeats, whole=effort.batches is None)
    ours = cells.get(OURS, {})
    for name, cell in cells.items():
        if "skipped" not in cell and "skipped" not in ours and ours and name != OURS:
            cell["bnb_faster_wall"] = cell["seconds_per_sentence"] / ours["seconds_per_sentence"]
            cell["bnb_faster_cpu"] = cell["cpu_seconds_per_sentence"] / ours["cpu_seconds_per_sentence"]
    return cells


def _too_large(way: Way, batches: list[Batch], device: torch.device) -> str | None:
    needed, available = max(way.cache_bytes(*batch) for batch in batches), _free_bytes(device)
    if needed <= _MEMORY_SHARE * available:
        return None
    return f"its cache takes about {needed / 2**30:.0f} GiB, {available / 2**30:.0f} GiB are free"


def _too_slow(way: Way, batches: list[Batch], setting: Setting, limit: float) -> str | None:
    """The reason to skip a cell that would take too long, or None. One batch, which does not count, is timed."""
    num_sources = setting.repeats * sum(len(rows) for rows, _ in batches)
    # A source takes about as long as at the previous, smaller batch size, or less.
    expected = way.seconds_per_source * num_sources
    if expected <= limit:
        rows, lengths = batches[len(batches) // 2]  # a batch of medium length
        wall, _ = stopwatch(partial(way.run, rows, lengths), setting.device)
        way.seconds_per_source = wall / len(rows)
        expected = way.seconds_per_source * num_sources
    return None if expected <= limit else f"would take about {expected:.0f} s, above the limit of {limit:g} s"


def _figures(taken: list[tuple[float, float]], batches: list[Batch], repeats: int, *, whole: bool) -> dict[str, Any]:
    """The figures of one cell; ``taken`` lists the batches of the first round, then those of the second, and so on."""
    num_sentences = repeats * sum(len(rows) for rows, _ in batches)
    wall, cpu = (sum(values) for values in zip(*taken, strict=True))
    figures = {
        **Timing.of(taken).as_dict(),
        "seconds_per_sentence": wall / num_sentences,
        "cpu_seconds_per_sentence": cpu / num_sentences,
        "sentences_per_second": num_sentences / wall,
    }
    return {**figures, "whole_set_seconds": wall / repeats} if whole else figures


def _free_bytes(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available
