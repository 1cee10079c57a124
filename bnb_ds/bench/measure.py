"""Measure time and peak memory of several ways to do the same thing, interleaved in one run."""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

Run = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """Seconds of a run: median and 95th percentile of wall-clock time, and the median CPU time of all threads."""

    p50: float
    p95: float
    cpu: float

    @classmethod
    def of(cls, taken: list[tuple[float, float]]) -> Timing:
        """Summarise the results of `stopwatch`, one for each run."""
        walls, cpus = zip(*taken, strict=True)
        return cls(statistics.median(walls), percentile_95(walls), statistics.median(cpus))

    def as_dict(self) -> dict[str, float]:
        """The fields as a dictionary for JSON."""
        return {"p50_seconds": self.p50, "p95_seconds": self.p95, "cpu_seconds": self.cpu}


def percentile_95(values: Sequence[float]) -> float:
    """The 95th percentile by nearest rank: the smallest value that is at least as large as 95% of the values."""
    return sorted(values)[max(math.ceil(0.95 * len(values)) - 1, 0)]


def stopwatch(run: Run, device: torch.device) -> tuple[float, float]:
    """Measure one run: wall-clock seconds, and CPU seconds of all threads of the process."""
    _synchronise(device)
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    _synchronise(device)
    return time.perf_counter() - wall, time.process_time() - cpu


def interleaved(ways: dict[str, Run], device: torch.device, repeats: int) -> dict[str, Timing]:
    """Time all ways in turn, so that slow phases of the machine affect all of them. The first round does not count."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for round_number in range(repeats + 1):
        for name, run in ways.items():
            seconds = stopwatch(run, device)
            if round_number:
                taken[name].append(seconds)
    return {name: Timing.of(values) for name, values in taken.items()}


def interleaved_seconds(ways: dict[str, Run], device: torch.device, repeats: int) -> dict[str, float]:
    """Median seconds of each way. The ways take turns, so that slow phases of the machine affect all of them.

    On a CPU these are CPU seconds of all threads of the process, which other programs hardly disturb. On a GPU they are
    seconds of the GPU's clock. A warm-up round is not counted.
    """
    seconds_of = clock(device)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for round_number in range(repeats + 1):
        for name, run in ways.items():
            taken = seconds_of(run)
            if round_number:
                seconds[name].append(taken)
    return {name: statistics.median(values) for name, values in seconds.items()}


def clock(device: torch.device) -> Callable[[Run], float]:
    """The function that measures the seconds of one run on a device."""
    return _cuda_seconds if device.type == "cuda" else _cpu_seconds


def peak_bytes(run: Run, device: torch.device) -> int:
    """The most bytes of tensors alive at once during a run, beyond those alive before it."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # hide the profiler's log lines
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    changes = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    alive = peak = 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        alive += event.nbytes()
        peak = max(peak, alive)
    return peak


def _cpu_seconds(run: Run) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def _cuda_seconds(run: Run) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
