"""Time and peak memory of competing ways to do one thing, interleaved in one run."""

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
    """Seconds of one run: wall clock, median and 95th percentile, and CPU seconds of all threads, their median."""

    p50: float
    p95: float
    cpu: float

    @classmethod
    def of(cls, taken: list[tuple[float, float]]) -> Timing:
        """From what `stopwatch` gave of each run."""
        walls, cpus = zip(*taken, strict=True)
        return cls(statistics.median(walls), percentile_95(walls), statistics.median(cpus))

    def as_dict(self) -> dict[str, float]:
        """For JSON."""
        return {"p50_seconds": self.p50, "p95_seconds": self.p95, "cpu_seconds": self.cpu}


def percentile_95(values: Sequence[float]) -> float:
    """The smallest of the values that is not below 95% of them (nearest rank)."""
    return sorted(values)[max(math.ceil(0.95 * len(values)) - 1, 0)]


def stopwatch(run: Run, device: torch.device) -> tuple[float, float]:
    """Wall-clock seconds of one run, and CPU seconds of all threads of the process."""
    _synchronise(device)
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    _synchronise(device)
    return time.perf_counter() - wall, time.process_time() - cpu


def interleaved(ways: dict[str, Run], device: torch.device, repeats: int) -> dict[str, Timing]:
    """All ways taking turns, so that a slow spell of the machine meets every one; a first round is not counted."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for round_number in range(repeats + 1):
        for name, run in ways.items():
            seconds = stopwatch(run, device)
            if round_number:
                taken[name].append(seconds)
    return {name: Timing.of(values) for name, values in taken.items()}


def interleaved_seconds(ways: dict[str, Run], device: torch.device, repeats: int) -> dict[str, float]:
    """Median seconds of each way, all ways taking turns so that a slow spell of the machine meets every one.

    On a CPU these are CPU seconds of all threads of the process, which other programs on the machine hardly disturb;
    on a GPU, seconds of its own clock. One round before the first is not counted.
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
    """What measures the seconds of one run on a device."""
    return _cuda_seconds if device.type == "cuda" else _cpu_seconds


def peak_bytes(run: Run, device: torch.device) -> int:
    """Most bytes of tensors alive at once during a run, beyond those alive before it."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or the profiler reports its own start and stop
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
