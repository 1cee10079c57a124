"""Recurrences over positions: every kernel beside PyTorch, launches for texts and for longer texts, and speed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bnb_ds.bench.gpu_check.cases import SMALL, Scale, model_of, training_inputs
from bnb_ds.bench.gpu_check.figures import FAILED, OK, SKIPPED, Figures
from bnb_ds.common.trials import fault_of
from bnb_ds.ctc import kernels as ctc_kernels
from bnb_ds.ctc import recursion
from bnb_ds.dag import alignment, paths
from bnb_ds.dag import kernels as dag_kernels
from bnb_ds.dag.alignment import Problem
from bnb_ds.dag.programme import best_path, forward_backward
from bnb_ds.recurrences import cuda
from bnb_ds.recurrences.host import through_host

_LENGTHS = (16, 128)
_MODEL = {**SMALL, "max_position_embeddings": 256}
#: torch may split larger products in two; one launch for each of the tokens that are added would be more than this
_MOST_MORE = 100


def trials(figures: Figures, scale: Scale) -> None:
    """Every kernel on a tiny problem, also those that a run would not need."""
    for loss, module in {"CTC": ctc_kernels, "a graph": dag_kernels}.items():
        for kind, of_kind in {"Triton": module._TRIALS, "CUDA C++": module._TRIALS_IN_CUDA}.items():
            for name, trial in of_kind.items():
                if figures.device.type != "cuda":
                    figures.put(f"{kind}, {loss}: {name}", "needs a GPU", SKIPPED)
                    continue
                fault = fault_of(lambda trial=trial: trial(figures.device), f"{kind}: {name}", "set BNB_KERNELS=none")
                verdict = SKIPPED if fault and "there is no NVRTC" in fault else FAILED
                figures.put(f"{kind}, {loss}: {name}", fault or "right", OK if fault is None else verdict)


def launches(figures: Figures, scale: Scale) -> None:
    """Launches do not grow with the length of texts: training steps of all targets, and every way to decode."""
    if figures.device.type != "cuda":
        return figures.put("launches", "need a GPU", SKIPPED)
    graph = {"target": "dag"}
    steps: dict[str, dict[str, Any]] = {"CTC": {}, "a graph": graph, "one token a slot": {"target": "token"}}
    for name, settings in steps.items():
        more = {"decoder_length": "predicted"} if name == "one token a slot" else {}
        model = model_of(figures.device, torch.float32, _MODEL, 0.0, **settings, **more).train()
        _compare(figures, f"training, {name}", lambda length, model=model: _step(model, length))
    ways: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "greedy": ({}, {}),
        "beam of 4": ({}, {"beam_size": 4}),
        **{f"graph, {way}": (graph, {"strategy": way}) for way in ("lookahead", "joint_viterbi", "beam", "sample")},
    }
    for name, (settings, options) in ways.items():
        model = model_of(figures.device, torch.float32, _MODEL, 0.0, **settings).eval()
        _compare(figures, f"generate, {name}", lambda length, m=model, o=options: m.generate(_ids(m, length), **o))
    return None


def speed(figures: Figures, scale: Scale) -> None:
    """Loss and best paths by Triton, by CUDA C++ and on the host."""
    batch_size, slots, tokens = (2, 12, 4) if scale.dry else (16, 256, 64)
    problem = _problem(batch_size, slots, tokens, figures.device)
    emissions_TBK = torch.randn(slots, batch_size, tokens + 1, device=figures.device).log_softmax(2)
    skips_BS = torch.ones(batch_size, tokens, dtype=torch.bool, device=figures.device)
    ctc = (emissions_TBK, skips_BS, torch.full((batch_size,), tokens, device=figures.device))
    runs: dict[str, Callable[[], object]] = {
        "loss of a graph, host": _loss_on_host(problem),
        "best path of a graph, host": lambda: through_host(lambda *of: paths._in_pytorch(Problem(*of)), *problem),
        "best path of CTC, host": lambda: through_host(recursion.best_states, *ctc),
    }
    if figures.device.type == "cuda":
        from bnb_ds.ctc import triton as ctc_triton
        from bnb_ds.dag import triton as dag_triton

        for kind, launch in {"Triton": dag_triton.launch, "CUDA C++": cuda.launch_of_graph}.items():
            runs[f"loss of a graph, {kind}"] = lambda launch=launch: forward_backward(launch, *problem)
            runs[f"best path of a graph, {kind}"] = lambda launch=launch: best_path(launch, *problem)
        runs["best path of CTC, Triton"] = lambda: ctc_triton.best_states(*ctc)
        runs["best path of CTC, CUDA C++"] = lambda: ctc_kernels._best_states_in_cuda(*ctc)
    for name, run in runs.items():
        try:
            millis, host = figures.milliseconds(run, repeats=3, warm=1)
            figures.put(f"{name}: ms", millis, note=f"host {host:.2f} ms; B {batch_size}, L {slots}, S {tokens}")
        except Exception as error:  # a kernel that does not work here; `trials` has said so
            figures.put(f"{name}: ms", f"{type(error).__name__}", SKIPPED)


def _problem(batch_size: int, slots: int, tokens: int, device: torch.device) -> Problem:
    slot = torch.arange(slots, device=device)
    is_link = slot[:, None] < slot
    scores = torch.randn(batch_size, slots, slots, device=device).masked_fill(~is_link, -torch.inf)
    links = torch.where(is_link, scores.log_softmax(2), -torch.inf)
    emissions = torch.randn(batch_size, slots, tokens, device=device) - 5
    lengths, targets = (torch.full((batch_size,), number, device=device) for number in (slots, tokens))
    return Problem.of(emissions, links, lengths, targets)


def _loss_on_host(problem: Problem) -> Callable[[], object]:
    def recurrence(*fields: Tensor) -> tuple[Tensor | None, ...]:
        nll, posteriors = alignment._in_pytorch(Problem(*fields), True)
        assert posteriors is not None
        return nll, *posteriors[:2]

    return lambda: through_host(recurrence, *problem)


def _compare(figures: Figures, name: str, run: Callable[[int], object]) -> None:
    few, many = (_launches(figures, lambda length=length: run(length)) for length in _LENGTHS)
    note = f"{few} for texts of {_LENGTHS[0]} tokens, {many} for {_LENGTHS[1]}"
    figures.put(f"{name}: launches more", many - few, OK if many - few <= _MOST_MORE else FAILED, note)


def _launches(figures: Figures, run: Callable[[], object]) -> int:
    from torch.profiler import ProfilerActivity, profile

    run()
    figures.synchronise()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        run()
        figures.synchronise()
    return sum(event.count for event in profiled.key_averages() if "LaunchKernel" in event.key)


def _step(model: Any, length: int) -> None:
    inputs = training_inputs(np.array([length, length - 3]), SMALL["vocab_size"], next(model.parameters()).device)
    model(**inputs).loss_sum.backward()


def _ids(model: Any, length: int) -> Tensor:
    ids = torch.arange(2 * length).view(2, length) % 90 + 5
    return ids.to(next(model.parameters()).device)
