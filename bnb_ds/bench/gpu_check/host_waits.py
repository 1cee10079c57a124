"""Where the host waits for the GPU, whether pinned copies arrive, and how often kernels are compiled."""

from __future__ import annotations

import collections
import os
import random
import time
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from bnb_ds.bench.gpu_check.cases import HeadBatch, Scale, model_of, ragged_lengths, training_inputs
from bnb_ds.bench.gpu_check.figures import FAILED, OK, SKIPPED, Figures
from bnb_ds.data.batch import PackedBatch

#: lengths of the sources, and the outputs
_WAITS_OF_GENERATION = 2
#: of a graph's loss, for the number of slots whose gradients matter
_WAITS_OF_GRAPH = 1
#: of a beam search, beside those of generation: for the best classes of the slots
_WAITS_OF_BEAM = 1


def waits(figures: Figures, scale: Scale) -> None:
    """A forward and backward pass waits nowhere, a graph's once; generation waits for lengths and for outputs."""
    if figures.device.type != "cuda":
        return figures.put("waits", "need a GPU", SKIPPED)
    for dtype in (scale.half, torch.float32):
        model = model_of(figures.device, dtype, scale.bert).train()
        inputs = training_inputs(ragged_lengths(scale, 4), scale.bert["vocab_size"], figures.device)
        ids = torch.randint(5, 20_000, (4, 64), device=figures.device)
        runs: dict[str, tuple[Callable[[], Any], int]] = {
            "forward and backward": (lambda model=model, inputs=inputs: model(**inputs).loss_sum.backward(), 0),
            "generate": (lambda model=model, ids=ids: model.generate(ids, token_budget=10**6), _WAITS_OF_GENERATION),
            "generate, beam": (
                lambda model=model, ids=ids: model.generate(ids, token_budget=10**6, beam_size=4),
                _WAITS_OF_GENERATION + _WAITS_OF_BEAM,
            ),
        }
        graph = model_of(figures.device, dtype, scale.bert, target="dag").train()
        runs["forward and backward of a graph"] = (
            lambda model=graph, inputs=inputs: model(**inputs).loss_sum.backward(),
            _WAITS_OF_GRAPH,
        )
        runs["generate, best path of a graph"] = (
            lambda model=graph, ids=ids: model.generate(ids, token_budget=10**6, strategy="joint_viterbi"),
            _WAITS_OF_GENERATION,
        )
        for name, (run, number) in runs.items():
            places = _places_of_waits(run)
            found = sum(places.values())
            figures.put(f"{name}, {dtype}: waits", found, OK if found <= number else FAILED, str(dict(places)))
    return None


def _places_of_waits(run: Callable[[], Any]) -> collections.Counter[str]:
    """Where a run makes the host wait, as torch notices it, and how often. The run is warmed up first."""
    run()
    torch.cuda.synchronize()
    places: collections.Counter[str] = collections.Counter()

    def note(message: Any, category: Any, filename: str, lineno: int, *more: Any, **others: Any) -> None:
        ours = [frame for frame in traceback.extract_stack() if f"{os.sep}bnb_ds{os.sep}" in frame.filename]
        frames = [f"{os.path.basename(frame.filename)}:{frame.lineno}" for frame in reversed(ours[-3:-1])]
        places[" < ".join(frames) or f"{filename}:{lineno}"] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        torch.cuda.set_sync_debug_mode("warn")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return places


def pinned(figures: Figures, scale: Scale) -> None:
    """Copies from pinned memory have the right values, although the batch is dropped at once."""
    if figures.device.type != "cuda":
        return figures.put("pinned copies", "need a GPU", SKIPPED)
    wrong, size, busy = 0, 200_000, torch.randn(4096, 4096, device=figures.device)
    for number in range(30):
        ids, one = torch.full((size,), number), np.ones(1, np.int64)
        starts, lengths = torch.tensor([0, size], dtype=torch.int32), torch.tensor([size])
        counts = {"num_ordinary": 0, "num_masked": 0, "num_infeasible": 0, "num_targets": 1, "loss_count": 1}
        longest = {"max_seqlen": size, "max_label_length": size}
        batch = PackedBatch(
            ids, starts, ids, lengths, **longest, sample_ids=one, source_lengths=one, decoder_lengths=one, **counts
        ).pinned()
        for _ in range(8):
            busy = busy @ busy * 1e-3
        inputs = batch.model_inputs(figures.device)
        del batch, ids
        wrong += int((inputs["input_ids"] != number).sum())
    return figures.put("wrong values after pinned copies", wrong, FAILED if wrong else OK)


def compilations(figures: Figures, scale: Scale) -> None:
    """Shapes of ragged batches do not make Triton compile its kernels again and again."""
    draw, begin, slow = random.Random(0), time.perf_counter(), 0
    for _ in range(3 if scale.dry else 24):
        sizes = {"batch": draw.choice([3, 7, 16, 20]), "slots": draw.randint(33, 90 if scale.dry else 700)}
        batch = HeadBatch(figures.device, torch.float32, **sizes, tokens=draw.randint(1, 16), vocab=512, hidden=64)
        figures.synchronise()
        start = time.perf_counter()
        batch.step()
        figures.synchronise()
        slow += time.perf_counter() - start > 0.25
    figures.put("calls over 0.25 s, each a compilation", slow, note=f"all took {time.perf_counter() - begin:.1f} s")
